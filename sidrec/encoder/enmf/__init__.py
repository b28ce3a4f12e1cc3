"""Efficient neural matrix factorization: item embeddings from interactions alone."""
