"""Tested runs -> significance, intervals and Pareto front."""
