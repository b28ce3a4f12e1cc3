"""Runs -> folders of sentence-transformers, transformers and datasets, for the Hugging Face hub."""
