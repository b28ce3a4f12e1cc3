"""RecBole atomic files: tables whose headers state the type of every field."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl

from sidrec.console import say
from sidrec.corpus.prepare_settings import RecBoleFields, TimeUnit
from sidrec.corpus.reading.records import readable, sentences
from sidrec.corpus.reading.table_scan import reading, require_columns
from sidrec.corpus.sources.raw_catalogue import SCHEMA, RawCatalogue, k_core, timestamps
from sidrec.errors import DataError

POSITION = "position"  # in place of a time field: the order of the rows

_KINDS: dict[str, pl.DataType | type[pl.DataType]] = {
    "token": pl.String,
    "token_seq": pl.List(pl.String),
    "float": pl.Float64,
    "float_seq": pl.List(pl.Float64),
}
_LICENSE = (
    "A data set in RecBole's format; its terms are those of its original publisher (see "
    "https://recbole.io/dataset_list.html)."
)
_FIXED = ("item_id", "title", "text")


def read_recbole(
    folder: Path,
    *,
    fields: RecBoleFields,
    text_fields: Sequence[str] | None,
    time_unit: TimeUnit,
    core: int,
) -> RawCatalogue:
    """Read a RecBole folder with one ``.inter`` file and, optionally, an ``.item`` file.

    Without ``.item`` the items are those of the interactions, and their ids are their texts. A
    ``.user`` file is not read and is reported as unused.

    Args:
        folder: Folder with ``NAME.inter`` and, optionally, ``NAME.item`` and ``NAME.user``.
        fields: Names of the fields to read.
        text_fields: Fields of ``.item`` that follow the title in an item's text; None takes all
            fields of type token and token_seq.
        time_unit: Unit of the time field.
        core: Interactions that each user and each item has at least, filtered repeatedly; 0
            keeps all.

    Returns:
        Items in the order of ``.item`` with every field as an attribute: token as text, token_seq
        as list of texts, float as number, float_seq as list of numbers.

    Raises:
        DataError: If a file is missing, a header has no types, a field is missing, or a number
            cannot be read.
    """
    inter = _only_inter(folder)
    item_file = inter.with_suffix(".item")
    interactions = _interactions(inter, fields, time_unit)
    kept = k_core(interactions, core) if core else interactions
    if item_file.exists():
        items = _items(item_file, fields, text_fields)
    else:
        say(f"{item_file} does not exist; item ids are the titles and texts")
        ids = kept["item_id"].unique(maintain_order=True)
        items = pl.DataFrame(dict.fromkeys(_FIXED, ids))
    num_items = items.height
    if core:
        items = items.join(kept.select("item_id"), on="item_id", how="semi", maintain_order="left")
    say(
        f"recbole: {interactions.height:,} interactions, {num_items:,} items; left out "
        f"{interactions.height - kept.height:,} and {num_items - items.height:,} outside the "
        f"{core}-core"
    )
    if (users := inter.with_suffix(".user")).exists():
        say(f"{users} is not used: a corpus keeps no attributes of users")
    name = str(item_file if item_file.exists() else inter)
    return RawCatalogue(
        items, kept.lazy(), name, str(inter), source=f"recbole {inter.stem}", license=_LICENSE
    )


def _only_inter(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds NAME.inter.")
    found = sorted(folder.glob("*.inter"))
    if len(found) != 1:
        raise DataError(
            f"{folder} holds {len(found)} files ending in .inter, expected one; give the folder of "
            "one data set."
        )
    return found[0]


def _interactions(file: Path, fields: RecBoleFields, time_unit: TimeUnit) -> pl.DataFrame:
    frame = _read(file)
    by_position = fields.time == POSITION
    needed = (fields.user, fields.item) if by_position else (fields.user, fields.item, fields.time)
    missing = next((name for name in needed if name not in frame.columns), None)
    if missing:
        option = next(key for key, name in asdict(fields).items() if name == missing)
        also = f" or {POSITION}, which takes the order of the rows" if option == "time" else ""
        raise DataError(
            f"{file} has no field '{missing}'; it has {', '.join(frame.columns)}: name one with "
            f"--fields.{option}{also}."
        )
    time = pl.int_range(pl.len()) if by_position else pl.col(fields.time).cast(pl.Float64)
    has_rating = fields.rating in frame.columns
    rating = pl.col(fields.rating).cast(pl.Float32) if has_rating else pl.lit(None, pl.Float32)
    with reading(str(file)):
        return frame.select(
            pl.col(fields.user).cast(pl.String).alias("user_id"),
            pl.col(fields.item).cast(pl.String).alias("item_id"),
            timestamps(time, time_unit),
            rating.alias("rating"),
        ).select(*SCHEMA)


def _items(file: Path, fields: RecBoleFields, text_fields: Sequence[str] | None) -> pl.DataFrame:
    frame = _read(file)
    require_columns(str(file), frame.columns, (fields.item, *(text_fields or ())))
    title = fields.title or next(
        (name for name in frame.columns if "title" in name or "name" in name), None
    )
    if title is None:
        say(f"{file} has no field with title or name in its name; item ids are the titles")
        title = fields.item
    require_columns(str(file), frame.columns, (title,))
    if text_fields is None:
        texts = (pl.String, pl.List(pl.String))
        text_fields = [name for name in frame.columns if frame.schema[name] in texts]
        text_fields = [name for name in text_fields if name not in (fields.item, title)]
    labels = [f"{name.replace('_', ' ').capitalize()}: " for name in text_fields]
    rows = list(frame.select(fields.item, title, *text_fields).iter_rows())
    titles = [readable(row[1]) for row in rows]
    texts_of_items = []
    for item_title, row in zip(titles, rows, strict=True):
        words = [readable(value) for value in row[2:]]
        named = (f"{label}{text}" for label, text in zip(labels, words, strict=True) if text)
        texts_of_items.append(sentences([item_title, *named]))
    attributes = frame.drop(fields.item, title, strict=False)
    clashing = [name for name in attributes.columns if name in (*_FIXED, "item_index")]
    return pl.DataFrame(
        {
            "item_id": frame[fields.item].cast(pl.String),
            "title": pl.Series(titles, dtype=pl.String),
            "text": pl.Series(texts_of_items, dtype=pl.String),
            **attributes.rename({name: f"{name}_field" for name in clashing}).to_dict(),
        }
    )


def _read(file: Path) -> pl.DataFrame:
    """Return a file with its fields typed as the header says."""
    with reading(str(file)), file.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), [])
    kinds: dict[str, str] = {}
    for field in header:
        name, _, kind = field.strip().partition(":")
        if kind not in _KINDS or name in kinds:
            fault = "appears twice" if name in kinds else f"has no type of {', '.join(_KINDS)}"
            raise DataError(
                f"{file}: header '{field}' {fault}; write NAME:TYPE, a tab between two."
            )
        kinds[name] = kind
    with reading(str(file)):
        frame = pl.read_csv(
            file,
            separator="\t",
            quote_char=None,
            infer_schema=False,
            new_columns=list(kinds),
        )
    typed = frame.select(_typed(name, kind) for name, kind in kinds.items())
    for name, kind in kinds.items():
        if kind.startswith("float"):
            _refuse_no_number(file, frame[name], typed[name])
    return typed


def _typed(name: str, kind: str) -> pl.Expr:
    column = pl.col(name)
    if kind.endswith("_seq"):
        column = column.str.strip_chars().str.split(" ")
        column = column.list.eval(pl.element().filter(pl.element() != ""))
    return column.cast(_KINDS[kind], strict=False).alias(name)


def _refuse_no_number(file: Path, written: pl.Series, read: pl.Series) -> None:
    lost = read.list.eval(pl.element().is_null()).list.any() if read.dtype.is_nested() else None
    wrong = (read.is_null() if lost is None else lost) & written.is_not_null()
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise DataError(
            f"{file} row {row + 1}: '{written[row]}' in field '{written.name}' is not a number; "
            "correct it, or change the type in the header."
        )
