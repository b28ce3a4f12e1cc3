"""Differences between two bundles: items, codes, settings, quality metrics."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle

_NAMED = 5


class BundleDiff(NamedTuple):
    """Differences from bundle A to bundle B.

    Attributes:
        removed: Ids of items that only A has, in A's order.
        added: Ids of items that only B has, in B's order.
        changed: Ids of items of both whose Semantic ID differs, in A's order.
        changed_fraction: Fraction of common items whose code differs, for each common level.
        settings: ``(key, in A, in B)`` of settings that differ; None where a bundle lacks the key.
        quality: ``(metric, in A, in B)`` of all metrics; None where a bundle lacks the metric.
    """

    removed: list[str]
    added: list[str]
    changed: list[str]
    changed_fraction: list[float]
    settings: list[tuple[str, Any, Any]]
    quality: list[tuple[str, float | None, float | None]]


def diff(a: SemanticIdBundle, b: SemanticIdBundle) -> BundleDiff:
    """Compare two bundles, matching items by the user's ids."""
    row_in_b = {item_id: row for row, item_id in enumerate(b.item_ids)}
    known = set(a.item_ids)
    rows = np.array([row_in_b.get(item_id, -1) for item_id in a.item_ids], dtype=np.int64)
    both = np.flatnonzero(rows >= 0)
    codes_a, codes_b = a.table.codes.numpy()[both], b.table.codes.numpy()[rows[both]]
    levels = min(codes_a.shape[1], codes_b.shape[1])
    differs = codes_a[:, :levels] != codes_b[:, :levels]
    changed = differs.any(axis=1) | (codes_a.shape[1] != codes_b.shape[1])
    before, now = dict(_settings(a)), dict(_settings(b))
    return BundleDiff(
        removed=[a.item_ids[row] for row in np.flatnonzero(rows < 0)],
        added=[item_id for item_id in b.item_ids if item_id not in known],
        changed=[a.item_ids[row] for row in both[changed]],
        changed_fraction=differs.mean(axis=0).tolist() if len(both) else [],
        settings=[
            (key, before.get(key), now.get(key))
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
        ],
        quality=[
            (key, a.quality.get(key), b.quality.get(key))
            for key in dict.fromkeys([*a.quality, *b.quality])
        ],
    )


def diff_table(a: SemanticIdBundle, b: SemanticIdBundle) -> str:
    """Return the differences as a plain-text table."""
    found = diff(a, b)
    num_both = len(a.item_ids) - len(found.removed)
    lines = [
        f"A: {a.hash[:12]}, {len(a.item_ids):,} items   B: {b.hash[:12]}, {len(b.item_ids):,} items"
        + ("   (the same Semantic IDs)" if a.hash == b.hash else ""),
        f"  removed {len(found.removed):,}{_examples(found.removed)}",
        f"  added   {len(found.added):,}{_examples(found.added)}",
        f"  changed {len(found.changed):,} of {num_both:,} in both{_examples(found.changed)}",
    ]
    for level, fraction in enumerate(found.changed_fraction, start=1):
        lines.append(f"    other code at level {level}: {fraction:.4f} of them")
    lines.append("settings that differ" if found.settings else "no setting differs")
    lines += [f"  {key}: {one} -> {other}" for key, one, other in found.settings]
    width = max((len(key) for key, _, _ in found.quality), default=0)
    lines.append(f"{'figure'.ljust(width)}{'A':>12}{'B':>12}{'B - A':>12}")
    lines += [_figure_line(key, width, one, other) for key, one, other in found.quality]
    return "\n".join(lines)


def _figure_line(key: str, width: int, one: float | None, other: float | None) -> str:
    cells = ["-" if value is None else f"{value:.4f}" for value in (one, other)]
    cells.append("" if one is None or other is None else f"{other - one:+.4f}")
    return key.ljust(width) + "".join(cell.rjust(12) for cell in cells).rstrip()


def _examples(item_ids: list[str]) -> str:
    if not item_ids:
        return ""
    shown = ", ".join(item_ids[:_NAMED])
    return f": {shown}{', …' if len(item_ids) > _NAMED else ''}"


def _settings(bundle: SemanticIdBundle) -> Iterator[tuple[str, Any]]:
    yield "codebook_sizes", list(bundle.table.codebook_sizes)
    for part in ("quantizer", "policy", "source"):
        for key, value in getattr(bundle, part).items():
            yield f"{part}.{key}", value
    yield "encoder_hash", bundle.embeddings.encoder_hash
    yield "corpus_fingerprint", bundle.corpus_fingerprint
