"""Times in any usual format, as exact nanoseconds."""

from typing import Literal, NamedTuple

import polars as pl

from sidrec.errors import DataError

Timestamps = Literal["auto", "s", "ms", "us", "ns", "position"]

_UNITS = ("s", "ms", "us", "ns")
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_FIRST, _LAST = 1e8, 1e11  # seconds of 1973 and of 5138: between them the size gives the unit
_ISO = (
    r"^\s*(?<date>\d{4}-\d{2}-\d{2}|\d{4}/\d{2}/\d{2})"
    r"(?:[Tt ]\s*(?<minute>\d{2}:\d{2})(?::(?<second>\d{2})(?:[.,](?<fraction>\d+))?)?"
    r"\s*(?:(?<zone>[Zz]|UTC)|(?<sign>[+-])(?<hours>\d{2})(?::?(?<minutes>\d{2}))?)?)?\s*$"
)


class Times(NamedTuple):
    """Times of a column, and their format.

    Attributes:
        nanoseconds: Int128 since 1970 in UTC; null where the value is not a time.
        written: What the column holds, for the summary.
    """

    nanoseconds: pl.Expr
    written: str


def read_times(frame: pl.LazyFrame, column: str, unit: str, name: str) -> Times:
    """Recognize the format of times from all values of the column.

    Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970 by their size:
    below 1e11, 1e14 and 1e17. Text is a number, a date, or a date and time of ISO 8601; without
    a zone it is UTC.

    Args:
        frame: Frame with the column; read once.
        column: Numbers, text, dates or moments.
        unit: ``s``, ``ms``, ``us`` or ``ns`` sets the unit of numbers; ``auto`` recognizes it.
        name: Name of the table, for messages.

    Raises:
        DataError: If the column holds no times, or numbers of several units.
    """
    kind = frame.collect_schema()[column]
    value = pl.col(column)
    if isinstance(kind, pl.Datetime):
        scale = {"ms": 10**6, "us": 10**3, "ns": 1}[kind.time_unit]
        zone = f", {kind.time_zone}" if kind.time_zone else ""
        written = f"moments in {_NAMES[kind.time_unit]}{zone}"
        return Times(value.to_physical().cast(pl.Int128) * scale, written)
    if kind == pl.Date:
        return Times(value.to_physical().cast(pl.Int128) * (86_400 * 10**9), "dates")
    if kind.is_nested() or kind.is_temporal() or kind in (pl.Boolean, pl.Binary):
        raise DataError(f"{name}: column '{column}' holds {kind}, expected times; write it anew.")
    number = value.str.to_decimal(scale=9) if kind == pl.String else value
    found, some_text = _unit(frame, column, number, name) if unit == "auto" else (unit, True)
    scale = _NANOSECONDS.get(found, 1)
    if kind == pl.String:
        exact = number.to_physical().cast(pl.Int128) * scale // 10**9
        exact = exact.fill_null(_iso(value)) if some_text else exact
    elif kind.is_float():
        size = (value.cast(pl.Float64) * (scale / 1000)).round()
        exact = size.cast(pl.Int64, strict=False).cast(pl.Int128) * 1000
    else:
        exact = value.cast(pl.Int128) * scale
    numbers = f"numbers, read as {_NAMES[found]}" if found != "none" else ""
    texts = "dates and times of ISO 8601" if kind == pl.String and some_text else ""
    return Times(exact, " and ".join(part for part in (numbers, texts) if part) or "numbers")


def _unit(frame: pl.LazyFrame, column: str, number: pl.Expr, name: str) -> tuple[str, bool]:
    size = number.cast(pl.Float64, strict=False).abs()
    size = pl.when(size.is_finite()).then(size)
    row = pl.int_range(1, pl.len() + 1)
    bands = {
        unit: size.is_between(
            _FIRST * 1000**place, _LAST * 1000**place if unit != "ns" else 1e300, closed="left"
        )
        for place, unit in enumerate(_UNITS)
    }
    facts = (
        frame.select(
            *(row.filter(inside).first().alias(unit) for unit, inside in bands.items()),
            numbers=size.is_not_null().sum(),
            texts=(size.is_null() & pl.col(column).is_not_null()).sum(),
        )
        .collect()
        .row(0, named=True)
    )
    units = [unit for unit in _UNITS if facts[unit] is not None]
    if len(units) > 1:
        first, second = sorted(units, key=lambda unit: int(facts[unit]))[:2]
        raise DataError(
            f"{name}: column '{column}' mixes units: row {facts[first]} looks like "
            f"{_NAMES[first]}, row {facts[second]} like {_NAMES[second]}; write one unit, or set "
            "it with --timestamps."
        )
    return (units or ["s" if facts["numbers"] else "none"])[0], facts["texts"] > 0


def _iso(value: pl.Expr) -> pl.Expr:
    parts = value.str.extract_groups(_ISO).struct
    moment = pl.concat_str(
        parts.field("date").str.replace_all("/", "-"),
        pl.lit(" "),
        parts.field("minute").fill_null("00:00"),
        pl.lit(":"),
        parts.field("second").fill_null("00"),
    ).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False, exact=True)
    fraction = parts.field("fraction").fill_null("0").str.slice(0, 9).str.pad_end(9, "0")
    hours, minutes = (
        parts.field(part).fill_null("0").cast(pl.Int128, strict=False)
        for part in ("hours", "minutes")
    )
    direction = pl.when(parts.field("sign") == "-").then(-1).otherwise(1)
    offset = (hours * 60 + minutes) * (60 * 10**9) * direction
    whole = moment.to_physical().cast(pl.Int128) * 1000
    return whole + fraction.cast(pl.Int128, strict=False) - offset
