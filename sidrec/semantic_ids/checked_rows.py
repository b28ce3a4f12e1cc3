"""Vectors that come in from outside: checked before the first sum, then read in chunks."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_objects, sum_over_ranks
from sidrec.errors import DataError
from sidrec.semantic_ids.rows import CHUNK_ROWS, Rows


def rows_to_fit(vectors: Float[Tensor, "row dim"]) -> Rows:
    """Return this rank's block as ``Rows``, once every rank's numbers have been looked at.

    Collective: every rank passes its block (cut by ``rows.block_of_rank``), and raises if one does.

    Raises:
        DataError: If no rank holds a row, or a value is not finite (names rows of the whole).
    """
    bad = [start + row for start, chunk in _cut(vectors) for row in _not_finite(chunk)]
    facts: list[tuple[int, list[int]]] = gather_objects((len(vectors), bad))
    before, named = 0, []
    for num_rows, rows in facts:
        named += [before + row for row in rows]
        before += num_rows
    _refuse(named)
    if before == 0:
        raise DataError("There are no vectors to fit on; the catalogue is empty.")
    return Rows(lambda a, b: vectors[a:b].float(), len(vectors), vectors.shape[1])


def chunks_of(
    vectors: Float[Tensor, "row _"], *, dim: int, device: torch.device
) -> Iterator[tuple[slice, Float[Tensor, "chunk dim"]]]:
    """Yield where a chunk lies and its rows, float32 on ``device``.

    Raises:
        DataError: If the width is not ``dim``, or a value is not finite (names rows).
    """
    if vectors.shape[1] != dim:
        raise DataError(
            f"Vectors have {vectors.shape[1]} dimensions but the codebooks {dim}; "
            "use the encoder that the codebooks were fitted on."
        )
    for start, part in _cut(vectors):
        chunk = part.to(device, torch.float32)
        _refuse([start + row for row in _not_finite(chunk)])
        yield slice(start, start + len(chunk)), chunk


def exact_mean(rows: Rows) -> Float[Tensor, " dim"]:
    """Return the mean row of all ranks; the same bits for any number of ranks."""
    device = rows.take(torch.zeros(0, dtype=torch.int64)).device
    total = torch.zeros(rows.dim, dtype=torch.float64, device=device)
    for chunk in rows.chunks():
        total += chunk.sum(dim=0, dtype=torch.float64)
    return (sum_over_ranks(total) / rows.num_rows).float()


def _cut(vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(vectors), CHUNK_ROWS):
        yield start, vectors[start : start + CHUNK_ROWS]


def _not_finite(chunk: Tensor) -> list[int]:
    rows: list[int] = (~torch.isfinite(chunk).all(dim=1)).nonzero().flatten().tolist()
    return rows


def _refuse(rows: list[int]) -> None:
    if rows:
        raise DataError(
            f"{len(rows)} vectors hold NaN or infinity (first rows: {rows[:5]}); "
            "remove those items or encode them again."
        )
