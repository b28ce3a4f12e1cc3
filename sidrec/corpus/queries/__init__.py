"""Items -> search queries: read from files, from templates or by a language model."""
