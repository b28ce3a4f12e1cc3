"""Pack a query file as the resource that comes with sidrec; see sidrec/corpus/resources/README.md.

python scripts/pack_queries.py --queries queries_llm.jsonl --movies ml-latest-small/movies.csv
"""

import argparse
import csv
import json
import lzma
from pathlib import Path

from sidrec.console import say
from sidrec.corpus.queries.query_files import PACKAGED, load_query_files
from sidrec.corpus.reading.item_text import title_and_year
from sidrec.files import atomic_file, sha256_of_file

RESOURCE = Path(__file__).parents[1] / "sidrec" / "corpus" / "resources" / f"{PACKAGED}.jsonl.xz"


def main() -> None:
    """Replace every item id by the film's title and year, and write the resource."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--movies", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESOURCE)
    arguments = parser.parse_args()
    with arguments.movies.open(encoding="utf-8", newline="") as stream:
        titles = {row["movieId"]: row["title"] for row in csv.DictReader(stream)}
    lines = []
    for query in load_query_files([arguments.queries]):
        (item_id,) = query.item_ids
        title = titles[item_id].strip()
        row = {
            "query_id": query.query_id,
            "text": query.text,
            "title": title.rpartition(" (")[0],
            "year": title_and_year(title)[1],
            "group": query.group,
            "split": query.split,
        }
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    with atomic_file(arguments.out) as temporary:
        temporary.write_bytes(
            lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
        )
    say(f"{arguments.out}: {len(lines):,} queries, sha256 {sha256_of_file(arguments.out)}")


if __name__ == "__main__":
    main()
