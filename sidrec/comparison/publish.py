"""A report as files that belong into a repository: Markdown with its drawing, and its figures."""

from pathlib import Path
from typing import Any

from sidrec.comparison.markdown import to_markdown
from sidrec.comparison.plots import pareto_svg
from sidrec.errors import ConfigError
from sidrec.files import atomic_file, write_json

_XML = '<?xml version="1.0" encoding="utf-8"?>\n'


def publish(report: dict[str, Any], target: Path, *, discussion: Path | None) -> None:
    """Write ``target.md``, ``target.svg`` and ``target.json``.

    The JSON leaves out what the page alone shows: lists side by side and the use of every code.

    Args:
        report: Content of ``report.json``.
        target: Path without its ending.
        discussion: Markdown that people wrote about the figures; stands before the table.

    Raises:
        ConfigError: If the discussion cannot be read.
    """
    said = _read(discussion)
    body = to_markdown(report, before_table=[f"![Pareto front]({target.name}.svg)", "", *said])
    kept = {key: value for key, value in report.items() if key != "lists"}
    kept["systems"] = [
        {key: value for key, value in row.items() if key != "usage"} for row in report["systems"]
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target.with_suffix(".json"), kept)
    for ending, text in ((".svg", _XML + str(pareto_svg(report["systems"]))), (".md", body)):
        with atomic_file(target.with_suffix(ending)) as temporary:
            temporary.write_text(text)


def _read(discussion: Path | None) -> list[str]:
    if discussion is None:
        return []
    try:
        return [*discussion.read_text().splitlines(), ""]
    except OSError as error:
        raise ConfigError(
            f"report: discussion: {discussion} cannot be read: {error.strerror}."
        ) from None
