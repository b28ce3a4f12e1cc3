"""Semantic IDs -> quality figures."""
