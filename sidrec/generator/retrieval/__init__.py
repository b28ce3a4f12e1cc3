"""Request lines -> result lines, resumable."""
