"""SASRec with full cross-entropy: the sequential recommender that a generator should beat."""
