"""Data sets: catalogue, download, preprocessing, shards and the loader."""
