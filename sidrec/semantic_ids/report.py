"""Quality figures of Semantic IDs as a short table for people."""

import re

from sidrec.semantic_ids.bundle import SemanticIdBundle

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
    """Return the figures as plain text: one line per level, then errors, collisions, purity."""
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
