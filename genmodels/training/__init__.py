"""The engine: stages, updates, averages, checkpoints, workers."""
