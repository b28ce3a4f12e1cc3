"""Input whose right reading is known: it comes out letter by letter, or is refused."""

import csv
import io
import time
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
from hypothesis import strategies as st

from sidrec.corpus.reading.item_text import clean_text
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from sidrec.generator.retrieval.parse_request import texts_in, understand
from sidrec.generator.retrieval.retriever import RetrievedItem, Retriever
from tests.corpus.sources.test_clean_text import MARKUP, UNITS, WORDS
from tests.fuzz.damage import VALUES, as_table, misspelt
from tests.fuzz.tally import each, fresh, write
from tests.generator.echo import Echo

ENDINGS = st.sampled_from(["csv", "tsv", "jsonl", "parquet"])
START = datetime(1973, 6, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def made_items(num_items):
    return [{"item_id": f"i{row}", "title": f"Title {row}"} for row in range(num_items)]


def made_events(item_ids, times=None):
    times = times or range(1, len(item_ids) + 1)
    rows = zip(item_ids, times, strict=True)
    return [{"user_id": "u", "item_id": item, "timestamp": moment} for item, moment in rows]


def prepared(tally, folder, what, files, reason):
    """Prepare items and interactions; ``reason(corpus)`` is "" if they were read right.

    ``reason`` may be a text: then the files have to be refused.
    """
    write(files, fresh(folder))
    out = folder / "corpus"
    words = [word for name in files for word in (f"--{name.split('.')[0]}", folder / name)]

    def wrong(code):
        if isinstance(reason, str):
            return "" if code else reason
        return f"refused, exit code {code}" if code else reason(Corpus.load(out))

    tally.judge(folder, what, "prepare", "table", *words, "--out", out, wrong=wrong)


@st.composite
def written_times(draw):
    """Return distinct moments in microseconds, and a column that writes them."""
    number = st.integers(10**14, 4 * 10**15)
    moments = draw(st.lists(number, min_size=3, max_size=8, unique_by=lambda one: one // 1000))
    kind = draw(st.sampled_from(["s", "ms", "us", "ns", "iso", "float", "moments"]))
    if kind == "ms":
        moments = [one // 1000 * 1000 for one in moments]
    stamps = [EPOCH + timedelta(microseconds=one) for one in moments]
    if kind == "iso":
        zones = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
        writing = st.sampled_from(
            [
                lambda one: one.astimezone(draw(zones)).isoformat(),
                lambda one: one.isoformat().replace("+00:00", "Z"),
                lambda one: one.replace(tzinfo=None).isoformat(" ", "microseconds"),
                lambda one: one.replace(tzinfo=None).isoformat().replace("-", "/", 2),
            ]
        )
        return kind, moments, [draw(writing)(one) for one in stamps]
    columns = {
        "s": [f"{one // 10**6}.{one % 10**6:06d}" for one in moments],
        "ms": [one // 1000 for one in moments],
        "us": moments,
        "ns": [one * 1000 for one in moments],
        "float": [one / 10**6 for one in moments],
        "moments": stamps,
    }
    return kind, moments, columns[kind]


def times(tiny, folder, tally, num_cases):
    """Moments of any precision and writing order the events; what is no time is refused."""

    @st.composite
    def inputs(draw):
        kind, moments, column = draw(written_times())
        spoil = draw(st.sampled_from([None] * 3 + ["soon", "2020-13-45", "12:99", "", "--"]))
        if spoil is not None and kind not in ("float", "moments"):
            column = [*column[:-1], spoil]
        else:
            spoil = None
        if kind == "moments":
            unit, zone = draw(st.sampled_from(["us", "ns"])), draw(st.sampled_from(["UTC", None]))
            column = pl.Series(column).dt.cast_time_unit(unit).dt.replace_time_zone(zone)
            if zone:
                column = column.dt.convert_time_zone(draw(st.sampled_from(["UTC", "Asia/Tokyo"])))
        return moments, list(column), spoil, "parquet" if kind == "moments" else draw(ENDINGS)

    def one(case):
        moments, column, spoil, ending = case
        names = [f"i{row}" for row in range(len(moments))]
        right = [names[row] for row in sorted(range(len(moments)), key=moments.__getitem__)]
        if spoil is not None and ending == "parquet":
            column = list(map(str, column))

        def reason(corpus):
            ids = corpus.item_ids()
            found = [ids[row] for row in corpus.interactions["item_index"]]
            return "" if found == right else f"order {found}, expected {right}"

        files = {
            "items.parquet": as_table(made_items(len(names)), "parquet"),
            f"interactions.{ending}": as_table(made_events(names, column), ending),
        }
        refused = "a value that is no time was read"
        prepared(tally, folder, case, files, reason if spoil is None else refused)

    each(inputs(), num_cases, one)


def quoting(tiny, folder, tally, num_cases):
    """Titles with quotation marks, separators and line breaks stay as they are."""
    titles = st.lists(
        st.text(st.sampled_from('""\',;|\t\n\rab 7é<&\\'), max_size=12).map("T".__add__),
        min_size=3,
        max_size=6,
    )

    @st.composite
    def inputs(draw):
        given, ending = draw(titles), draw(st.sampled_from(["csv", "tsv"]))
        rows = [(f"i{row}", title) for row, title in enumerate(given)]
        if ending == "tsv":
            rows = [(item, " ".join(title.split())) for item, title in rows]
            text = "".join(f"{item}\t{title}\n" for item, title in [("item_id", "title"), *rows])
            return rows, ending, text, False
        stream, end = io.StringIO(), draw(st.sampled_from(["\n", "\r\n"]))
        needed = any("\r" in title for title in given)  # for csv, only where "\r" ends a line
        how = csv.QUOTE_ALL if needed or draw(st.booleans()) else csv.QUOTE_MINIMAL
        csv.writer(stream, quoting=how, lineterminator=end).writerows([("item_id", "title"), *rows])
        broken = draw(st.sampled_from(["", "", 'x,T "a', 'x,"T" a', 'x,"T', "x", "x,T,y"]))
        return rows, ending, stream.getvalue() + (broken and broken + end), bool(broken)

    def one(case):
        rows, ending, text, broken = case

        def reason(corpus):
            found = dict(zip(corpus.item_ids(), corpus.item_titles(), strict=True))
            right = {item: clean_text(title) for item, title in rows}
            return "" if found == right else f"titles {found}"

        files = {
            f"items.{ending}": text.encode(),
            "interactions.parquet": as_table(made_events([item for item, _ in rows]), "parquet"),
        }
        wrong = "a row that breaks the rules was read" if broken else reason
        prepared(tally, folder, case, files, wrong)

    each(inputs(), num_cases, one)


PIECES = ["logs[1]", "day=2020-01-01", "a b", "x*", "[x]", "é", "?", "{a,b}", "%20", "#1", "**"]
MATCHED = [("[1]", "1"), ("[x]", "x"), ("**", "y"), ("*", "y"), ("?", "q"), ("{a,b}", "a")]


def names(tiny, folder, tally, num_cases):
    """A path that exists is that file, also where it reads as a pattern of another one."""
    piece = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)

    def one(case):
        inner, name, ending = case
        place = fresh(folder) / inner
        place.mkdir()
        decoy = name
        for pattern, match in MATCHED:
            decoy = decoy.replace(pattern, match)
        events = made_events(["i0", "i1", "i2"])
        for file, user in ((decoy, "decoy"), (name, "u")):
            rows = [row | {"user_id": user} for row in events]
            (place / f"{file}.{ending}").write_bytes(as_table(rows, ending))
        (place / f"{name}~.{ending}").write_bytes(as_table(made_items(3), ending))
        out = folder / f"out {name}"

        def wrong(code):
            users = [] if code else set(Corpus.load(out).interactions["user_id"])
            return "" if users == {"u"} else f"exit code {code}, users {users}"

        words = ("--items", place / f"{name}~.{ending}", "--out", out)
        words += ("--interactions", place / f"{name}.{ending}")
        tally.judge(folder, case, "prepare", "table", *words, wrong=wrong)

    each(st.tuples(piece, piece, ENDINGS), num_cases, one)


IDS = ["007", "7", "1.10", "1.1", "1e5", "9" * 25, "true", "True", "nan", "NaN", "null", "None"]
IDS += ["-0", "0x1F", "2020-01-01", "+1", "1_000", "é", "Infinity", "[1]", "{}", "i,1", "''", "N/A"]


def types(tiny, folder, tally, num_cases):
    """IDs are text from the first byte on, whatever they look like and however stored."""

    @st.composite
    def inputs(draw):
        given = draw(st.lists(st.sampled_from(IDS), min_size=3, max_size=8, unique=True))
        if draw(st.booleans()):  # those that look unlike come late
            given = [str(row) for row in range(20, 20 + draw(st.sampled_from([3, 150])))] + given
        stored = draw(st.sampled_from(["text", "text", "bytes", "bad", "category"]))
        return given, stored, "parquet" if stored != "text" else draw(ENDINGS)

    def one(case):
        given, stored, ending = case
        items = [{"item_id": one, "title": f"Title {row}"} for row, one in enumerate(given)]
        files = {f"items.{ending}": as_table(items, ending)}
        if stored != "text":
            column = pl.Series("item_id", given)
            coded = [one.encode() for one in given]
            column = {
                "bytes": pl.Series("item_id", coded),
                "bad": pl.Series("item_id", [*coded[:-1], b"\xff\xfe"]),
                "category": column.cast(pl.Categorical),
            }[stored]
            stream = io.BytesIO()
            pl.DataFrame(items).with_columns(column).write_parquet(stream)
            files["items.parquet"] = stream.getvalue()
        files[f"interactions.{ending}"] = as_table(made_events(given), ending)

        def reason(corpus):
            found = dict(zip(corpus.item_ids(), corpus.item_titles(), strict=True))
            right = {one["item_id"]: one["title"] for one in items}
            return "" if found == right else f"items {set(found.items()) ^ set(right.items())}"

        wrong = "bytes that are no UTF-8 were read" if stored == "bad" else reason
        prepared(tally, folder, case, files, wrong)

    each(inputs(), num_cases, one)


def texts(tiny, folder, tally, num_cases):
    """The text of an item opens with its title, whatever other columns there are."""
    value = st.one_of(
        st.none(), st.text(max_size=12), st.lists(st.text("ab<>&", max_size=4), max_size=2)
    )
    more = st.dictionaries(st.sampled_from(["text", "brand", "genres", "notes"]), value, max_size=3)
    word = st.text("abAB7é&<.!", min_size=1, max_size=9).map("T".__add__)

    def one(case):
        columns = {name for _, extra in case for name in extra}
        items = [
            {"item_id": f"i{row}", "title": title} | {name: extra.get(name) for name in columns}
            for row, (title, extra) in enumerate(case)
        ]
        for item in items:  # a column of texts has one in every row, or is refused
            if "text" in item:
                item["text"] = f"W {item['text']}"

        def reason(corpus):
            pairs = zip(corpus.item_titles(), corpus.item_texts(), strict=True)
            odd = [(title, text) for title, text in pairs if not text.startswith(title.rstrip("."))]
            return f"no title in {odd[0]}" if odd else ""

        files = {
            "items.jsonl": as_table(items, "jsonl"),
            "interactions.parquet": as_table(
                made_events([one["item_id"] for one in items]), "parquet"
            ),
        }
        prepared(tally, folder, case, files, reason)

    each(st.lists(st.tuples(word, more), min_size=3, max_size=4), num_cases, one)


def markup(tiny, folder, tally, num_cases):
    """Tags and entities go, words stay; long texts of any kind take linear time."""
    mixed = st.lists(st.tuples(WORDS, MARKUP), min_size=1, max_size=6)
    long = st.lists(st.sampled_from(UNITS), min_size=1, max_size=3).map("".join)

    def one(case):
        if isinstance(case, str):
            start = time.process_time()
            clean_text((case * (30_000 // len(case) + 1))[:30_000])
            took = time.process_time() - start
            tally.add(0, f"{took:.2f} s" if took > 0.5 else "", case)
            return
        text = "".join(" ".join(words) + tag + " " for words, tag in case)
        right = [word for words, _ in case for word in words]
        found = clean_text(text).split()
        tally.add(0, "" if found == right else f"words {found}", text)

    each(st.one_of(mixed, mixed, mixed, long), num_cases, one)


class Answering(Retriever):
    """Retriever without a model: it answers with what was asked."""

    def __init__(self):
        self._rows = {f"i{row}": row for row in range(9)}

    def answer(self, requests, **_):
        return [[RetrievedItem(one.query, None, one.history)] for one in requests]


def arguments(tiny, folder, tally, num_cases):
    """A list, any iterable, one string or anything else; keys of a request with a slip."""
    catalogue, echo = Answering(), Echo()
    request = {"id": "a", "task": "search", "query": "x", "allowed": ["i1"], "excluded": ["i2"]}
    words = st.lists(st.sampled_from(["i1", "i2", "glue"]), min_size=1, max_size=3)
    forms = st.sampled_from([list, tuple, iter, lambda given: (one for one in given)])

    @st.composite
    def slips(draw):
        key = draw(st.sampled_from(sorted(request)))
        return key, draw(misspelt(key).filter(lambda new: new not in request))

    def one(case):
        kind, what = case
        reason = ""
        if kind == "list":
            given, form = what
            asked = catalogue.search(form(given))
            reason = "" if [one.item_id for (one,) in asked] == given else f"asked {asked}"
            known = [form(["i1", *given])]
            if catalogue.recommend(form(known)) != catalogue.recommend([["i1", *given]]):
                reason = "another history"
        elif kind == "slip":
            old, new = what
            line = {new if key == old else key: value for key, value in request.items()}
            error = understand(as_table([line], "jsonl"), echo).error
            reason = "" if 0 < len(error) <= 300 else f"error {error!r}"
        else:
            is_list = isinstance(what, (list, dict)) and all(isinstance(t, str) for t in what)
            try:
                texts_in(what, "texts")
                reason = "" if is_list else "no list of strings was taken"
            except DataError as error:
                reason = "" if not is_list and len(str(error)) <= 300 else str(error)
        tally.add(0, reason, case)

    each(
        st.one_of(
            st.tuples(st.just("list"), st.tuples(words, forms)),
            st.tuples(st.just("slip"), slips()),
            st.tuples(st.just("any"), VALUES),
        ),
        num_cases,
        one,
    )


KNOWN = {
    "times": times,
    "quoting": quoting,
    "names": names,
    "types": types,
    "texts": texts,
    "markup": markup,
    "arguments": arguments,
}
