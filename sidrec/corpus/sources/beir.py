"""BEIR folders: corpus.jsonl, queries.jsonl and qrels."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from sidrec.console import say
from sidrec.corpus.reading.records import read_records, readable, required, sentences
from sidrec.corpus.reading.table_scan import reading
from sidrec.corpus.schema import Split
from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery, no_interactions
from sidrec.errors import DataError

_SPLIT_FILES: dict[Split, str] = {"train": "train", "valid": "dev", "test": "test"}
_QRELS_COLUMNS = ["query-id", "corpus-id", "score"]
_DOCUMENTS_AT_ONCE = 100_000
_LICENSE = (
    "A data set in BEIR's layout; its terms are those of its original publisher (see "
    "https://github.com/beir-cellar/beir/wiki/Datasets-available). Cite Thakur et al. 2021, "
    "https://arxiv.org/abs/2104.08663, and the data set itself."
)
_HINT = "correct the line: BEIR's layout has a text or number here."


class _Judged(NamedTuple):
    """Relevant documents of one query, with grades above 0."""

    split: Split
    place: str
    grades: dict[str, int]


def read_beir(
    folder: Path, *, keep_splits: bool, unknown_items: Literal["error", "drop"]
) -> tuple[RawCatalogue, list[RawQuery]]:
    """Read a BEIR folder: documents as items, judged queries as queries, no interactions.

    A document is relevant when its score is above 0. Scores that differ become grades: nDCG reads
    them, and a training pair draws a document in proportion to its grade.

    Args:
        folder: Folder with corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv, at least one
            of the three. Each of the two JSONL files may be gzipped.
        keep_splits: Whether a query's split is that of its qrels file (dev is valid); otherwise
            the builder decides.
        unknown_items: ``error`` refuses qrels that name a document or query that is not in its
            file; ``drop`` leaves such rows out and counts them.

    Returns:
        Items with id, title and text, in the order of the file, and the judged queries.

    Raises:
        DataError: If a file is missing or damaged, a header differs, a row cannot be read, or a
            query is judged in two splits.
    """
    corpus_file, queries_file = (_jsonl(folder, name) for name in ("corpus", "queries"))
    items = _read_documents(corpus_file)
    texts = {
        required(row, "_id", place, hint=_HINT): readable(row.get("text"))
        for place, row in read_records(queries_file)
    }
    judged, counts = _read_qrels(
        folder / "qrels", set(items["item_id"]), set(texts), refuse=unknown_items == "error"
    )
    relevant = {query_id: found for query_id, found in judged.items() if found.grades}
    if not relevant:
        raise DataError(
            f"{folder / 'qrels'}: none of {counts['rows']:,} judgments makes a document of "
            "corpus.jsonl relevant to a query of queries.jsonl; do these files belong together?"
        )
    graded = len({grade for found in relevant.values() for grade in found.grades.values()}) > 1
    queries = [
        RawQuery(
            query_id,
            texts[query_id],
            tuple(found.grades),
            query_id,
            found.split if keep_splits else "",
            f"beir {folder.name}",
            found.place,
            grades=tuple(found.grades.values()) if graded else (),
        )
        for query_id, found in relevant.items()
    ]
    say(
        f"beir: {items.height:,} documents, {len(texts):,} queries, {counts['rows']:,} judgments; "
        f"left out {counts['not relevant']:,} judgments with a score of 0 or less, "
        f"{counts['unknown']:,} of unknown documents or queries, and "
        f"{len(texts) - len(queries):,} queries without a relevant document"
    )
    if keep_splits and not any(query.split == "train" for query in queries):
        say(
            f"{folder / 'qrels'} has no train queries: the corpus can be searched but not trained "
            "on; --keep_splits false shares its queries out"
        )
    raw = RawCatalogue(
        items, no_interactions(), str(corpus_file), "", f"beir {folder.name}", _LICENSE
    )
    return raw, queries


def _jsonl(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if file.is_file():
            return file
    raise DataError(
        f"{folder} holds no {name}.jsonl; give the folder of one BEIR data set, unzipped."
    )


def _read_documents(file: Path) -> pl.DataFrame:
    schema = dict.fromkeys(("item_id", "title", "text"), pl.String)
    rows = _document_rows(file)
    parts = [pl.DataFrame(schema=schema)]
    while part := list(islice(rows, _DOCUMENTS_AT_ONCE)):
        parts.append(pl.DataFrame(part, schema=schema, orient="row"))
    return pl.concat(parts)


def _document_rows(file: Path) -> Iterator[tuple[str, str, str]]:
    for place, row in read_records(file):
        title = readable(row.get("title"))
        text = sentences([title, readable(row.get("text"))])
        yield required(row, "_id", place, hint=_HINT), title, text


def _read_qrels(
    folder: Path, documents: set[str], queries: set[str], *, refuse: bool
) -> tuple[dict[str, _Judged], Counter[str]]:
    """Return the relevant documents of every judged query, and counts of rows left out."""
    files = {split: folder / f"{name}.tsv" for split, name in _SPLIT_FILES.items()}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        raise DataError(
            f"{folder} holds none of train.tsv, dev.tsv and test.tsv; a BEIR data set needs one."
        )
    judged: dict[str, _Judged] = {}
    counts: Counter[str] = Counter()
    for split, file in files.items():
        for place, query_id, document, score in _judgments(file):
            counts["rows"] += 1
            fault = _unknown(query_id, document, queries, documents)
            if fault and refuse:
                raise DataError(f"{place} {fault}; add it, or use --unknown_items drop.")
            own = judged.setdefault(query_id, _Judged(split, place, {}))
            if own.split != split:
                raise DataError(
                    f"{place}: query '{query_id}' was judged before in {own.place}; a query "
                    "belongs to one split."
                )
            if fault or score <= 0:
                counts["unknown" if fault else "not relevant"] += 1
            else:
                own.grades[document] = score
    return judged, counts


def _unknown(query_id: str, document: str, queries: set[str], documents: set[str]) -> str:
    if query_id not in queries:
        return f"names query-id '{query_id}', which is not in queries.jsonl"
    if document not in documents:
        return f"names corpus-id '{document}', which is not in corpus.jsonl"
    return ""


def _judgments(file: Path) -> Iterator[tuple[str, str, str, int]]:
    with reading(str(file)):
        frame = pl.read_csv(file, separator="\t", quote_char=None, infer_schema=False)
    if frame.columns != _QRELS_COLUMNS:
        raise DataError(
            f"{file} has the header {frame.columns}, expected {_QRELS_COLUMNS}, a tab between two."
        )
    scores = frame["score"].str.strip_chars().cast(pl.Int64, strict=False)
    wrong = scores.is_null().arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{file} row {row + 1}: score '{frame['score'][row]}' is not a whole number; "
            "correct it."
        )
    rows = zip(frame["query-id"], frame["corpus-id"], scores, strict=True)
    for number, (query_id, document, score) in enumerate(rows, start=1):
        yield f"{file} row {number}", query_id or "", document or "", score
