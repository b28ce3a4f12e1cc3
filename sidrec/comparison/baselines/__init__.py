"""Corpus -> ranked items of simple and trained baselines."""
