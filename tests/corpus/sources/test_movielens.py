import os
import re
import zipfile
from pathlib import Path

import polars as pl
import pytest

from sidrec.corpus.sources.movielens import read_movielens
from sidrec.errors import DataError

MOVIES = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "movies"
needs_data = pytest.mark.skipif(
    not MOVIES.is_dir(), reason=f"{MOVIES} is not here; name the data folder in SIDREC_DATA"
)
RATINGS = [("1", "10", 964982703, 4.0), ("1", "20", 964981247, 2.5), ("2", "10", 964982224, 5.0)]


def read(folder, **changes):
    settings = {"descriptions": None, "num_tags": 2, "num_genome_tags": 2}
    return read_movielens(folder, **{**settings, **changes})


def ratings_of(raw):
    """Return the ratings with their times in seconds, as the files hold them."""
    seconds = (pl.col("timestamp") / 1_000_000).alias("timestamp")
    return raw.interactions.select("user_id", "item_id", seconds, "rating").collect().rows()


def write_csv(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        '10,"Matrix, The (1999)",Action|Sci-Fi\n'
        "20,Amélie (2001),(no genres listed)\n"
        "30,Nobody Saw It,Drama\n"
    )
    rows = [f"{user},{movie},{rating},{moment}" for user, movie, moment, rating in RATINGS]
    (folder / "ratings.csv").write_text(
        "\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n"
    )
    (folder / "tags.csv").write_text(
        "userId,movieId,tag,timestamp\n"
        "1,10,Hackers,1\n1,10,hackers,2\n2,10,dystopia,3\n3,10,Dystopia ,4\n1,10,aaa,5\n"
    )
    (folder / "genome-tags.csv").write_text('tagId,tag\n1,"war, cold"\n2,virtual\n3,b\n4,a\n')
    (folder / "genome-scores.csv").write_text(
        "movieId,tagId,relevance\n10,1,0.1\n10,2,0.9\n10,3,0.5\n10,4,0.5\n"
    )
    return folder


def test_csv_layout_by_hand(tmp_path):
    descriptions = tmp_path / "descriptions.jsonl"
    descriptions.write_text('{"movieId": 10, "description": "A hacker\\u2028wakes up."}\n\n')
    raw = read(write_csv(tmp_path / "ml"), descriptions=descriptions)
    assert raw.items.rows(named=True)[0] == {
        "item_id": "10",
        "title": "The Matrix",
        "text": (
            "The Matrix (1999). Genres: Action, Sci-Fi. Tags: dystopia, aaa. Themes: virtual, a. "
            "A hacker wakes up."
        ),
        "year": 1999,
        "genres": ["Action", "Sci-Fi"],
        "tags": ["dystopia", "aaa"],  # two users; then one user each, by alphabet
        "genome_tags": ["virtual", "a"],
        "description": "A hacker\u2028wakes up.",
    }
    assert raw.items["text"].to_list()[1:] == [
        "Amélie (2001).",
        "Nobody Saw It. Genres: Drama.",
    ]
    assert ratings_of(raw) == RATINGS


def test_dat_layout_by_hand(tmp_path):
    (tmp_path / "movies.dat").write_bytes(
        "10::Matrix: Reloaded, The (2003)::Action\n20::Amélie (2001)::Comedy|Romance\n".encode(
            "latin-1"
        )
    )
    rows = [f"{user}::{movie}::{rating}::{moment}" for user, movie, moment, rating in RATINGS]
    (tmp_path / "ratings.dat").write_text("\n".join(rows) + "\n")
    raw = read(tmp_path)
    assert raw.items["title"].to_list() == ["The Matrix: Reloaded", "Amélie"]
    assert raw.items["genres"].to_list() == [["Action"], ["Comedy", "Romance"]]
    assert ratings_of(raw) == RATINGS


def test_100k_layout_by_hand(tmp_path):
    flags = ["0"] * 19
    flags[1] = flags[16] = "1"
    unknown = ["1", *["0"] * 18]
    (tmp_path / "u.item").write_bytes(
        "\n".join(
            "|".join(fields)
            for fields in (
                ["10", "Matrix, The (1999)", "01-Jan-1999", "", "http://x", *flags],
                ["20", "Amélie (2001)", "", "", "", *unknown],
            )
        ).encode("latin-1")
    )
    (tmp_path / "u.data").write_text("1\t10\t4\t964982703\n2\t20\t3\t964981247\n")
    raw = read(tmp_path)
    assert raw.items["title"].to_list() == ["The Matrix", "Amélie"]
    assert raw.items["genres"].to_list() == [["Action", "Thriller"], []]
    assert ratings_of(raw) == [("1", "10", 964982703, 4.0), ("2", "20", 964981247, 3.0)]


