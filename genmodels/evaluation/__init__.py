"""Judging models by generation, representation and density."""
