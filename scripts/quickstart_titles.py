"""Print the titles of retrieved items: quickstart_titles.py REQUESTS RESULTS CORPUS."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

SHOWN = 5


def main(requests: Path, results: Path, corpus: Path) -> None:
    """Write each request with the titles of its first items, best first, to standard output."""
    table = pq.read_table(corpus / "items.parquet", columns=["item_id", "title"]).to_pydict()
    title_of = dict(zip(table["item_id"], table["title"], strict=True))
    for asked, answered in zip(_lines(requests), _lines(results), strict=True):
        history = [title_of.get(item_id, item_id) for item_id in asked.get("history", ())]
        sys.stdout.write(f"\n{asked['task']}: {asked.get('query') or ' + '.join(history)}\n")
        if "error" in answered:
            sys.stdout.write(f"  {answered['error']}\n")
        for item in answered.get("items", ())[:SHOWN]:
            code = "-".join(map(str, item["semantic_id"]))
            sys.stdout.write(f"  {item['score']:7.2f}  {code:>11}  {title_of[item['item_id']]}\n")


def _lines(source: Path) -> list[dict]:
    return [json.loads(line) for line in source.read_text().splitlines() if line.strip()]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
