"""Comparison YAML -> cells (strategy x seed) -> stages."""
