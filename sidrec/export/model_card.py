"""Cards of exported models and tables, in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sidrec.files import read_json
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config

_SHOWN = ("recall@", "ndcg@", "mrr", "ids/", "recall_harmonic_mean")
DATA_LICENSE = "The license of the data above applies to titles and to what was learned from them."
_UNKNOWN = "unknown: the corpus of the run is not at hand"


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run for its cards.

    Attributes:
        name: Name of the run's folder.
        corpus: Origin of the corpus.
        corpus_license: What its publisher asks.
        counts: Sizes of the corpus.
        corpus_fingerprint: Fingerprint in the run's manifest.
        revision: Version and git revision of sidrec in training.
        figures: Content of ``metrics.json``; empty before ``sidrec test``.
        bundle_hash: Hash of the Semantic IDs; None without.
    """

    name: str
    corpus: str
    corpus_license: str
    counts: Mapping[str, int]
    corpus_fingerprint: str
    revision: str
    figures: Mapping[str, Any]
    bundle_hash: str | None

    @classmethod
    def of(cls, run: RunDirectory, *, bundle_hash: str | None) -> "RunFacts":
        """Read the facts of a finished run; a corpus that is gone is unknown."""
        manifest = read_json(run.manifest)
        data = read_config(run.config)["data"]
        file = Path(data.get("init_args", data)["corpus"]) / "corpus.json"
        corpus = read_json(file) if file.exists() else {}
        version = manifest.get("versions", {}).get("sidrec", "unknown")
        return cls(
            name=run.root.resolve().name,
            corpus=corpus.get("source", _UNKNOWN),
            corpus_license=corpus.get("license", _UNKNOWN),
            counts={key: corpus["counts"][key] for key in _COUNTED} if corpus else {},
            corpus_fingerprint=manifest.get("corpus_fingerprint") or "unknown",
            revision=f"{version}, git {manifest.get('git_revision') or 'unknown'}",
            figures=read_json(run.metrics) if run.metrics.exists() else {},
            bundle_hash=bundle_hash,
        )


_COUNTED = ("items", "users", "interactions", "queries")


def head_of(library: str, *, tags: Sequence[str]) -> str:
    """Return the head of a model card, which the hub reads."""
    head = {"library_name": library, "license": "other", "tags": [*tags, "sidrec"]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"


def card_of(facts: RunFacts, *, title: str, use: str, limits: Sequence[str]) -> str:
    """Return the body of a card.

    Args:
        facts: Facts of the run.
        title: What it is.
        use: How it is loaded, in Markdown.
        limits: What it is not for, or lacks; one sentence each.
    """
    counts = ", ".join(f"{number:,} {what}" for what, number in facts.counts.items())
    rows = [
        f"| {key} | {value:.4f} |" if isinstance(value, float) else f"| {key} | {value} |"
        for key, value in facts.figures.items()
        if any(name in key for name in _SHOWN)
    ]
    figures = "\n".join(["| figure | value |", "|---|---|", *rows])
    return f"""# {title}

Trained by sidrec {facts.revision}, run `{facts.name}`.

## Use

{use}

## Data

- Corpus: {facts.corpus}{f" ({counts})" if counts else ""}
- License of the data: {facts.corpus_license}
- Fingerprint of the corpus: `{facts.corpus_fingerprint}`
- Hash of the Semantic IDs: `{facts.bundle_hash or "none"}`

## Figures

{figures if rows else "None: `sidrec test` has not been run."}

## Limits

{chr(10).join(f"- {limit}" for limit in limits)}
"""
