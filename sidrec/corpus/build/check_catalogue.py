"""Raw catalogue checks; errors name file and row."""

import polars as pl

from sidrec.corpus.reading.table_scan import reading
from sidrec.corpus.sources.raw_catalogue import RawCatalogue
from sidrec.errors import DataError


def check_items(raw: RawCatalogue) -> None:
    """Check ids, duplicates and texts of the items.

    Raises:
        DataError: If there is no item, an id is missing or duplicate, or a text is empty.
    """
    items, name = raw.items.select("item_id", "text"), raw.items_name
    items = items.with_row_index("row", offset=1)
    if items.is_empty():
        raise DataError(f"{name} has no items; a corpus needs at least one.")
    for column in ("item_id", "text"):
        value = pl.col(column)
        empty = items.filter(value.is_null() | (value.str.strip_chars() == ""))
        if not empty.is_empty():
            raise DataError(
                f"{raw.item_row(empty['row'][0])}: column '{column}' is empty "
                f"({empty.height} such rows); fill it in or take the row out."
            )
    doubled = items.filter(pl.col("item_id").is_first_distinct().not_())
    if not doubled.is_empty():
        item_id = doubled["item_id"][0]
        first = items.filter(pl.col("item_id") == item_id)["row"][0]
        raise DataError(
            f"{raw.item_row(doubled['row'][0])}: item_id '{item_id}' was already used in row "
            f"{first} ({doubled.height} such rows); give every item its own id."
        )


def check_interactions(raw: RawCatalogue, *, refuse_unknown: bool) -> int:
    """Check every interaction in one streaming pass.

    Args:
        raw: Catalogue whose items count as known.
        refuse_unknown: Whether an interaction with an item outside ``raw.items`` is an error.

    Returns:
        Number of interactions with unknown items.

    Raises:
        DataError: If an id is missing, a timestamp is not a number, a rating is not finite, an item
            is unknown (and refused), or a file that was given has no interaction.
    """
    faults = {
        "user_id": (pl.col("user_id").fill_null("") == "", "is empty"),
        "item_id": (pl.col("item_id").fill_null("") == "", "is empty"),
        "timestamp": (
            pl.col("timestamp").is_null(),
            "is empty or no number, date, or date and time of ISO 8601",
        ),
        "rating": (
            pl.col("rating").is_finite().not_().fill_null(False),
            "is NaN, infinite or no number",
        ),
        "unknown": (pl.col("known").is_null(), ""),
    }
    with reading(raw.interactions_name):
        columns = raw.interactions.collect_schema()
    if "weight" in columns:
        right = pl.col("weight").is_finite() & (pl.col("weight") > 0)
        faults["weight"] = (right.fill_null(value=False).not_(), "is no number above 0")
    ids = pl.concat([raw.items["item_id"], pl.Series(raw.left_out, dtype=pl.String)])
    known = ids.alias("item_id").to_frame().lazy().with_columns(known=pl.lit(1, pl.Int8))
    rows = raw.interactions.with_row_index("row", offset=1)
    with reading(raw.interactions_name):
        found = (
            rows.join(known, on="item_id", how="left")
            .select(
                pl.len().alias("total"),
                *(fault.sum().alias(f"{name} count") for name, (fault, _) in faults.items()),
                *(
                    pl.col("row").filter(fault).min().alias(f"{name} row")
                    for name, (fault, _) in faults.items()
                ),
            )
            .collect(engine="streaming")
            .row(0, named=True)
        )
    if found["total"] == 0 and not raw.interactions_name:
        return 0  # a corpus for search alone
    if found["total"] == 0:
        raise DataError(f"{raw.interactions_name} has no interactions; check the file.")
    for column, (_, complaint) in faults.items():
        if complaint and found[f"{column} count"]:
            raise DataError(
                f"{raw.interaction_row(found[f'{column} row'])}: column '{column}' "
                f"{complaint} ({found[f'{column} count']} such rows); correct or take them out."
            )
    num_unknown = int(found["unknown count"])
    if refuse_unknown and num_unknown:
        row = found["unknown row"]
        item_id = rows.filter(pl.col("row") == row).collect()["item_id"][0]
        raise DataError(
            f"{raw.interaction_row(row)}: item_id '{item_id}' is not in {raw.items_name} "
            f"({num_unknown} such rows); add the items, or use --unknown_items drop."
        )
    return num_unknown
