"""Names of the baselines, apart from what they import."""

SYSTEM_NAMES = ("popularity", "bm25", "neighbors", "dense", "enmf")
NEEDS_A_RUN = ("dense", "enmf")
