"""Exact item scores, and the prior over items that is their weighted sum."""
