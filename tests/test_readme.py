"""The README's Python runs and prints what the page shows; the page stays short."""

import contextlib
import io
import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_block_prints_what_the_page_shows():
    block, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})  # noqa: S102 (our own page)
    assert printed.getvalue() == shown


def test_the_page_is_short():
    assert 700 <= len(TEXT.split()) <= 900


def test_the_quickstart_page_shows_the_table_of_a_run():
    docs = Path(__file__).parents[1] / "docs"
    table = (docs / "results/quickstart.txt").read_text().strip("\n")
    assert f"```text\n{table}\n```" in (docs / "tutorials/quickstart.md").read_text()
