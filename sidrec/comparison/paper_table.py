"""What the paper reports, to stand beside our figures: another data scale, another generator."""

from typing import NamedTuple

SOURCE = "Penha et al. 2025, arXiv 2508.10478: Recall@30, mean of 5 seeds"
SCALE = (
    "MovieLens-25M, 62,138 movies, 1.24 M interactions, flan-t5-base. Figures over another "
    "catalogue cannot be compared with ours; only the order of the rows can."
)


class PaperRow(NamedTuple):
    """One row of the paper's table; None where it states nothing."""

    ids: str
    search: float
    recommendation: float
    recommendation_head: float | None


STRATEGIES = (
    PaperRow("Content", 0.013, 0.023, None),
    PaperRow("Search-tuned", 0.072, 0.026, 0.090),
    PaperRow("Rec-tuned", 0.004, 0.062, 0.170),
    PaperRow("Separate", 0.028, 0.032, 0.120),
    PaperRow("Prefix-share", 0.007, 0.021, 0.058),
    PaperRow("Fused concat", 0.048, 0.018, 0.045),
    PaperRow("Fused SVD", 0.033, 0.038, 0.105),
    PaperRow("Multi-task", 0.046, 0.049, 0.135),
)
QUANTIZERS = (
    PaperRow("RQ-KMeans", 0.046, 0.049, None),
    PaperRow("Dictionary encoding", 0.019, 0.029, None),
    PaperRow("ResidualLFQ", 0.018, 0.023, None),
    PaperRow("RQ-VAE", 0.002, 0.024, None),
)
