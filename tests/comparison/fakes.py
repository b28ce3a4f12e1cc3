"""Stages that write what real ones would, at once: for the logic of the graph and the report."""

from pathlib import Path

import numpy as np
import torch
import yaml

from sidrec.comparison.plan.stages import Stage
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus, popularity
from sidrec.figures import Prediction, evaluate
from sidrec.files import write_json
from sidrec.generator.training.predictions import write_predictions
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import TASKS, ItemEmbeddings, SemanticIdTable


class FakeLauncher:
    """Writes a stage's files; counts calls.

    Args:
        corpus: That the runs belong to.
        failing: Labels (parts of them) of stages that end with exit code 1.
    """

    def __init__(self, corpus: Corpus, *, failing=(), tasks=TASKS):
        self.corpus, self.failing, self.tasks = corpus, failing, tasks
        self.failing_keys: set[str] = set()
        self.ran: list[str] = []

    def __call__(
        self, stage: Stage, arguments: list[str], log: Path, *, num_threads: int | None = None
    ) -> int:
        self.num_threads = num_threads
        self.ran.append(stage.label)
        log.write_text(f"{' '.join(arguments)}\nsidrec: something broke\n")
        if stage.key in self.failing_keys or any(part in stage.label for part in self.failing):
            return 1
        folder = Path(arguments[-1])
        seed = int(stage.key, 16) % 2**31
        if stage.kind == "ids":
            bundle_of(self.corpus, seed).save(folder)
            return 0
        if stage.command == "fit":
            run = RunDirectory(folder)
            run.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
            run.last_checkpoint.write_bytes(b"weights")
            if stage.kind == "embeddings":
                bundle_of(self.corpus, seed).save(run.semantic_ids)
            shares = {
                flag.rsplit(".", 1)[1]: float(value)
                for flag, value in stage.options
                if "_share" in flag
            }
            run.config.write_text(yaml.safe_dump({"data": {"init_args": {"tasks": shares}}}))
            run.write_manifest(state="finished", corpus_fingerprint=self.corpus.fingerprint)
            return 0
        write_answers(folder, self.corpus, seed=seed, tasks=self.tasks)
        return 0


def bundle_of(corpus: Corpus, seed: int) -> SemanticIdBundle:
    drawn = torch.Generator().manual_seed(seed)
    vectors = torch.randn(corpus.num_items, 4, generator=drawn)
    return SemanticIdBundle(
        table=SemanticIdTable(
            torch.randint(0, 8, (corpus.num_items, 3), generator=drawn), (8, 8, 8)
        ),
        embeddings=ItemEmbeddings(vectors, "hash", corpus.fingerprint),
        item_ids=corpus.item_ids(),
        titles=corpus.item_titles(),
        codebooks={},
        quantizer={},
        policy={},
        source={},
    )


def write_answers(
    folder: Path, corpus: Corpus, *, seed: int, tasks=TASKS, split="test", quality=0.3, more=()
) -> None:
    """Write a tested run that finds the right answer about ``quality`` of the times."""
    drawn = np.random.default_rng(seed)
    asked = {
        "search": search_requests(corpus, "test"),
        "recommendation": recommendation_requests(corpus, "test"),
    }
    predictions = list(more)
    for task in tasks:
        for request in asked[task]:
            items = drawn.permutation(corpus.num_items)[:12].tolist()
            if drawn.random() < quality:
                items = [request.relevant[0], *(i for i in items if i != request.relevant[0])][:12]
            predictions.append(
                Prediction(
                    request_id=request.request_id,
                    task=task,
                    split=split,
                    items=tuple(items),
                    scores=tuple(-float(n) for n in range(len(items))),
                    semantic_id_ranks=(0,) * len(dict.fromkeys(request.relevant)),
                    relevant=tuple(dict.fromkeys(request.relevant)),
                    history_length=len(request.history),
                )
            )
    counts = popularity(corpus.train_interactions(), corpus.num_items)
    run = RunDirectory(folder)
    write_predictions(run.predictions, predictions)
    ids = {"ids/collision_rate": 0.1, "ids/collision_rate_before": 0.4}
    write_json(run.metrics, evaluate(predictions, counts) | ids)
    run.write_manifest(state="finished", corpus_fingerprint=corpus.fingerprint)
