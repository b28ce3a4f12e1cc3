import polars as pl
import pytest

from sidrec.cli.preparing import prepare as command
from sidrec.corpus.sources.raw_catalogue import TICKS_PER_SECOND
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError

ITEMS = "item_id,title\na,Glue\nb,Tape\nc,Nail\nd,Saw\n"
HEADER = "user_id,query,item_id,timestamp,event,position\n"
# one line an event; the queries "Heist film" and "heist  FILM!" are one
ROWS = [
    "u1,Heist film,a,10,click,1",
    "u1,Heist film,a,11,purchase,1",
    "u1,heist  FILM!,b,12,click,4",
    "u2,space,c,13,click,2",
    "u2,,d,14,click,1",
    ",space,c,15,click,3",
    "u2,space,b,16,view,1",
    "u1,space,a,17,click,1",
    "u3,saw,d,18,click,1",
    "u3,Heist film,d,19,purchase,1",
]
WEIGHTS = ("--event_weights", '{"click": 1, "purchase": 5}')


def prepare(folder, *more, rows=ROWS, header=HEADER, items=ITEMS):
    (folder / "log.csv").write_text(header + "\n".join(rows) + "\n")
    (folder / "items.csv").write_text(items)
    arguments = ["--log", str(folder / "log.csv"), "--items", str(folder / "items.csv")]
    command.main(["clicks", *arguments, "--out", str(folder / "out"), *map(str, more)])
    return Corpus.load(folder / "out", verify=True)


def answers(corpus):
    """Text of each query -> weight of each item that answers it."""
    ids = corpus.item_ids()
    return {
        row["text"]: dict(
            zip((ids[item] for item in row["item_index"]), row["weight"], strict=True)
        )
        for row in corpus.queries
    }


def interactions(corpus):
    ids = corpus.item_ids()
    return [
        (
            row["user_id"],
            ids[row["item_index"]],
            row["timestamp"] // TICKS_PER_SECOND,
            row["rating"],
        )
        for row in corpus.interactions
    ]


def test_counts_by_hand(tmp_path, capsys):
    corpus = prepare(tmp_path, *WEIGHTS, "--split", "leave_last_out")
    assert answers(corpus) == {
        "Heist film": {"a": 6.0, "b": 1.0, "d": 5.0},
        "space": {"a": 1.0, "c": 2.0},
        "saw": {"d": 1.0},
    }
    assert interactions(corpus) == [
        ("u1", "a", 10, 5.0),  # click and purchase are one
        ("u1", "b", 12, 1.0),
        ("u1", "a", 17, 1.0),
        ("u2", "c", 13, 1.0),
        ("u2", "d", 14, 1.0),
        ("u3", "d", 18, 5.0),
    ]
    said = capsys.readouterr().err
    assert "1 of 10 events are of kinds without a weight (view), left out" in said
    assert "9 events of known items make 6 interactions and 3 queries" in said


def test_columns_may_have_other_names(tmp_path):
    header = "user,words,sku,at,kind,place\n"
    names = dict(zip(HEADER.strip().split(","), header.strip().split(","), strict=True))
    renamed = [part for key, own in names.items() for part in (f"--columns.{key}", own)]
    other = ITEMS.replace("item_id", "sku")
    expected = prepare(tmp_path, *WEIGHTS)
    found = prepare(tmp_path, *WEIGHTS, *renamed, header=header, items=other)
    assert answers(found) == answers(expected)
    assert interactions(found) == interactions(expected)
    with pytest.raises(DataError, match=r"log\.csv has no column 'sku'"):
        prepare(tmp_path, *WEIGHTS, "--columns.item_id", "sku")


def test_minimum_counts(tmp_path):
    least = ("--min_pair_events", 2, "--split", "leave_last_out")
    assert answers(prepare(tmp_path, *WEIGHTS, *least)) == {
        "Heist film": {"a": 6.0},
        "space": {"c": 2.0},
    }
    least = ("--min_query_events", 4, "--split", "leave_last_out")
    assert list(answers(prepare(tmp_path, *WEIGHTS, *least))) == ["Heist film"]
    least = ("--min_item_events", 3, "--split", "leave_last_out")
    assert prepare(tmp_path, *WEIGHTS, *least).item_ids() == ["a", "d"]


def test_positions_weigh_what_few_people_see(tmp_path):
    more = ("--position_exponent", 0.5, "--split", "leave_last_out")
    found = answers(prepare(tmp_path, *WEIGHTS, *more))
    assert found["Heist film"] == {"a": 6.0, "b": 2.0, "d": 5.0}
    assert found["space"]["c"] == pytest.approx(2**0.5 + 3**0.5)


