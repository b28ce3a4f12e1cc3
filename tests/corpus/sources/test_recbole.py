import pytest

from sidrec.cli.preparing import prepare as command
from sidrec.corpus.prepare_settings import RecBoleFields
from sidrec.corpus.sources.raw_catalogue import TICKS_PER_SECOND
from sidrec.corpus.sources.recbole import read_recbole
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t4.5\t{time}\n"
    for user, item, time in [("1", "a", 30), ("1", "b", 10), ("1", "c", "20.0"), ("2", "a", 5)]
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\tyear:token\tclass:token_seq\tprice:float\tvec:float_seq\n"
    'a\tThe "Quoted One\t1995\tAction Sci-Fi\t3.5\t0.5 1\n'
    "b\tSecond\t\t\t\t\n"
    "c\tThird\t1997\tDrama\t1\t2\n"
)


@pytest.fixture
def folder(tmp_path):
    def write(inter=INTER, item=ITEM, user=None):
        for ending, text in (("inter", inter), ("item", item), ("user", user)):
            if text is not None:
                (tmp_path / f"set.{ending}").write_text(text)
        return tmp_path

    return write


def read(folder, *, text_fields=None, time_unit="s", core=0, **fields):
    return read_recbole(
        folder,
        fields=RecBoleFields(**fields),
        text_fields=text_fields,
        time_unit=time_unit,
        core=core,
    )


def test_typed_headers_by_hand(folder, capsys):
    raw = read(folder(user="user_id:token\tage:float\n1\t24\n"))
    assert raw.items.rows() == [
        (
            *("a", 'The "Quoted One', 'The "Quoted One. Year: 1995. Class: Action Sci-Fi.'),
            *("1995", ["Action", "Sci-Fi"], 3.5, [0.5, 1.0]),
        ),
        ("b", "Second", "Second.", None, None, None, None),
        ("c", "Third", "Third. Year: 1997. Class: Drama.", "1997", ["Drama"], 1.0, [2.0]),
    ]
    assert raw.interactions.collect().rows() == [
        ("1", "a", 30 * TICKS_PER_SECOND, 4.5),
        ("1", "b", 10 * TICKS_PER_SECOND, 4.5),
        ("1", "c", 20 * TICKS_PER_SECOND, 4.5),
        ("2", "a", 5 * TICKS_PER_SECOND, 4.5),
    ]
    assert "set.user is not used" in capsys.readouterr().err


def test_without_items_ids_are_texts(folder):
    raw = read(folder(item=None))
    assert raw.items.rows() == [("a", "a", "a"), ("b", "b", "b"), ("c", "c", "c")]


def test_other_names_no_times_and_core(folder):
    inter = INTER.replace("user_id", "uid").replace("rating", "score").replace("timestamp", "t")
    raw = read(folder(inter), user="uid", time="position", rating="score", text_fields=[], core=1)
    assert raw.interactions.collect()["timestamp"].to_list() == [
        n * TICKS_PER_SECOND for n in range(4)
    ]
    assert raw.interactions.collect()["rating"].to_list() == [4.5] * 4
    assert raw.items["text"].to_list() == ['The "Quoted One.', "Second.", "Third."]
    assert read(folder(INTER.replace("2\ta", "1\ta")), core=2).items["item_id"].to_list() == ["a"]


def test_milliseconds(folder):
    raw = read(folder(INTER.replace("\t30\n", "\t1600000000000\n")), time_unit="ms")
    assert raw.interactions.collect()["timestamp"][0] == 1_600_000_000 * TICKS_PER_SECOND


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inter": INTER.replace("rating:float", "rating")},
            "header 'rating' has no type of token",
        ),
        (
            {"inter": INTER.replace("rating:float", "item_id:token")},
            "'item_id:token' appears twice",
        ),
        (
            {"inter": INTER.replace("timestamp", "time")},
            "set.inter has no field 'timestamp'; it has",
        ),
        (
            {"inter": INTER.replace("20.0", "soon")},
            "set.inter row 3: 'soon' in field 'timestamp' is",
        ),
        (
            {"item": ITEM.replace("0.5 1", "0.5 x")},
            "set.item row 1: '0.5 x' in field 'vec' is not a num",
        ),
        (
            {"item": ITEM.replace("item_id", "iid")},
            "set.item has no column 'item_id'; did you mean",
        ),
        ({"inter": ""}, "set.inter cannot be read: empty CSV"),
    ],
)
def test_bad_files_are_named(folder, change, message):
    with pytest.raises(DataError) as error:
        read(folder(**change))
    assert message in str(error.value)


def test_two_data_sets_in_a_folder_are_refused(folder, tmp_path):
    folder()
    (tmp_path / "other.inter").write_text(INTER)
    with pytest.raises(DataError, match=r"holds 2 files ending in \.inter, expected one"):
        read(tmp_path)


def test_the_command(folder, tmp_path):
    arguments = ["recbole", "--source", str(folder()), "--text_fields", "class"]
    command.main([*arguments, "--fields.rating", "none", "--out", str(tmp_path / "out")])
    corpus = Corpus.load(tmp_path / "out", verify=True)
    assert corpus.item_texts()[0] == 'The "Quoted One. Class: Action Sci-Fi.'
    assert corpus.interactions["item_index"][:] == [1, 2, 0, 0]
    assert corpus.interactions["rating"][:] == [None] * 4
    assert len(corpus.queries) == 0
