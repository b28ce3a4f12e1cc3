"""Files that ``sidrec prepare`` takes as they are; the fuzzing starts from these."""

import io
import zipfile

ITEMS = [
    {"item_id": "a", "title": "Glue", "text": "Strong glue.", "genres": ["x", "y"], "year": 1990},
    {"item_id": "b", "title": "Tape", "text": "Sticky tape.", "genres": ["x"], "year": 1995},
    {"item_id": "c", "title": "Nail", "text": "Iron nail.", "genres": [], "year": None},
    {"item_id": "d", "title": "Saw", "text": "A <b>saw</b>.", "genres": ["z"], "year": 2001},
]
INTERACTIONS = [
    {"user_id": user, "item_id": item, "timestamp": moment, "rating": 3.5}
    for moment, (user, item) in enumerate(
        [("1", "a"), ("1", "b"), ("1", "c"), ("2", "b"), ("2", "d"), ("2", "a"), ("3", "c")]
    )
]
QUERIES = [
    {"query_id": "q1", "query": "what sticks", "item_ids": ["a", "b"], "group": "g", "split": ""},
    {"query_id": "q2", "query": "sticky", "item_ids": ["a"], "group": "g", "split": ""},
    {"query_id": "q3", "query": "iron", "item_ids": ["c"], "group": "h", "split": "test"},
]
_RATINGS = [("1", "10", "4.0", 5), ("1", "20", "3.5", 6), ("1", "30", "5", 7), ("2", "10", "1", 9)]
_MOVIES = [("10", "Toy Story (1995)"), ("20", "Heat (1995)"), ("30", "Postman, The (Il) (1994)")]
_GENRES = 19


def _lines(rows, separator):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows).encode()


def _csv(*rows):
    return _lines(rows, ",")


_MAIN = {
    "movies.csv": _csv(
        ("movieId", "title", "genres"),
        *((number, f'"{title}"', "Drama|War") for number, title in _MOVIES),
    ),
    "ratings.csv": _csv(("userId", "movieId", "rating", "timestamp"), *_RATINGS),
}
LAYOUTS = {
    "csv": {
        **_MAIN,
        "tags.csv": _csv(("userId", "movieId", "tag", "timestamp"), ("1", "10", "toys", 4)),
        "genome-scores.csv": _csv(("movieId", "tagId", "relevance"), (10, 1, 0.9), (20, 2, 0.5)),
        "genome-tags.csv": _csv(("tagId", "tag"), (1, "plastic"), (2, "heist")),
        "descriptions.jsonl": b'{"movieId": 10, "description": "Toys live."}\n',
    },
    "dat": {
        "movies.dat": _lines([(*movie, "Drama|War") for movie in _MOVIES], "::"),
        "ratings.dat": _lines(_RATINGS, "::"),
        "tags.dat": b"1::10::toys::4\n",
    },
    "100k": {
        "u.item": _lines(
            [
                (*movie, "01-Jan-1995", "", "http://x", *(["0", "1"] + ["0"] * 17))
                for movie in _MOVIES
            ],
            "|",
        ),
        "u.data": _lines(_RATINGS, "\t"),
    },
    "atomic": {
        "ml.item": _lines(
            [
                ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
                *((number, title[:-7], "1995", "Drama War") for number, title in _MOVIES),
            ],
            "\t",
        ),
        "ml.inter": _lines(
            [("user_id:token", "item_id:token", "rating:float", "timestamp:float"), *_RATINGS], "\t"
        ),
    },
}


def _zip(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"ml/{name}", data)
    return buffer.getvalue()


LAYOUTS["zip"] = {"ml.zip": _zip(_MAIN)}
MOVIE_QUERIES = (
    b'{"query_id": "q1", "query": "toys", "movieIds": [10], "group": "g", "split": "test"}\n'
    b'{"query_id": "q2", "query": "a heist", "movieIds": ["20", 30]}\n'
)
