"""Weights & Biases copy of the report's tables and plots, through Lightning's logger."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sidrec.comparison.plan.comparison_settings import WandbSettings
from sidrec.comparison.report.html_page import report_figures
from sidrec.comparison.report.markdown import main_table, tests_table
from sidrec.console import say

_GROUP = "sidrec-compare"


def log_report(report: dict[str, Any], settings: WandbSettings, out: Path) -> None:
    """Log the tables, the plots of the page and the mean figures; print failures.

    The report's files are complete before this call, so a missing package, a missing account or an
    unreachable server affects only the copy.

    Args:
        report: Content of ``report.json``.
        settings: Project, and whether data may leave the machine.
        out: Folder of the comparison; W&B's files go to ``out/wandb``.
    """
    try:
        from lightning.pytorch.loggers import WandbLogger

        out.mkdir(parents=True, exist_ok=True)
        logger = WandbLogger(
            project=settings.project,
            offline=settings.offline,
            save_dir=str(out),
            name=report["title"],
            group=_GROUP,
            job_type="compare",
            tags=["sidrec", "compare"],
        )
        _log(logger, report, out)
        logger.experiment.finish()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"not logged to Weights & Biases: {reason[:300]}; the report's files are complete")


def _log(logger: Any, report: dict[str, Any], out: Path) -> None:  # noqa: ANN401
    for name, (headings, rows) in (
        ("systems", main_table(report)),
        ("tests", tests_table(report)),
    ):
        logger.log_table(key=name, columns=headings, data=rows)
    for name, figure in report_figures(report).items():
        with TemporaryDirectory(dir=out) as folder:
            plot = Path(folder) / f"{name}.png"
            figure.savefig(plot, dpi=120)
            logger.log_image(key=name, images=[str(plot)])
    facts = ("command", "version", "corpus_fingerprint", "num_items", "seeds", "settings")
    logger.log_hyperparams({key: report[key] for key in facts if key in report})
    means = {
        f"{row['name']}/{key}": figure["mean"]
        for row in report["systems"]
        for key, figure in row["figures"].items()
        if isinstance(figure, dict) and figure["mean"] is not None
    }
    logger.log_metrics(means | {"hypervolume": report["hypervolume"]})
