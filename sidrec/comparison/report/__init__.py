"""Evaluated systems -> tables, plots and pages."""
