"""Codes -> unique codes: collision policies."""
