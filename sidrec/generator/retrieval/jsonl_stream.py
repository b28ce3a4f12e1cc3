"""JSON Lines stream: lines of requests in, lines of answers out, block by block."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sidrec.generator.retrieval.parse_request import MAX_LINE_BYTES, Understood, understand
from sidrec.generator.retrieval.retriever import RetrievedItem

if TYPE_CHECKING:
    from sidrec.generator.retrieval.retriever import Retriever

BLOCK_LINES = 1024  # lines in memory: enough to batch requests of similar length
_BLOCK_BYTES = 2 * MAX_LINE_BYTES


@runtime_checkable
class Output(Protocol):
    """Place for the answers of numbered blocks of lines."""

    def find(self, number: int, block: Sequence[bytes]) -> str | None:
        """Return the answers of a block that is finished; None otherwise."""
        ...

    def keep(self, number: int, block: Sequence[bytes], text: str) -> None:
        """Take the answers of a block."""
        ...


def answer_lines(
    retriever: "Retriever",
    lines: Iterable[bytes],
    output: Output,
    *,
    top_k: int,
    batch_size: int,
    block_lines: int = BLOCK_LINES,
) -> Iterator[Counter[str]]:
    """Answer every line that is not blank by one line, in order, block by block.

    An error of a line without a valid id begins with the line's number, from 1. Memory does not
    grow with the number of lines. A block that ``output`` finds is not answered again. The blocks
    depend only on the lines and on ``block_lines``.

    Args:
        retriever: Retriever that answers.
        lines: Lines, each with its line end, see ``parse_request.understand``.
        output: Place for the answers.
        top_k: Items per answer.
        batch_size: Requests decoded together.
        block_lines: Maximum number of lines in a block.

    Yields:
        After each block, its numbers of ``answered`` requests, of ``errors``, of item_ids
        ``unknown`` to the catalogue, of queries that were ``cut``, of input ``bytes``, and of
        input bytes that were ``found`` answered.
    """
    for number, (places, block) in enumerate(_blocks(lines, block_lines)):
        understood = [understand(line, retriever) for line in block]
        found = output.find(number, block)
        text = found
        if text is None:
            text = _answers(retriever, understood, places, top_k=top_k, batch_size=batch_size)
            output.keep(number, block, text)
        num_errors = sum("error" in json.loads(line) for line in text.splitlines())
        num_bytes = sum(map(len, block))
        yield Counter(
            answered=len(block) - num_errors,
            errors=num_errors,
            unknown=sum(one.num_unknown for one in understood),
            cut=sum(one.is_cut for one in understood),
            bytes=num_bytes,
            found=0 if found is None else num_bytes,
        )


def answers_of(
    retriever: "Retriever", lines: Iterable[bytes], *, top_k: int, batch_size: int
) -> list[str]:
    """Answer lines in memory, none of them blank; return one line for each, in order.

    Args:
        retriever: Retriever that answers.
        lines: Lines, see ``parse_request.understand``.
        top_k: Items per answer.
        batch_size: Requests decoded together.
    """
    understood = [understand(line, retriever) for line in lines]
    places = [""] * len(understood)
    text = _answers(retriever, understood, places, top_k=top_k, batch_size=batch_size)
    return text.splitlines(keepends=True)


def _answers(
    retriever: "Retriever",
    understood: Sequence[Understood],
    places: Sequence[str],
    *,
    top_k: int,
    batch_size: int,
) -> str:
    """Return the lines that answer a block; an error without an id begins with its line's place."""
    asked = [one for one in understood if one.request is not None]
    answers = iter(
        retriever.answer(
            [one.request for one in asked if one.request is not None],
            top_k=top_k,
            batch_size=batch_size,
            restrictions=[one.restriction for one in asked],
        )
    )
    results = [
        _result(one, None if one.request is None else next(answers), place)
        for one, place in zip(understood, places, strict=True)
    ]
    return "".join(json.dumps(result, allow_nan=False) + "\n" for result in results)


def _blocks(lines: Iterable[bytes], num_lines: int) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yield places and lines in blocks, without blank lines, shorter where lines are very long."""
    places: list[str] = []
    block: list[bytes] = []
    num_bytes = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        places.append(f"line {number}: ")
        block.append(line)
        num_bytes += len(line)
        if len(block) == num_lines or num_bytes >= _BLOCK_BYTES:
            yield places, block
            places, block, num_bytes = [], [], 0
    if block:
        yield places, block


def _result(one: Understood, found: list[RetrievedItem] | None, place: str) -> dict[str, Any]:
    if not found:
        error = one.error or "no allowed item is left; allow more or exclude fewer"
        where = "" if isinstance(one.request_id, str) else place
        return {"id": one.request_id, "error": f"{where}{error}"}
    return {"id": one.request_id, "items": [_as_json(item) for item in found]}


def _as_json(item: RetrievedItem) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "score": None if item.score is None else round(item.score, 6),
        "semantic_id": list(item.semantic_id),
    }
