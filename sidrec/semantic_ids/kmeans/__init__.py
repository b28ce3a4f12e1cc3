"""Rows on one or many ranks -> centroids."""
