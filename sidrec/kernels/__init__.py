"""Faster CPU versions of torch and transformers operations, equal within rounding."""
