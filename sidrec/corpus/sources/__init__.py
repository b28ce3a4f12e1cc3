"""Raw files -> RawCatalogue, one reader per source."""
