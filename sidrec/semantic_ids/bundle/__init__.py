"""Semantic IDs on disk: write, read, append, compare."""
