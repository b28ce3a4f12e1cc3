import ast
import csv
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.queries.query_files import load_query_files
from sidrec.corpus.requests import recommendation_requests
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.corpus.sources.user_tables import read_query_table, read_table
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from tests.corpus.small import SETTINGS

INDUSTRIAL = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "industrial"
needs_data = pytest.mark.skipif(
    not INDUSTRIAL.is_dir(), reason=f"{INDUSTRIAL} is not here; name the folder in SIDREC_DATA"
)
ITEMS = pl.DataFrame(
    {
        "item_id": ["007", "b"],
        "title": ["Glue", "Tape"],
        "text": ["Strong glue.", "<b>Sticky</b> tape."],
        "price": [1.5, 2.0],
    }
)
INTERACTIONS = pl.DataFrame(
    {
        "user_id": ["1", "1"],
        "item_id": ["007", "b"],
        "timestamp": [100, 200],
        "rating": [4.0, None],
    }
)
WRITERS = {
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
    "parquet": pl.DataFrame.write_parquet,
    "tsv": lambda frame, file: frame.write_csv(file, separator="\t"),
}


def write(folder, ending="csv", items=ITEMS, interactions=INTERACTIONS):
    files = folder / f"items.{ending}", folder / f"interactions.{ending}"
    WRITERS[ending](items, files[0])
    WRITERS[ending](interactions, files[1])
    return files


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_says_the_same(tmp_path, ending):
    raw = read_table(*write(tmp_path, ending))
    assert raw.items.rows() == [
        ("007", "Glue", "Strong glue.", 1.5),
        ("b", "Tape", "Sticky tape.", 2.0),
    ]
    assert raw.interactions.collect().rows() == [
        ("1", "007", 100_000_000, 4.0),
        ("1", "b", 200_000_000, None),
    ]


def test_text_is_made_of_what_describes_the_item(tmp_path):
    items = ITEMS.drop("text").with_columns(
        description=pl.Series(["['Bonds <i>fast</i>', 'Dries clear.']", None]),
        brand=pl.Series(["Acme", ""]),
        color=pl.Series(["red", "blue"]),
    )
    raw = read_table(*write(tmp_path, items=items))
    assert raw.items["text"].to_list() == ["Glue. Bonds fast Dries clear. Acme.", "Tape"]
    assert raw.items.columns == [
        "item_id",
        "title",
        "text",
        "price",
        "description",
        "brand",
        "color",
    ]


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (["2020-01-02T03:04:05", "2020-01-02"], [1577934245, 1577923200]),
        (["1577934245", "1577934246.0"], [1577934245, 1577934246]),
        ([1577934245.0, 2.0], [1577934245, 2]),
        ([datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), None], [1577934245, None]),
        (["soon", "2020-01-02 03:04:05"], [None, 1577934245]),
    ],
)
def test_timestamps_in_many_forms(tmp_path, values, seconds):
    interactions = INTERACTIONS.with_columns(timestamp=pl.Series(values))
    raw = read_table(*write(tmp_path, "parquet", interactions=interactions))
    assert raw.interactions.collect()["timestamp"].to_list() == [
        None if one is None else one * 1_000_000 for one in seconds
    ]


def test_rating_is_optional_and_nonsense_is_kept_for_the_builder_to_refuse(tmp_path):
    raw = read_table(*write(tmp_path, interactions=INTERACTIONS.drop("rating")))
    assert raw.interactions.collect()["rating"].to_list() == [None, None]
    bad = INTERACTIONS.with_columns(rating=pl.Series(["4.5", "good"]))
    raw = read_table(*write(tmp_path, interactions=bad))
    with pytest.raises(DataError, match=r"interactions\.csv row 2: column 'rating' is NaN, inf"):
        build_corpus(raw, [], tmp_path / "out", SETTINGS)


@pytest.mark.parametrize("rating", ["inf", "-inf", "nan"])
def test_rating_that_is_not_finite_is_refused(tmp_path, rating):
    bad = INTERACTIONS.with_columns(rating=pl.Series(["4.5", rating]))
    raw = read_table(*write(tmp_path, interactions=bad))
    with pytest.raises(DataError, match=r"row 2: column 'rating' is NaN, infinite or no number"):
        build_corpus(raw, [], tmp_path / "out", SETTINGS)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("position", [0, 1])
