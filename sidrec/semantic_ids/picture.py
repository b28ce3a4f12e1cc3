"""Quality of Semantic IDs as a picture: how evenly codes are used, who shares an ID."""

from pathlib import Path
from typing import Any

import torch

from sidrec.files import atomic_file
from sidrec.semantic_ids.bundle import SemanticIdBundle

PICTURE = "quality.png"

_BARS = {
    "share their ID": "ids/collision_rate",
    "distinct IDs": "ids/unique_fraction",
}


def save_picture(bundle: SemanticIdBundle, folder: Path) -> None:
    """Write ``quality.png`` beside the bundle's files; it is no part of the bundle or its hash.

    Left: items of each code, most used first, one curve per level; the closer to its dotted line
    (all codes alike), the better. Right: collisions before and after the policy, as fractions of
    the items.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    usage, collisions = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_usage(usage, bundle)
    _draw_collisions(collisions, bundle)
    sizes = " x ".join(map(str, bundle.table.codebook_sizes))
    figure.suptitle(
        f"{len(bundle.item_ids):,} items, {sizes} codes, "
        f"{bundle.quantizer['name']}, policy {bundle.policy['name']}"
    )
    with atomic_file(folder / PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_usage(axes: Any, bundle: SemanticIdBundle) -> None:  # noqa: ANN401
    for level, size in enumerate(bundle.table.codebook_sizes):
        counts = torch.bincount(bundle.table.codes[:, level], minlength=size)
        ordered = counts.sort(descending=True).values.tolist()
        (line,) = axes.plot(
            range(1, size + 1),
            ordered,
            label=f"level {level + 1}, {size} codes",
            drawstyle="steps-mid",
        )
        axes.axhline(len(bundle.item_ids) / size, color=line.get_color(), linestyle=":", alpha=0.6)
    axes.set(xlabel="code, most used first", ylabel="items", yscale="symlog", xscale="log")
    axes.set_ylim(bottom=0)
    axes.set_title("Items per code")
    axes.legend()


def _draw_collisions(axes: Any, bundle: SemanticIdBundle) -> None:  # noqa: ANN401
    names = list(_BARS)
    for side, suffix in enumerate(("_before", "")):
        heights = [bundle.quality.get(f"{_BARS[name]}{suffix}", 0.0) for name in names]
        places = [place + 0.4 * (side - 0.5) for place in range(len(names))]
        bars = axes.bar(places, heights, width=0.4, label="after" if side else "before")
        axes.bar_label(bars, fmt="%.3f")
    axes.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 1.1))
    axes.set_ylabel("fraction of items")
    axes.set_title("Collisions, before and after the policy")
    axes.legend()
