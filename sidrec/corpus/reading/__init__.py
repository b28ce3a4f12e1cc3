"""Files in any usual format -> rows, texts and times, errors with their place."""
