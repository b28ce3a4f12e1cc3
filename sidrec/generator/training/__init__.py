"""Corpus and Semantic IDs -> a trained generator."""
