"""Parts that every training shares: batches by number, resume, optimizer, NaN guard."""
