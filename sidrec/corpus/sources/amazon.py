"""Amazon reviews and metadata of the 2014, 2018 and 2023 collections."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import polars as pl

from sidrec.console import say
from sidrec.corpus.prepare_settings import Generation, MissingTitles, TextField, TimeUnit
from sidrec.corpus.reading.records import Record, read_records, readable, required, sentences
from sidrec.corpus.sources.amazon_files import AmazonFiles
from sidrec.corpus.sources.raw_catalogue import SCHEMA, RawCatalogue, k_core, timestamps
from sidrec.errors import DataError

_LICENSE = (
    "Amazon review data of the McAuley Lab, UC San Diego. The publisher states no license; reviews "
    "and product texts belong to Amazon and their authors. Research use; cite {}."
)
_CITATIONS = {
    2014: "McAuley et al. 2015, https://arxiv.org/abs/1506.04757",
    2018: "Ni et al. 2019, https://aclanthology.org/D19-1018",
    2023: "Hou et al. 2024, https://arxiv.org/abs/2403.03952",
}
_REVIEWS_AT_ONCE = 200_000
_TITLE_CHARACTERS = 80  # of a title made from other fields
_ID_IN_META = re.compile(rb"""["'](?:parent_)?asin["']: ?["']([^"']+)["']""")
_PRICE = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")


class _ReviewKeys(NamedTuple):
    user: str
    item: str
    rating: str
    time: str
    unit: TimeUnit


_OLD = _ReviewKeys("reviewerID", "asin", "overall", "unixReviewTime", "s")
_KEYS = {
    2014: _OLD,
    2018: _OLD,
    2023: _ReviewKeys("user_id", "parent_asin", "rating", "timestamp", "ms"),
}


def read_amazon(
    files: AmazonFiles,
    *,
    generation: Generation,
    text_fields: Sequence[TextField],
    missing_titles: MissingTitles,
    core: int,
) -> RawCatalogue:
    """Read one Amazon category; only products with metadata and enough reviews remain.

    All reviews are in memory at once, about 60 bytes each; their texts are not.

    Args:
        files: Reviews and metadata.
        generation: Collection, which determines the keys of the files.
        text_fields: Fields of an item's text, in this order; fields that an item lacks are
            left out.
        missing_titles: Treatment of products without a title. ``fill``: make one from the product's
            other fields, or else from its id. ``keep``: leave it empty. ``drop``: leave the product
            and its reviews out.
        core: Reviews that each user and each item has at least; filtered repeatedly until this is
            true. 0 keeps all reviewed products.

    Returns:
        Items in the order of the metadata, with attributes brand, categories and price (in
        dollars, the lower end of a range; null where there is no number).

    Raises:
        DataError: If a file is damaged, a row lacks a key or is not a record, or nothing remains.
    """
    keys = _KEYS[generation]
    reviews = _read_reviews(files, keys, generation)
    items, counts = _read_items(
        files, keys, set(reviews["item_id"].unique()), text_fields, missing_titles, generation
    )
    known = reviews.join(items.select("item_id"), on="item_id", how="semi", maintain_order="left")
    kept = k_core(known, core)
    items = items.join(kept.select("item_id"), on="item_id", how="semi", maintain_order="left")
    say(
        f"amazon: {reviews.height:,} reviews; left out {reviews.height - known.height:,} of "
        f"products without metadata or title, {known.height - kept.height:,} outside the "
        f"{core}-core; {kept.height:,} remain, of {items.height:,} products"
    )
    say(
        f"amazon: {counts['described twice']:,} products described more than once (first row "
        f"used), {counts['without title']:,} without title ({missing_titles}), "
        f"{counts['without text']:,} without any text left out"
    )
    if items.is_empty():
        raise DataError(
            f"{files.reviews}: no review is in the {core}-core of products described in "
            f"{files.meta}; lower --core, or check that both files are of one category."
        )
    return RawCatalogue(
        items,
        kept.lazy(),
        str(files.meta),
        str(files.reviews),
        source=f"amazon {generation} {files.name}",
        license=_LICENSE.format(_CITATIONS[generation]),
    )


def _hint(generation: Generation) -> str:
    return f"is the file of generation {generation}? Name its own with --generation."


def _read_reviews(files: AmazonFiles, keys: _ReviewKeys, generation: Generation) -> pl.DataFrame:
    rows = _review_rows(files, keys, generation)
    schema = {"user_id": pl.String, "item_id": pl.String, "time": pl.Float64, "rating": pl.Float32}
    parts = [pl.DataFrame(schema=schema)]
    while part := list(islice(rows, _REVIEWS_AT_ONCE)):
        parts.append(pl.DataFrame(part, schema=schema, orient="row"))
    reviews = pl.concat(parts).with_columns(timestamps(pl.col("time"), keys.unit))
    return reviews.select(*SCHEMA)


def _review_rows(
    files: AmazonFiles, keys: _ReviewKeys, generation: Generation
) -> Iterator[tuple[str, str, float, float]]:
    hint = _hint(generation)
    for place, record in read_records(files.reviews, python_literals=generation == 2014):
        user, item = (required(record, key, place, hint=hint) for key in (keys.user, keys.item))
        numbers = []
        for key in (keys.time, keys.rating):
            text = required(record, key, place, hint=hint)
            try:
                numbers.append(float(text))
            except ValueError:
                raise DataError(
                    f"{place}: expected a number as '{key}', found {text!r}; {hint}"
                ) from None
        yield user, item, numbers[0], numbers[1]


def _read_items(
    files: AmazonFiles,
    keys: _ReviewKeys,
    reviewed: set[str],
    text_fields: Sequence[TextField],
    missing_titles: MissingTitles,
    generation: Generation,
) -> tuple[pl.DataFrame, Counter[str]]:
    """Return the reviewed products, and counts of what was left out or filled in."""

    def is_reviewed(line: bytes) -> bool:  # parsing a literal costs 50 times as much
        found = _ID_IN_META.search(line)
        return found is None or found[1].decode(errors="replace") in reviewed

    counts: Counter[str] = Counter()
    rows: dict[str, Record] = {}
    old = generation == 2014
    for place, record in read_records(
        files.meta, python_literals=old, wanted=is_reviewed if old else None
    ):
        item_id = required(record, keys.item, place, hint=_hint(generation))
        if item_id in rows:
            counts["described twice"] += 1
        elif item_id in reviewed:
            rows[item_id] = _item(item_id, record, text_fields, missing_titles)
    counts["without title"] = sum(row["untitled"] for row in rows.values())
    kept = [row for row in rows.values() if missing_titles != "drop" or not row["untitled"]]
    texts = [row for row in kept if row["text"]]
    counts["without text"] = len(kept) - len(texts)
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        **dict.fromkeys(("item_id", "title", "text", "brand"), pl.String),
        "categories": pl.List(pl.String),
        "price": pl.Float64,
    }
    return pl.DataFrame([{key: row[key] for key in schema} for row in texts], schema), counts


def _item(
    item_id: str, record: Record, text_fields: Sequence[TextField], missing_titles: MissingTitles
) -> Record:
    """Return one product with readable texts; keys differ between the generations."""
    details = record.get("details")
    own_brand = details.get("Brand") if isinstance(details, dict) else None
    price = _PRICE.match(readable(record.get("price")))
    categories = record.get("categories") or record.get("category") or []
    fields = {
        "title": readable(record.get("title")),
        "brand": readable(record.get("brand") or own_brand or record.get("store")),
        "categories": readable(categories, between=" > "),
        "price": f"${price[1]}" if price else "",
        "features": readable(record.get("features") or record.get("feature")),
        "description": readable(record.get("description")),
        "details": readable(details),
    }
    title = fields["title"]
    if not title and missing_titles == "fill":
        fields["title"] = _made_title(item_id, fields)
    named = {"brand": "Brand: ", "categories": "Categories: ", "price": "Price: "}
    parts = [(named.get(name, ""), fields[name]) for name in text_fields]
    return {
        "item_id": item_id,
        "title": fields["title"],
        "text": sentences(f"{label}{text}" for label, text in parts if text),
        "untitled": not title,
        "brand": fields["brand"] or None,
        "categories": list(dict.fromkeys(_leaves(categories))),
        "price": float(price[1].replace(",", "")) if price else None,
    }


def _made_title(item_id: str, fields: dict[str, str]) -> str:
    category = fields["categories"].rsplit("; ")[-1].rsplit(" > ")[-1]
    made = " ".join(part for part in (fields["brand"], category) if part)
    made = made or fields["features"] or fields["description"] or item_id
    return made if len(made) <= _TITLE_CHARACTERS else made[:_TITLE_CHARACTERS].rsplit(" ", 1)[0]


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif text := readable(value):
        yield text
