"""Requests -> log-probabilities of Semantic IDs, weighted by the prior mass below each prefix."""