def test_recbole_layout_by_hand(tmp_path):
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tMatrix, The\t1999\tAction Sci-Fi\n"
        '20\t"Quoted\t\t\n'
    )
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t964982703\n"
    )
    raw = read(tmp_path)
    assert raw.items.select("title", "year", "genres").rows() == [
        ("The Matrix", 1999, ["Action", "Sci-Fi"]),
        ('"Quoted', None, []),
    ]
    assert ratings_of(raw) == [("1", "10", 964982703, 4.0)]


def test_number_of_tags_is_a_choice(tmp_path):
    raw = read(write_csv(tmp_path / "ml"), num_tags=0, num_genome_tags=1)
    assert raw.items["tags"].to_list() == [[], [], []]
    assert raw.items["genome_tags"].to_list() == [["virtual"], [], []]


def test_renamed_column_suggests_the_nearest(tmp_path):
    folder = write_csv(tmp_path / "ml")
    text = (folder / "ratings.csv").read_text().replace("movieId", "movie_id")
    (folder / "ratings.csv").write_text(text)
    with pytest.raises(DataError, match=r"ratings\.csv has no column 'movieId'; did you mean 'mov"):
        read(folder)


def test_bad_rating_and_timestamp_become_what_the_builder_refuses(tmp_path):
    folder = write_csv(tmp_path / "ml")
    with (folder / "ratings.csv").open("a") as stream:
        stream.write("3,10,,5\n3,10,4.0,yesterday\n")
    rows = read(folder).interactions.collect()
    assert rows["rating"].is_nan().to_list() == [False, False, False, True, False]
    assert rows["timestamp"].is_null().to_list() == [False, False, False, False, True]


def test_damaged_rows_are_named(tmp_path):
    (tmp_path / "movies.dat").write_text("10::A (1999)::Action\n20::B (2001)\n")
    (tmp_path / "ratings.dat").write_text("1::10::4::5\n")
    with pytest.raises(DataError, match=r"movies\.dat row 2 has 2 fields, expected 3"):
        read(tmp_path)
    folder = write_csv(tmp_path / "ml")
    (tmp_path / "d.jsonl").write_text('{"movieId": 10, "description": "x"}\n{"movieId": 20}\n')
    with pytest.raises(DataError, match=r"d\.jsonl row 2 is not an object with movieId and desc"):
        read(folder, descriptions=tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("files", "rows", "found"),
    [
        (("movies.dat", "ratings.dat"), "0::4.0::5\n", "5 parts between ':', expected 7"),
        (("movies.dat", "ratings.dat"), "1::10::4::5::6\n", "9 parts between ':', expected 7"),
        (("u.item", "u.data"), "1 10 4 5\n", r"1 parts between '\t', expected 4"),
    ],
)
def test_ratings_of_another_width_are_refused(tmp_path, files, rows, found):
    movies = {
        "movies.dat": "10::A (1999)::Action\n",
        "u.item": "|".join(["10", "A (1999)", "", "", "", *"0" * 19]) + "\n",
    }
    (tmp_path / files[0]).write_text(movies[files[0]])
    (tmp_path / files[1]).write_text(rows)
    with pytest.raises(
        DataError, match=f"{files[1]} has no rows of four fields.*{re.escape(found)}"
    ):
        read(tmp_path)


def test_missing_file_and_unknown_layout_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no MovieLens layout that is known; expected one"):
        read(tmp_path)
    folder = write_csv(tmp_path / "ml")
    (folder / "movies.csv").unlink()
    with pytest.raises(DataError, match=r"movies\.csv does not exist"):
        read(folder)
    with pytest.raises(DataError, match=r"is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        read(write_csv(tmp_path / "other"), descriptions=tmp_path / "nowhere.jsonl")


def test_folder_around_the_folder_is_found(tmp_path):
    write_csv(tmp_path / "ml")
    assert read(tmp_path).items.height == 3


@needs_data
def test_latest_small_has_the_counts_its_publisher_states():
    raw = read(MOVIES / "ml-latest-small", descriptions=MOVIES / "descriptions.jsonl")
    assert raw.items.height == 9_742
    assert (raw.items["description"] != "").sum() == 6_322
    assert (raw.items["text"] != "").all()
    assert raw.items.filter(pl.col("item_id") == "2571")["title"].to_list() == ["The Matrix"]
    counts = raw.interactions.select(pl.len(), pl.col("user_id").n_unique()).collect().row(0)
    assert counts == (100_836, 610)


def test_zip_is_no_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"is not a folder; give a folder"):
        read(tmp_path / "ml.zip")
