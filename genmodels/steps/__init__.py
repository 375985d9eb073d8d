"""The four steps of a run: spec in, report out."""
