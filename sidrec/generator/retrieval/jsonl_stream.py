"""JSON Lines stream: lines of requests in, lines of answers out, block by block."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sidrec.generator.retrieval.parse_request import MAX_LINE_BYTES, Understood, understand
from sidrec.generator.retrieval.retriever import RetrievedItem

if TYPE_CHECKING:
    from sidrec.generator.retrieval.retriever import Retriever

_BATCHES_AT_ONCE = 16  # lines in memory: enough to batch requests of similar length
_BLOCK_BYTES = 2 * MAX_LINE_BYTES


def answer_lines(
    retriever: "Retriever",
    lines: Iterable[bytes],
    write: Callable[[str], object],
    *,
    top_k: int,
    batch_size: int,
    counts: Counter[str] | None = None,
    end_block: Callable[[Counter[str]], object] | None = None,
) -> Counter[str]:
    """Answer every line that is not blank by one line, in order.

    Memory does not grow with the number of lines. Blocks of lines are answered one after another.
    The end of a block depends only on the lines from its beginning on and on ``batch_size``.

    Args:
        retriever: Retriever that answers.
        lines: Lines, each with its line end, see ``parse_request.understand``.
        write: Takes each line of answers.
        top_k: Items per answer.
        batch_size: Requests decoded together.
        counts: Counts of earlier lines, to be added to.
        end_block: Called with the counts after the last line of a block is written. At that point
            exactly the lines of the blocks so far have been taken from ``lines``.

    Returns:
        Number of ``answered`` requests, of ``errors``, of item_ids ``unknown`` to the catalogue,
        and of queries that were ``cut``.
    """
    counts = Counter() if counts is None else counts
    for block in _blocks(lines, batch_size * _BATCHES_AT_ONCE):
        understood = [understand(line, retriever) for line in block]
        asked = [one for one in understood if one.request is not None]
        answers = iter(
            retriever.answer(
                [one.request for one in asked if one.request is not None],
                top_k=top_k,
                batch_size=batch_size,
                restrictions=[one.restriction for one in asked],
            )
        )
        for one in understood:
            found = None if one.request is None else next(answers)
            result = _result(one, found)
            counts["errors" if "error" in result else "answered"] += 1
            counts["unknown"] += one.num_unknown
            counts["cut"] += one.is_cut
            write(json.dumps(result, allow_nan=False) + "\n")
        if end_block is not None:
            end_block(counts)
    return counts


def _blocks(lines: Iterable[bytes], num_lines: int) -> Iterator[list[bytes]]:
    """Yield lines that are not blank in blocks, shorter ones where lines are very long."""
    block: list[bytes] = []
    num_bytes = 0
    for line in lines:
        if not line.strip():
            continue
        block.append(line)
        num_bytes += len(line)
        if len(block) == num_lines or num_bytes >= _BLOCK_BYTES:
            yield block
            block, num_bytes = [], 0
    if block:
        yield block


def _result(one: Understood, found: list[RetrievedItem] | None) -> dict[str, Any]:
    if found is None:
        return {"id": one.request_id, "error": one.error}
    if not found:
        return {
            "id": one.request_id,
            "error": "no item is left to answer with; allow more or exclude fewer",
        }
    return {"id": one.request_id, "items": [_as_json(item) for item in found]}


def _as_json(item: RetrievedItem) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "score": None if item.score is None else round(item.score, 6),
        "semantic_id": list(item.semantic_id),
    }
