"""Report files for a repository: Markdown, its drawing, and its figures."""

from pathlib import Path
from typing import Any

from sidrec.comparison.plan.comparison_settings import ReportSettings
from sidrec.comparison.report.markdown import to_markdown
from sidrec.comparison.report.pareto_plot import pareto_svg
from sidrec.errors import ConfigError
from sidrec.files import atomic_file, write_json

_XML = '<?xml version="1.0" encoding="utf-8"?>\n'


def publish(report: dict[str, Any], settings: ReportSettings) -> None:
    """Write Markdown, SVG and JSON to ``settings.publish``; None writes nothing.

    Without search requests there is no front, and so no SVG.

    The JSON leaves out what only the page shows: lists side by side and the use of every code.

    Args:
        report: Content of ``report.json``.
        settings: Target path, and the discussion to insert before the table.

    Raises:
        ConfigError: If the discussion cannot be read.
    """
    if settings.publish is None:
        return
    target, said = Path(settings.publish), read_discussion(settings)
    picture = (
        [f"![Pareto front]({target.name}.svg)", ""] if report["num_requests"]["search"] else []
    )
    body = to_markdown(report, before_table=[*picture, *said])
    kept = {key: value for key, value in report.items() if key != "lists"}
    kept["systems"] = [
        {key: value for key, value in row.items() if key != "usage"} for row in report["systems"]
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target.with_suffix(".json"), kept)
    files = {".md": body}
    if picture:
        files[".svg"] = _XML + str(pareto_svg(report["systems"]))
    for ending, text in files.items():
        with atomic_file(target.with_suffix(ending)) as temporary:
            temporary.write_text(text)


def read_discussion(settings: ReportSettings) -> list[str]:
    """Read the lines of the discussion of the figures; none without a file.

    Raises:
        ConfigError: If it cannot be read.
    """
    if settings.discussion is None:
        return []
    try:
        return [*Path(settings.discussion).read_text().splitlines(), ""]
    except OSError as error:
        raise ConfigError(
            f"report: discussion: {settings.discussion} cannot be read: {error.strerror}."
        ) from None
