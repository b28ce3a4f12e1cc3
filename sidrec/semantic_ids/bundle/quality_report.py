"""Quality report of Semantic IDs: a short plain-text table and a picture."""

import re
from pathlib import Path
from typing import Any

import torch

from sidrec.files import atomic_file
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle

PICTURE = "quality.png"

_BARS = {
    "share their ID": "ids/collision_rate",
    "distinct IDs": "ids/unique_fraction",
}


def save_picture(bundle: SemanticIdBundle, folder: Path) -> None:
    """Write ``quality.png`` beside the bundle's files; the bundle's hash does not cover it.

    The left plot shows the items of each code, most used first, with one curve per level. A curve
    closer to its dotted line (equal use of all codes) is better. The right plot shows collisions
    before and after the policy, as fractions of the items.
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
    axes.legend(loc="upper right")


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
    axes.legend(loc="upper right")


_SHARES = {
    "ids/relative_error": "relative reconstruction error",
    "ids/added_distortion": "  of it added by the collision policy",
    "ids/collision_rate": "items that share their ID",
    "ids/collision_rate_before": "  before the collision policy",
    "ids/moved_fraction": "items moved by the policy",
    "ids/prefix_moved_fraction": "  of all items, in an earlier level",
    "ids/identical_embeddings": "items with the vector of another",
    "ids/neighbor_preservation": "nearest 10 that share the first code",
}
_PURITY = re.compile(r"ids/purity_(.+)_level_(\d+)")


def quality_table(bundle: SemanticIdBundle) -> str:
    """Return quality metrics as plain text: one line per level, then errors, collisions, purity."""
    quality, sizes = bundle.quality, bundle.table.codebook_sizes
    columns = {"in use": 8, "perplexity": 12, "entropy (bits)": 16, "Gini": 7}
    head = "".join(name.rjust(width) for name, width in columns.items())
    lines = [
        f"Semantic IDs of {len(bundle.item_ids):,} items: {' x '.join(map(str, sizes))} codes, "
        f"{bundle.quantizer['name']}, policy {bundle.policy['name']}",
        f"{'level':>7}{'codes':>8}{head}",
    ]
    for level, size in enumerate(sizes, start=1):
        in_use = size - quality[f"ids/dead_codes_level_{level}"]
        perplexity = quality[f"ids/perplexity_level_{level}"]
        entropy = quality[f"ids/entropy_level_{level}"]
        gini = quality.get(f"ids/gini_level_{level}", float("nan"))  # not in older bundles
        lines.append(
            f"{level:>7}{size:>8}{in_use:>8.0f}{perplexity:>12.1f}{entropy:>16.2f}{gini:>7.2f}"
        )
    lines += [
        f"  {text:<40}{quality[key]:>9.4f}" for key, text in _SHARES.items() if key in quality
    ]
    before, after = quality["ids/largest_group_before"], quality["ids/largest_group"]
    lines.append(f"  {'most items on one ID, before and after':<40}{before:>9.0f}{after:>9.0f}")
    return "\n".join([*lines, *_purity_lines(quality)])


def _purity_lines(quality: dict[str, float]) -> list[str]:
    found: dict[str, list[str]] = {}
    for key, value in quality.items():
        match = _PURITY.fullmatch(key)
        if match:
            found.setdefault(match[1], []).append(f"{value:.3f}")
    return [
        f"  {f'purity by {name}, prefixes of 0, 1, … levels':<40}   {' '.join(values)}"
        for name, values in found.items()
    ]
