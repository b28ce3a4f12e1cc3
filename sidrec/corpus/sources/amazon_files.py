"""Amazon review files: from a folder, or downloaded by category."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from sidrec.corpus.prepare_settings import Generation
from sidrec.corpus.reading.gzip_download import fetch_gzip
from sidrec.errors import ConfigError, DataError

_URLS = {
    2014: "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles",
    2018: "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
    2023: "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw",
}
# Reviews, then metadata; the reviews of 2014 and 2018 are the publisher's 5-core files.
_FILES = {
    2014: ("reviews_{}_5.json.gz", "meta_{}.json.gz"),
    2018: ("categoryFilesSmall/{}_5.json.gz", "metaFiles2/meta_{}.json.gz"),
    2023: ("review_categories/{}.jsonl.gz", "meta_categories/meta_{}.jsonl.gz"),
}
_SHARED = (
    *("Automotive", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories"),
    *("Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics", "Home_and_Kitchen"),
    *("Kindle_Store", "Movies_and_TV", "Musical_Instruments", "Office_Products"),
    *("Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors"),
    *("Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games", "Grocery_and_Gourmet_Food"),
)
_SHARED_SINCE_2018 = (
    *("All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Gift_Cards"),
    *("Industrial_and_Scientific", "Magazine_Subscriptions", "Software"),
)
CATEGORIES = {
    2014: (
        *_SHARED,
        *("Amazon_Instant_Video", "Apps_for_Android", "Baby", "Beauty"),
        "Health_and_Personal_Care",
    ),
    2018: (*_SHARED, *_SHARED_SINCE_2018, "AMAZON_FASHION", "Luxury_Beauty", "Prime_Pantry"),
    2023: (
        *(*_SHARED, *_SHARED_SINCE_2018, "Amazon_Fashion", "Baby_Products", "Handmade_Products"),
        *("Beauty_and_Personal_Care", "Health_and_Household", "Health_and_Personal_Care"),
        *("Subscription_Boxes", "Unknown"),
    ),
}
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


class AmazonFiles(NamedTuple):
    """Files of one Amazon category.

    Attributes:
        reviews: File of reviews, one a line.
        meta: File of products, one a line.
        name: Category, or name of the folder.
    """

    reviews: Path
    meta: Path
    name: str


def locate_amazon(source: str, generation: Generation, *, cache_folder: Path) -> AmazonFiles:
    """Return the review and metadata files of a category; download them if needed.

    A second call uses the cache and needs no network. ``SIDREC_AMAZON_URL`` replaces the
    publisher's address by a mirror with the same file names.

    Args:
        source: A category such as ``Beauty``, or a folder with one file ``meta_*`` and one file of
            reviews, both ``.json`` or ``.jsonl``, plain or gzipped.
        generation: Collection of the publisher to which the category belongs.
        cache_folder: Folder of downloads.

    Raises:
        ConfigError: If ``source`` is neither a category of the generation nor a folder.
        DataError: If the folder does not hold one file of each kind, or a download is damaged.
        SidrecError: If the download failed; running the command again resumes it.
    """
    if source in CATEGORIES[generation]:
        return _download(source, generation, cache_folder / "amazon" / str(generation))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _in_folder(folder)
    raise ConfigError(f"--source {source} is neither a folder nor {_known(source, generation)}")


def _known(source: str, generation: Generation) -> str:
    lowered = {name.lower(): name for name in CATEGORIES[generation]}
    near = get_close_matches(source.lower().replace(" ", "_"), lowered, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(lowered[name] for name in near)}?" if near else ""
    others = [str(other) for other, names in CATEGORIES.items() if source in names]
    if others:
        hint = f"{source} is one of generation {' and '.join(others)}."
    return f"a category of generation {generation}; " + (
        hint or f"known are {', '.join(sorted(CATEGORIES[generation]))}."
    )


def _download(category: str, generation: Generation, cache: Path) -> AmazonFiles:
    url = os.environ.get("SIDREC_AMAZON_URL", _URLS[generation]).rstrip("/")
    files = []
    for pattern in _FILES[generation]:
        name = pattern.format(category)
        files.append(cache / Path(name).name)
        fetch_gzip(f"{url}/{name}", files[-1], mirror="SIDREC_AMAZON_URL")
    return AmazonFiles(files[0], files[1], category)


def _in_folder(folder: Path) -> AmazonFiles:
    files = sorted(file for file in folder.iterdir() if file.name.endswith(_ENDINGS))
    meta = [file for file in files if file.name.startswith("meta")]
    reviews = [file for file in files if file not in meta]
    for kind, found in (("meta_*", meta), ("reviews", reviews)):
        if len(found) != 1:
            raise DataError(
                f"{folder} holds {len(found)} files of {kind} ending in {', '.join(_ENDINGS)}, "
                "expected one; give a folder with the two files of one category only."
            )
    return AmazonFiles(reviews[0], meta[0], folder.name)
