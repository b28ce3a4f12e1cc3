"""Embeddings -> codes: residual k-means and its alternatives."""
