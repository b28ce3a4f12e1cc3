"""Prompts -> log-probabilities of Semantic IDs, by a causal language model."""
