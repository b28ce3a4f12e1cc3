"""Efficient neural matrix factorisation: item embeddings from interactions alone."""
