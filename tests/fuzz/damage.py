"""Ways to spoil what a user hands over: bytes, tables, and the trees of YAML files."""

import csv
import io
import json
from itertools import pairwise

import polars as pl
import yaml
from hypothesis import strategies as st

HUGE = 10**30
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, HUGE]),
    st.sampled_from([0.0, -0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(["", " ", "\x00", "nan", "1e999", "null", "a|b", "é\u202e", "x" * 5_000]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
WORDS = st.one_of(
    st.sampled_from(["", "item_id", "title", "item_index", "split", "a,b", "x" * 2_000, "\n"]),
    st.text(max_size=6),
)


@st.composite
def damaged_bytes(draw, data):
    """Return bytes with one or two faults; None stands for a file that is missing."""
    if draw(st.integers(0, 9)) == 0:
        whole = [b"", b"\n", b"PK\x03\x04", b"PAR1", b"\x00" * 100, None]
        return draw(st.one_of(st.sampled_from(whole), st.binary(max_size=30)))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 1, 4, 40, 4_000]))
        junk = draw(st.one_of(st.binary(max_size=6), st.sampled_from(JUNK)))
        code = draw(st.sampled_from(["utf-16", "utf-8-sig", "cp037", "crlf"]))
        head, byte, tail = data[:place], data[place : place + 1], data[place + 1 :]
        flipped = bytes(one ^ (1 << (length % 8)) for one in byte)
        faults = {
            "flip": head + flipped + tail,
            "cut": head,
            "delete": head + data[place + length :],
            "insert": head + junk + data[place:],
            "again": data + data[place:],
            "code": recoded(data, code),
        }
        data = faults[draw(st.sampled_from(sorted(faults)))]
    return data


JUNK = [b"\x00", b"\xff\xfe", b'"', b"\r", b"\n\n", b",", b"::", b"{", b"NaN", b"9" * 400, b"\xed"]


def recoded(data, code):
    text = data.decode("utf-8", errors="replace")
    if code == "crlf":
        return text.replace("\n", "\r\n").encode()
    return text.encode(code, errors="replace")


@st.composite
def damaged_table(draw, rows):
    """Return rows (dicts that share their keys) with one or two faults."""
    rows = [dict(row) for row in rows]
    for _ in range(draw(st.integers(1, 2))):
        names = list(rows[0]) if rows else []
        if not names:
            break
        name = draw(st.sampled_from(names))
        row = draw(st.sampled_from(rows))
        kind = draw(st.sampled_from(["cell", "cell", "column", "drop", "name", "row", "none"]))
        if kind == "cell":
            row[name] = draw(VALUES)
        elif kind == "column":
            value = draw(VALUES)
            rows = [{**one, name: value} for one in rows]
        elif kind == "drop":
            rows = [{key: value for key, value in one.items() if key != name} for one in rows]
        elif kind == "name":
            new = draw(WORDS)
            rows = [{new if key == name else key: v for key, v in one.items()} for one in rows]
        elif kind == "row":
            rows.append(dict(row))
        else:
            rows = []
    return rows


def as_table(rows, ending):
    """Return rows as the bytes of a file with that ending."""
    names = list(rows[0]) if rows else []
    if ending == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == "parquet":
        return as_parquet({name: [row.get(name) for row in rows] for name in names})
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if ending == "tsv" else ",", lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name) for name in names)
        writer.writerow("|".join(map(str, c)) if isinstance(c, list) else c for c in cells)
    return text.getvalue().encode(errors="replace")


def as_parquet(columns):
    """Return columns as Parquet; those that polars cannot write become text."""
    kept = {name: as_series(name, values) for name, values in columns.items()}
    buffer = io.BytesIO()
    pl.DataFrame(list(kept.values())).write_parquet(buffer)
    return buffer.getvalue()


def as_series(name, values):
    try:
        series = pl.Series(name, values)
        pl.DataFrame([series]).write_parquet(io.BytesIO())
    except Exception:  # whatever polars says, text always goes
        texts = [None if value is None else ascii(value) for value in values]
        return pl.Series(name, texts, dtype=pl.String)
    return series


@st.composite
def damaged_yaml(draw, tree):
    """Return the bytes of a YAML file whose tree or text has one or two faults."""
    tree = yaml.safe_load(yaml.safe_dump(tree))
    for _ in range(draw(st.integers(0, 2))):
        tree = draw(damaged_tree(tree))
    data = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode(errors="replace")
    kind = draw(st.sampled_from(["none", "none", "bytes", "tag", "anchor"]))
    if kind == "bytes":
        return draw(damaged_bytes(data)) or b""
    if kind == "none":
        return data
    lines = [line for line in data.decode(errors="replace").split("\n") if line]
    place = draw(st.integers(0, max(0, len(lines) - 1)))
    said = draw(st.sampled_from(TAGS if kind == "tag" else ANCHORS))
    key = lines[place].split(":")[0] if lines else "a"
    return "\n".join([*lines[:place], f"{key}: {said}", *lines[place + 1 :]]).encode()


TAGS = [
    "!!python/object/apply:os.system ['touch canary']",
    "!!python/object/new:subprocess.Popen [['touch', 'canary']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!custom {a: 1}",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!float nan",
    "!!timestamp 2001-12-14",
    "2001-12-14",
    "!!int '0x7f'",
    "&a !!str 3",
]
_TEN = ", ".join(["*{}"] * 10)
ANCHORS = [
    "&a 1",
    "*nobody",
    "&a {b: 1, c: *a}",
    "&a [*a]",
    "{<<: {a: 1}, b: 2}",
    "{<<: 3}",
    "{a: &a {x: 1}, b: *a}",
    "[&a [x, x], "
    + ", ".join(f"&{name} [{_TEN.format(*[last] * 10)}]" for last, name in pairwise("abcdefghi"))
    + "]",
]


@st.composite
def damaged_tree(draw, tree):
    """Return a tree of dictionaries with one fault."""
    places = [place for place in places_of(tree) if place]
    if not places:
        return tree
    *way, key = draw(st.sampled_from(places))
    inner = tree
    for step in way:
        inner = inner[step]
    kind = draw(st.sampled_from(["value", "value", "key", "drop", "list", "under", "move", "more"]))
    if kind in ("value", "list", "under"):
        above = draw(st.sampled_from(["class_path", "init_args", "a"]))
        inner[key] = {"value": draw(VALUES), "list": [inner[key]], "under": {above: inner[key]}}[
            kind
        ]
    elif kind == "move":
        tree[str(draw(st.sampled_from(places))[-1])] = inner.pop(key)
    elif kind == "drop" or not isinstance(inner, dict):
        del inner[key]
    else:
        name = draw(misspelt(str(key)) if kind == "key" else WORDS)
        inner[name] = inner.pop(key) if kind == "key" else draw(VALUES)
    return tree


@st.composite
def misspelt(draw, word):
    place = draw(st.integers(0, max(0, len(word) - 1)))
    kind = draw(st.sampled_from(["drop", "twice", "case", "other"]))
    if kind == "drop":
        return word[:place] + word[place + 1 :]
    if kind == "twice":
        return word[:place] + word[place : place + 1] + word[place:]
    if kind == "case":
        return word.swapcase()
    return word[:place] + draw(st.sampled_from("-. é0_")) + word[place + 1 :]


def places_of(tree, here=()):
    """Yield the way to every node: keys of dictionaries, places in lists."""
    yield here
    inside = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        inside = enumerate(tree)
    for key, value in inside:
        yield from places_of(value, (*here, key))
