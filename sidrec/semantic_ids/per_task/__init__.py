"""Two embedding spaces -> Semantic IDs of each task, or of fused vectors."""
