"""Predictions: ranked items for evaluation requests, and their table on disk."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sidrec.errors import DataError
from sidrec.figures import Prediction
from sidrec.files import atomic_file
from sidrec.generator.decoding.beam_search import Decoded
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import RankedItems, Request

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("items", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float32())),
        ("semantic_id_ranks", pa.list_(pa.int64())),
        ("relevant", pa.list_(pa.int64())),
        ("grades", pa.list_(pa.int64())),
        ("history_length", pa.int64()),
        ("answerable", pa.bool_()),
    ]
)
_ROWS_AT_ONCE = 1 << 16


def predictions_of(
    requests: Sequence[Request],
    decoded: Decoded,
    trie: SemanticIdTrie,
    *,
    split: str,
    exclude_history: bool = True,
) -> list[Prediction]:
    """Combine decoded lists with their requests.

    Args:
        requests: Row ``i`` of ``decoded`` belongs to ``requests[i]``.
        decoded: Result of the search.
        trie: Trie of the catalogue.
        split: Split of the requests.
        exclude_history: Whether items of a request's history were excluded.
    """
    plain = predictions_of_ranked(
        requests, decoded.ranked, split=split, exclude_history=exclude_history
    )
    width = max((len(one.relevant) for one in plain), default=0)
    relevant = [[*one.relevant, *[-1] * (width - len(one.relevant))] for one in plain]
    answers = torch.tensor(relevant, dtype=torch.long, device=trie.items.device)
    ranks = trie.semantic_id_ranks(decoded.keys, answers.view(len(plain), width)).tolist()
    return [
        one._replace(semantic_id_ranks=tuple(row[: len(one.relevant)]))
        for one, row in zip(plain, ranks, strict=True)
    ]


def predictions_of_ranked(
    requests: Sequence[Request], ranked: RankedItems, *, split: str, exclude_history: bool = True
) -> list[Prediction]:
    """Combine ranked lists of a system without Semantic IDs with their requests; drop padding."""
    rows = zip(requests, ranked.items.tolist(), ranked.scores.tolist(), strict=True)
    predictions = []
    for request, items, scores in rows:
        grades = dict.fromkeys(request.relevant, 1)
        grades.update(zip(request.relevant, request.grades, strict=False))
        filled = [place for place, item in enumerate(items) if item >= 0]
        predictions.append(
            Prediction(
                request_id=request.request_id,
                task=request.task,
                split=split,
                items=tuple(items[place] for place in filled),
                scores=tuple(scores[place] for place in filled),
                semantic_id_ranks=(),
                relevant=tuple(grades),
                grades=tuple(grades.values()) if request.grades else (),
                history_length=len(request.history),
                answerable=not (exclude_history and _lies_in_history(request)),
            )
        )
    return predictions


def write_predictions(target: Path, predictions: Iterable[Prediction]) -> None:
    """Write ``predictions.parquet``, atomically, sorted by task and request, each request once.

    Items may share a score; the order of a list is that of its positions.
    """
    distinct = {(one.task, one.request_id): one for one in predictions}
    ordered = [distinct[key] for key in sorted(distinct)]
    with atomic_file(target) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for start in range(0, len(ordered), _ROWS_AT_ONCE):
            rows = [one._asdict() for one in ordered[start : start + _ROWS_AT_ONCE]]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def read_predictions(source: Path) -> list[Prediction]:
    """Read ``predictions.parquet``.

    Raises:
        DataError: If the file is missing or damaged, or a column is missing or of another type.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; run `sidrec test --from` on the run first.")
    try:
        table = pq.read_table(source)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source} is damaged: {reason} Run `sidrec test` again.") from None
    for field in SCHEMA:
        if (
            field.name not in table.column_names
            or table.schema.field(field.name).type != field.type
        ):
            raise DataError(
                f"{source} has no column '{field.name}' of type {field.type}; "
                "run `sidrec test` again."
            )
    return [_prediction(row) for row in table.select(SCHEMA.names).to_pylist()]


def _lies_in_history(request: Request) -> bool:
    """Return whether a request has relevant items and all of them are in its history."""
    return bool(request.relevant) and set(request.relevant) <= set(request.history)


def _prediction(row: dict[str, Any]) -> Prediction:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Prediction(**fields)
