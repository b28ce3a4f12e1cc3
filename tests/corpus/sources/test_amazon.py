import gzip
import json

import pytest

from sidrec.cli.preparing import prepare as command
from sidrec.corpus.sources.amazon import read_amazon
from sidrec.corpus.sources.amazon_files import AmazonFiles, locate_amazon
from sidrec.corpus.sources.raw_catalogue import TICKS_PER_SECOND
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError

ALL_FIELDS = ("title", "brand", "categories", "price", "features", "description")


def write(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    return file


def review_2014(user, item, time=1_300_000_000, rating=5.0):
    row = {"reviewerID": user, "asin": item, "reviewText": "ok", "overall": rating}
    return json.dumps(row | {"unixReviewTime": time, "reviewTime": "03 13, 2011"})


def beauty_2014(folder, meta, reviews=None):
    """Every one of 5 users reviews 5 products; u6 and B6 have one review each and drop out."""
    grid = [review_2014(f"u{u}", f"B{i}", 100 * u + i) for u in range(5) for i in range(5)]
    reviews = grid + [review_2014("u6", "B0"), review_2014("u0", "B6")] + (reviews or [])
    return AmazonFiles(
        write(folder / "reviews_Beauty_5.json.gz", reviews),
        write(folder / "meta_Beauty.json.gz", meta),
        "Beauty",
    )


META_2014 = [
    # dictionaries as Python prints them: single quotes, None, True
    "{'asin': 'B0', 'title': \"Men's &amp; Women's Cream\", 'brand': 'Acme', 'price': 1012.5, "
    "'categories': [['Beauty', 'Skin Care'], ['Gifts', 'For Her']], "
    "'description': '<b>Soft</b> skin'}",
    "{'asin': 'B1', 'description': 'A brush of soft hair', 'categories': [['Beauty', 'Brushes']]}",
    "{'asin': 'B2', 'title': 'Comb', 'salesRank': None, 'related': {'also_bought': ['B0']}}",
    "{'asin': 'B3', 'title': 'Soap', 'imUrl': True}",
    "{'asin': 'B4'}",
    "{'asin': 'B6', 'title': 'Reviewed once'}",
    "{'asin': 'B9', 'title': 'Never reviewed'}",
]


def read(files, generation=2014, *, fields=ALL_FIELDS, titles="fill", core=5):
    return read_amazon(
        files, generation=generation, text_fields=fields, missing_titles=titles, core=core
    )


def test_2014_by_hand(tmp_path, capsys):
    raw = read(beauty_2014(tmp_path, META_2014))
    rows = {row["item_id"]: row for row in raw.items.iter_rows(named=True)}
    assert list(rows) == ["B0", "B1", "B2", "B3", "B4"]
    assert rows["B0"] == {
        "item_id": "B0",
        "title": "Men's & Women's Cream",
        "text": "Men's & Women's Cream. Brand: Acme. Categories: Beauty > Skin Care; Gifts > "
        "For Her. Price: $1012.5. Soft skin.",
        "brand": "Acme",
        "categories": ["Beauty", "Skin Care", "Gifts", "For Her"],
        "price": 1012.5,
    }
    assert rows["B1"]["title"] == "Brushes"
    assert rows["B4"]["title"] == rows["B4"]["text"].rstrip(".") == "B4"
    interactions = raw.interactions.collect()
    assert interactions.height == 25  # of 27: u6's and B6's are outside the 5-core
    assert interactions.row(1) == ("u0", "B1", TICKS_PER_SECOND, 5.0)
    said = capsys.readouterr().err
    assert "27 reviews; left out 0 of products without metadata or title, 2 outside" in said
    assert "2 without title (fill)" in said


@pytest.mark.parametrize(
    ("titles", "core", "item_ids", "num_reviews", "title_of_b1"),
    [
        ("fill", 0, ["B0", "B1", "B2", "B3", "B4", "B6"], 27, "Brushes"),
        ("keep", 0, ["B0", "B1", "B2", "B3", "B6"], 22, ""),  # B4 has no text at all
        ("drop", 0, ["B0", "B2", "B3", "B6"], 17, None),
        ("drop", 3, ["B0", "B2", "B3"], 15, None),
    ],
)
def test_titles_and_core(tmp_path, titles, core, item_ids, num_reviews, title_of_b1):
    raw = read(beauty_2014(tmp_path, META_2014), titles=titles, core=core)
    assert raw.items["item_id"].to_list() == item_ids
    assert raw.interactions.collect().height == num_reviews
    if title_of_b1 is not None:
        assert raw.items["title"][1] == title_of_b1


def test_text_fields_are_chosen_and_ordered(tmp_path):
    raw = read(beauty_2014(tmp_path, META_2014), fields=("brand", "title"))
    assert raw.items["text"][0] == "Brand: Acme. Men's & Women's Cream."


def test_2018_takes_the_first_of_two_descriptions(tmp_path):
    meta = [
        {"asin": "A", "title": "Lamp", "category": ["Home", "Lamps"], "feature": ["Bright", "Red"]},
        {"asin": "A", "title": "Lamp again"},
        {"asin": "B", "title": "Bulb", "brand": "Volt", "price": "$5.00 - $9.99"},
        {"asin": "C", "title": "Shade", "price": ".a-box-inner{background-color:#fff}"},
    ]
    reviews = [review_2014("u", item) for item in "ABC"]
    files = AmazonFiles(
        write(tmp_path / "Home_5.json.gz", reviews),
        write(tmp_path / "meta_Home.json.gz", map(json.dumps, meta)),
        "Home",
    )
    raw = read(files, 2018, core=1)
    assert raw.items["text"].to_list() == [
        "Lamp. Categories: Home > Lamps. Bright Red.",
        "Bulb. Brand: Volt. Price: $5.00.",
        "Shade.",
    ]
    assert raw.items["price"].to_list() == [None, 5.0, None]


def test_2023_has_parent_asin_milliseconds_and_details(tmp_path):
    review = {"user_id": "u", "asin": "child", "parent_asin": "P", "rating": 4.0}
    product = {"parent_asin": "P", "title": "Mask", "store": "Shop", "price": "12.99"}
    product |= {"details": {"Brand": "Own", "Size": {"Width": "5 cm"}}, "features": ["Soft."]}
    product |= {"categories": [], "description": [], "images": [{"thumb": "x"}]}
    files = AmazonFiles(
        write(
            tmp_path / "Masks.jsonl.gz",
            [json.dumps(review | {"timestamp": 1_600_000_000_000, "title": "Great \ud83d"})],
        ),
        write(tmp_path / "meta_Masks.jsonl.gz", [json.dumps(product)]),
        "Masks",
    )
    raw = read(files, 2023, fields=("title", "brand", "price", "features", "details"), core=1)
    assert raw.interactions.collect().rows() == [("u", "P", 1_600_000_000 * TICKS_PER_SECOND, 4.0)]
    assert raw.items["text"].to_list() == [
        "Mask. Brand: Own. Price: $12.99. Soft. Brand: Own; Size: Width: 5 cm."
    ]
    assert "arxiv.org/abs/2403.03952" in raw.license


@pytest.mark.parametrize(
    ("meta", "reviews", "message"),
    [
        (["['asin', 'B0']"], [], "meta_Beauty.json.gz row 1: expected a JSON object or a Python"),
        (["{'asin': __import__('os')}"], [], "row 1 is not a JSON object or a Python dictionary"),
        (["{'title': 'Cream'}"], [], "row 1: expected text or a number as 'asin', the row has ti"),
        (META_2014, ['{"user_id": "u"}'], "row 28: expected text or a number as 'reviewerID', th"),
        (META_2014, [review_2014("u", "B0", "soon")], "row 28: expected a number as 'unixReview"),
        (META_2014[-1:], [], "no review is in the 5-core of products described in"),
    ],
)
def test_bad_rows_are_named(tmp_path, meta, reviews, message):
    with pytest.raises(DataError) as error:
        read(beauty_2014(tmp_path, meta, reviews))
    assert message in str(error.value)


def test_broken_gzip_is_named_with_its_row(tmp_path):
    files = beauty_2014(tmp_path, META_2014)
    files.reviews.write_bytes(files.reviews.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"reviews_Beauty_5.json.gz cannot be read after row \d+ "):
        read(files)
    files.reviews.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"cannot be read after row 0 \(Not a gzipped file"):
        read(files)


def test_unknown_category_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"category of generation 2014; did you mean Beauty\?"):
        locate_amazon("beuty", 2014, cache_folder=tmp_path)
    with pytest.raises(ConfigError, match="Beauty is one of generation 2014"):
        locate_amazon("Beauty", 2023, cache_folder=tmp_path)


def test_the_command_reads_a_folder(tmp_path, capsys):
    beauty_2014(tmp_path / "in", META_2014)
    arguments = ["amazon", "--source", str(tmp_path / "in"), "--generation", "2014"]
    arguments += ["--text_fields", "title", "brand", "--out", str(tmp_path / "out")]
    command.main(arguments)
    corpus = Corpus.load(tmp_path / "out", verify=True)
    assert corpus.item_texts()[0] == "Men's & Women's Cream. Brand: Acme."
    assert corpus.description["counts"]["interactions_test"] == 5
    assert "McAuley" in corpus.description["license"]
    capsys.readouterr()
    (tmp_path / "in" / "other.json").write_text("")
    with pytest.raises(DataError, match=r"holds 2 files of reviews ending in \.json"):
        command.main(arguments)
