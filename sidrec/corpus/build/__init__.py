"""RawCatalogue -> split, indexed tables on disk."""
