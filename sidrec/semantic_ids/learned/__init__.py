"""Quantizers that are neural networks: trained by Lightning, then fixed tensors like the others."""