def test_table_that_is_not_utf8_is_refused(tmp_path, ending, encoding, position):
    interactions = INTERACTIONS.with_columns(user_id=pl.Series(["é", "1"]))
    items = ITEMS.with_columns(title=pl.Series(["Café", "Tape"]))
    files = write(tmp_path, ending, items=items, interactions=interactions)
    content = files[position].read_text(encoding="utf-8")
    files[position].write_text(content, encoding=encoding)
    with pytest.raises(DataError, match=rf"{files[position].name} is not UTF-8 .*as UTF-8"):
        build_corpus(read_table(*files), [], tmp_path / "out", SETTINGS)


def test_column_named_as_sidrec_names_its_own(tmp_path):
    items = ITEMS.with_columns(row=pl.lit(7), user_index=pl.lit(8))
    interactions = INTERACTIONS.with_columns(row=pl.lit(7), item_index=pl.lit(8))
    build_corpus(
        read_table(*write(tmp_path, items=items, interactions=interactions)),
        [],
        tmp_path / "out",
        SETTINGS,
    )
    assert list(Corpus.load(tmp_path / "out").items["row"]) == [7, 7]
    files = write(tmp_path, items=items.rename({"row": "item_index"}))
    with pytest.raises(DataError, match=r"items\.csv: column 'item_index' .* rename the column"):
        read_table(*files)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_objects_become_json_text(tmp_path, ending):
    items = ITEMS.with_columns(
        size=pl.Series([{"wide": 1, "name": "größer"}, None]),
        parts=pl.Series([[{"no": 1}, {"no": 2}], []]),
        tags=pl.Series([["a"], ["b", "c"]]),
    )
    build_corpus(read_table(*write(tmp_path, ending, items=items)), [], tmp_path / "o", SETTINGS)
    found = Corpus.load(tmp_path / "o").items
    assert list(found["size"]) == ['{"wide": 1, "name": "größer"}', None]
    assert list(found["parts"]) == ['[{"no": 1}, {"no": 2}]', "[]"]
    assert list(found["tags"]) == [["a"], ["b", "c"]]


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (
            "items",
            "item_id",
            "itemid",
            r"items\.csv has no column 'item_id'; did you mean 'itemid'",
        ),
        ("items", "title", "zzz", r"items\.csv has no column 'title'; it has \['item_id', 'zzz'"),
        (
            "interactions",
            "timestamp",
            "timestmp",
            r"no column 'timestamp'; did you mean 'timestmp'",
        ),
    ],
)
def test_missing_column_suggests_the_nearest(tmp_path, table, old, new, message):
    frames = {"items": ITEMS, "interactions": INTERACTIONS}
    frames[table] = frames[table].rename({old: new})
    with pytest.raises(DataError, match=message):
        read_table(*write(tmp_path, **frames))


