"""Trie and model steps -> ranked items, by beam search."""
