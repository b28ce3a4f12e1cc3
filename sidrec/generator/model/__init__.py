"""Requests -> log-probabilities of Semantic IDs."""
