"""Semantic IDs of which each task has its own: separate, or with a shared prefix."""