def test_truncated_parquet_unknown_ending_and_missing_file_are_named(tmp_path):
    items, interactions = write(tmp_path, "parquet")
    with pytest.raises(DataError, match=r"nothing\.csv does not exist"):
        read_table(tmp_path / "nothing.csv", interactions)
    (tmp_path / "items.xlsx").write_text("")
    with pytest.raises(DataError, match=r"items\.xlsx ends in '\.xlsx'; give a \.csv"):
        read_table(tmp_path / "items.xlsx", interactions)
    interactions.write_bytes(interactions.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be read"):
        read_table(items, interactions)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_empty_file_is_named(tmp_path, ending):
    _, interactions = write(tmp_path)
    empty = tmp_path / f"none.{ending}"
    empty.write_text("")
    with pytest.raises(DataError, match=rf"none\.{ending}"):
        read_table(empty, interactions)


def test_damaged_line_of_json_is_named(tmp_path):
    items, interactions = write(tmp_path, "jsonl")
    items.write_text(items.read_text() + '{"item_id": \n')
    with pytest.raises(DataError, match=r"items\.jsonl, line 3: not valid JSON"):
        read_table(items, interactions)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_queries_may_be_a_table(tmp_path, ending):
    frame = pl.DataFrame(
        {
            "query_id": ["q1", "q2"],
            "query": ["sticks well", "roll"],
            "item_ids": ["007| b", "b"],
            "split": ["test", None],
        }
    )
    if ending == "parquet":
        frame = frame.with_columns(item_ids=pl.Series([["007", "b"], ["b"]]))
    WRITERS[ending](frame, tmp_path / f"mine.{ending}")
    place = tmp_path / f"mine.{ending}"
    assert read_query_table(place) == [
        RawQuery("q1", "sticks well", ("007", "b"), "q1", "test", "mine", f"{place} row 1"),
        RawQuery("q2", "roll", ("b",), "q2", "", "mine", f"{place} row 2"),
    ]
    WRITERS[ending](frame.with_columns(split=pl.lit("dev")), tmp_path / f"bad.{ending}")
    with pytest.raises(DataError, match=r"bad\.\w+ row 1: split 'dev' is none of train"):
        read_query_table(tmp_path / f"bad.{ending}")


@pytest.mark.parametrize(
    ("grades", "expected"), [(["2|1", ""], [(2, 1), ()]), (["3|1", "2"], None)]
)
def test_grades_of_a_table(tmp_path, grades, expected):
    rows = {"query_id": ["q1", "q2"], "query": ["x", "y"], "item_ids": ["b|a", "a|b"]}
    pl.DataFrame({**rows, "grades": grades}).write_csv(tmp_path / "mine.csv")
    if expected is None:
        with pytest.raises(DataError, match=r"mine\.csv row 2: grades is 2, expected a whole numb"):
            read_query_table(tmp_path / "mine.csv")
    else:
        assert [one.grades for one in read_query_table(tmp_path / "mine.csv")] == expected


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("table", ["items", "interactions", "queries"])
def test_a_column_that_stands_there_twice_is_refused(tmp_path, ending, table):
    files = dict(zip(("items", "interactions"), write(tmp_path, ending), strict=True))
    files["queries"] = tmp_path / f"queries.{ending}"
    queries = pl.DataFrame({"query_id": ["q"], "item_id": ["b"], "query": ["x"]})
    WRITERS[ending](queries, files["queries"])
    separator = "\t" if ending == "tsv" else ","
    head, *rows = files[table].read_text().splitlines()
    files[table].write_text("\n".join(f'{line}{separator}"item_id"' for line in [head, *rows]))
    with pytest.raises(DataError, match=rf"{table}\.{ending} has two columns 'item_id'; rename"):
        read_table(files["items"], files["interactions"]), read_query_table(files["queries"])


def test_a_query_of_an_unknown_item_is_named_by_file_and_row(tmp_path):
    raw = read_table(*write(tmp_path))
    rows = pl.DataFrame({"query_id": ["q1", "q2"], "query": ["x", "y"], "item_ids": ["b", "c"]})
    rows.write_csv(tmp_path / "mine.csv")
    queries = read_query_table(tmp_path / "mine.csv")
    with pytest.raises(DataError, match=r"mine\.csv row 2: query 'q2' names item_id 'c', which"):
        build_corpus(raw, queries, tmp_path / "out", SETTINGS)
    lines = [{"query_id": row[0], "query": row[1], "item_ids": [row[2]]} for row in rows.rows()]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    queries = load_query_files([tmp_path / "mine.jsonl"])
    with pytest.raises(DataError, match=r"mine\.jsonl, line 2: query 'q2' names item_id 'c'"):
        build_corpus(raw, queries, tmp_path / "out", SETTINGS)


@needs_data
def test_second_domain_from_end_to_end(tmp_path):
    listed = json.loads((INDUSTRIAL / "Industrial_and_Scientific.item.json").read_text())
    items = pl.DataFrame([{"item_id": key, **value} for key, value in listed.items()])
    with (INDUSTRIAL / "Industrial_and_Scientific.test.csv").open() as stream:
        histories = [
            [*ast.literal_eval(row["history_item_id"]), int(row["item_id"])]
            for row in csv.DictReader(stream)
        ]
    rows = [
        (f"line {line}", str(item), moment)
        for line, history in enumerate(histories)
        for moment, item in enumerate(history)
    ]
    schema = ["user_id", "item_id", "timestamp"]
    interactions = pl.DataFrame(rows, schema=schema, orient="row")
    raw = read_table(*write(tmp_path, items=items, interactions=interactions))
    assert raw.items.height == 3_686
    assert raw.items["text"].str.contains(r"<[a-z/]+>|\{font|&[a-z]+;|^\[['\"]").sum() == 0
    assert raw.items.filter(pl.col("item_id") == "11")["title"][0].startswith("TÜRLEN DIAL")
    build_corpus(raw, [], tmp_path / "out", SETTINGS)
    corpus = Corpus.load(tmp_path / "out")
    requests = recommendation_requests(corpus, "test")
    assert corpus.num_items == 3_686
    assert len(requests) == sum(len(history) >= 3 for history in histories)
    assert [*requests[0].history, *requests[0].relevant] == histories[0]