def test_temporal_split_cuts_queries_by_time_as_well(tmp_path):
    rows = [f"u{n % 7},query {n % 11},{'abcd'[n % 4]},{1_000 + n},click,1" for n in range(200)] + [
        f"u{n % 7},late query {n % 3},{'abcd'[n % 4]},{1_150 + n},click,1" for n in range(50)
    ]
    corpus = prepare(tmp_path, "--temporal_fractions", "[0.2,0.2]", rows=rows)
    log = pl.DataFrame(
        [row.split(",")[1:4] for row in rows], schema=["query", "item", "time"], orient="row"
    ).with_columns(pl.col("time").cast(pl.Int64))
    split = dict(zip(corpus.queries["text"][:], corpus.queries["split"][:], strict=True))
    stored = corpus.interactions.to_polars()
    stored = stored.with_columns(pl.col("timestamp") // TICKS_PER_SECOND)
    last = {
        name: stored.filter(pl.col("split") == name)["timestamp"].max()
        for name in ("train", "valid")
    }
    cut = stored.filter(pl.col("split") == "valid")["timestamp"].min()
    assert last["train"] < cut <= 1_150
    for text, weights in answers(corpus).items():
        events = log.filter(pl.col("query") == text)
        assert (events["time"].min() < cut) == (split[text] == "train")
        if split[text] == "train":  # no click after the cut: the weights count earlier ones alone
            before = events.filter(pl.col("time") < cut).group_by("item").len()
            assert weights == dict(before.iter_rows())
    assert split["query 0"] == "train"
    assert {split[f"late query {n}"] for n in range(3)} == {"valid"}


def test_a_log_without_users_makes_queries_alone(tmp_path):
    rows = [f",query {n},a,{n},click,1" for n in range(10)]
    corpus = prepare(tmp_path, rows=rows)
    assert corpus.num_users == 0
    assert corpus.queries["split"][:] == ["train"] * 8 + ["valid", "test"]


def test_dates_are_read_like_in_tables(tmp_path):
    rows = ["u,glue,a,2024-01-02,click,1"]
    corpus = prepare(tmp_path, "--split", "leave_last_out", rows=rows)
    assert interactions(corpus)[0][2] == 1_704_153_600


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"header": HEADER.replace("query", "term")}, (), "log.csv has no column 'query'; it has"),
        (
            {"rows": [*ROWS, "u,q,a,soon,click,1"]},
            (),
            "log.csv row 11: column 'timestamp' is empty",
        ),
        ({"rows": [*ROWS, "u,q,,1,click,1"]}, (), "log.csv row 11: column 'item_id' is empty"),
        ({"rows": [*ROWS, ",,a,1,click,1"]}, (), "row 11: columns 'user_id' and 'query' are both"),
        ({"rows": [*ROWS, "u,q,z,1,click,1"]}, (), "log.csv row 11: item_id 'z' is not in"),
        (
            {},
            ("--event_weights", '{"clik": 1}'),
            "no event 'clik' of --event_weights; did you mean",
        ),
        (
            {"header": HEADER.replace("event", "kind")},
            WEIGHTS,
            "log.csv has no column 'event', but",
        ),
        (
            {"header": HEADER.replace("position", "rank")},
            ("--position_exponent", 1),
            "'position', which",
        ),
        (
            {"rows": [*ROWS, "u,q,a,1,click,0"]},
            ("--position_exponent", 1),
            "row 11: column 'position'",
        ),
    ],
)
def test_bad_logs_are_named(tmp_path, change, more, message):
    with pytest.raises(DataError) as error:
        prepare(tmp_path, *more, **change)
    assert message in str(error.value)


def test_weights_of_zero_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="must name events with weights above 0"):
        prepare(tmp_path, "--event_weights", '{"click": 0}')


def test_unknown_items_can_be_dropped(tmp_path, capsys):
    rows = [*ROWS, "u1,space,z,30,click,1"]
    corpus = prepare(tmp_path, "--unknown_items", "drop", rows=rows)
    assert corpus.item_ids() == ["a", "b", "c", "d"]
    assert "1 events of items that" in capsys.readouterr().err


def test_events_weigh_in_training_where_their_weights_differ(tmp_path):
    corpus = prepare(tmp_path, *WEIGHTS, "--split", "leave_last_out")
    weights = [row["weight"] for row in corpus.interactions]
    assert weights == [row["rating"] for row in corpus.interactions]
    assert set(weights) == {1.0, 5.0}
    train = [row["weight"] for row in corpus.interactions if row["split"] == "train"]
    assert corpus.train_interactions().weight.tolist() == train
    alike = prepare(tmp_path, "--split", "leave_last_out")
    assert "weight" not in alike.interactions.column_names
    assert alike.train_interactions().weight is None


def test_a_table_with_equal_weights_is_the_one_without(tmp_path, capsys):
    (tmp_path / "items.csv").write_text(ITEMS)

    def of(*weights):
        rows = [f"u,{item},{place}" for place, item in enumerate("abcd")]
        if weights:
            rows = [f"{row},{weight}" for row, weight in zip(rows, weights, strict=True)]
        header = "user_id,item_id,timestamp" + (",w" if weights else "")
        (tmp_path / "events.csv").write_text("\n".join([header, *rows, ""]))
        files = ["--items", str(tmp_path / "items.csv")]
        files += ["--interactions", str(tmp_path / "events.csv")]
        files += ["--columns.weight", "w"] if weights else []
        command.main(["table", *files, "--out", str(tmp_path / "out")])
        return Corpus.load(tmp_path / "out")

    assert of(2, 2, 2, 2).fingerprint == of().fingerprint
    assert of(1, 5, 1, 1).train_interactions().weight.tolist() == [1.0, 5.0]
    for wrong in ("0", "-1", "x", ""):
        with pytest.raises(DataError, match=r"row 2: .*weight.* is no number above 0"):
            of(1, wrong, 1, 1)
