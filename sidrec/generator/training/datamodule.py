"""Lightning data module of training examples and evaluation requests of both tasks."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader, Dataset

from sidrec.corpus.cold_start import items_to_index
from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.schema import Split
from sidrec.distributed import rank_and_world_size
from sidrec.errors import ConfigError, DataError
from sidrec.generator.model.batch import GeneratorBatch, batch_of_requests
from sidrec.generator.model.generator_settings import (
    EvaluationSettings,
    GeneratorTaskSettings,
    HistorySettings,
)
from sidrec.generator.training.bucketed_schedule import BucketedSchedule
from sidrec.generator.training.examples import (
    GeneratorBatches,
    RecommendationExamples,
    SearchExamples,
)
from sidrec.generator.training.pseudo_queries import PseudoQueries
from sidrec.pairs.query_item import query_item_pairs, train_query_rows
from sidrec.runs.lightning_private import uses_distributed_sampler
from sidrec.settings import PositiveInt
from sidrec.training.resumable_data import CorpusDataModule
from sidrec.types import TASKS, Request, Task

EMPTY_BATCH = -1  # number of a batch without requests, for a rank that has no other


class GeneratorDataModule(CorpusDataModule[GeneratorBatches]):
    """Queries and histories of one corpus, one task per batch.

    Args:
        corpus: Corpus directory; ``--from`` gives the encoder run's.
        tasks: Shares of both tasks in the batches.
        histories: User histories and their training targets.
        evaluation: Evaluation requests.
        batch_size: Training examples per rank.
        bucket_batches: Batches sorted by length together; 1 switches bucketing off.
        seed: Seed of shuffles, draws and dropout.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(
        self,
        corpus: str,
        *,
        tasks: GeneratorTaskSettings = GeneratorTaskSettings(),
        histories: HistorySettings = HistorySettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        batch_size: PositiveInt = 128,
        bucket_batches: PositiveInt = 20,
        seed: int = 1234,
        num_workers: int = 0,
    ) -> None:
        super().__init__(corpus, num_workers)
        self.tasks, self.histories, self.evaluation = tasks, histories, evaluation
        self.mix = (tasks.search_share, tasks.recommendation_share)
        self.batch_size, self.bucket_batches, self.seed = batch_size, bucket_batches, seed
        self._requests: dict[Split, list[Sequence[Request]]] = {}

    @property
    def trained_tasks(self) -> tuple[Task, ...]:
        """Tasks with a share of the batches above 0."""
        return tuple(task for task, share in zip(TASKS, self.mix, strict=True) if share > 0)

    def setup(self, stage: str) -> None:
        """Refuse a trainer that would split each rank's batches over the ranks again."""
        del stage
        if rank_and_world_size()[1] > 1 and uses_distributed_sampler(self.trainer):
            raise ConfigError(
                "Set trainer.use_distributed_sampler to false: GeneratorDataModule gives every "
                "rank its own batches."
            )

    def train_queries(self) -> list[str]:
        """Return the texts of the train queries, in row order."""
        texts: list[str] = self.corpus.queries.select(train_query_rows(self.corpus))["text"][:]
        return list(texts)

    def requests(self, split: Split) -> list[Sequence[Request]]:
        """Return the requests of a split: search, then recommendation."""
        if split not in self._requests:
            self._requests[split] = [
                search_requests(self.corpus, split),
                recommendation_requests(self.corpus, split),
            ]
        return self._requests[split]

    def val_dataloader(self) -> list[DataLoader[GeneratorBatch]]:
        """Return this rank's validation requests, one loader per task."""
        return self._loaders("valid", self.evaluation.valid_requests)

    def test_dataloader(self) -> list[DataLoader[GeneratorBatch]]:
        """Return this rank's test requests, one loader per task."""
        return self._loaders("test", None)

    def predict_dataloader(self) -> list[DataLoader[GeneratorBatch]]:
        """Return the same as ``test_dataloader``."""
        return self.test_dataloader()

    def transfer_batch_to_device(
        self, batch: GeneratorBatch, device: torch.device, dataloader_idx: int
    ) -> GeneratorBatch:
        """Move a batch to the device, but for the rows of its texts: the host looks them up."""
        moved: GeneratorBatch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved._replace(text_rows=batch.text_rows)

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that determine the batches."""
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": list(schedule.num_rows),
            "mix": list(schedule.mix),
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "pool_batches": schedule.pool_batches,
            **asdict(self.histories),
            "exclude_history": self.corpus.exclude_history,
            "seed": schedule.seed,
            **({"indexing_text": "words"} if self.tasks.indexing_text == "words" else {}),
        }

    def lay_out(self, rank: int, world_size: int) -> GeneratorBatches:
        """Return the training batches of a rank: examples of both tasks and their schedule."""
        search = self._search_examples() if self.mix[0] > 0 else None
        recommendation = self._recommendation_examples() if self.mix[1] > 0 else None
        schedule = BucketedSchedule(
            num_rows=(len(search or ()), len(recommendation or ())),
            length_of=(
                _no_length if search is None else search.length_of,
                _no_length if recommendation is None else recommendation.length_of,
            ),
            mix=self.mix,
            batch_size=self.batch_size,
            world_size=world_size,
            pool_batches=self.bucket_batches,
            seed=self.seed,
        )
        return GeneratorBatches(schedule, rank, search, recommendation)

    def _search_examples(self) -> SearchExamples:
        pairs = query_item_pairs(self.corpus, rows="query")
        if not len(pairs):
            raise DataError(
                f"{self.corpus_folder}/queries.parquet has no train query; run `sidrec prepare` "
                "with --queries, or set data.tasks.search_share to 0."
            )
        share = self.tasks.indexing_share
        num_indexing = round(len(pairs) * share / (1 - share))
        texts, indexed = self.corpus.item_texts(), items_to_index(self.corpus)
        words = PseudoQueries.of(texts) if self.tasks.indexing_text == "words" else None
        return SearchExamples(pairs, self.train_queries(), texts, indexed, num_indexing, words)

    def _recommendation_examples(self) -> RecommendationExamples:
        train = self.corpus.train_interactions()
        check_train_only(self.corpus, train, "generator training")
        return RecommendationExamples.of(
            train, **asdict(self.histories), exclude_history=self.corpus.exclude_history
        )

    def _loaders(self, split: Split, limit: int | None) -> list[DataLoader[GeneratorBatch]]:
        pairs = zip(TASKS, self.requests(split), strict=True)
        return [self._loader(task, requests, limit) for task, requests in pairs]

    def _loader(
        self, task: Task, requests: Sequence[Request], limit: int | None
    ) -> DataLoader[GeneratorBatch]:
        rows = np.arange(len(requests))
        if limit is not None and limit < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
        batches = RequestBatches(
            task,
            requests,
            rows,
            self.evaluation.batch_size,
            self.histories.max_history_items,
            self.corpus.exclude_history,
        )
        rank, world_size = rank_and_world_size()
        first, end = (len(batches) * r // world_size for r in (rank, rank + 1))
        own: Sequence[int] = range(first, end)
        if not own:  # Lightning would warn, or skip the loop while other ranks wait
            own = [EMPTY_BATCH]
        return DataLoader(batches, batch_size=None, sampler=own)


@dataclass(frozen=True)
class RequestBatches(Dataset[GeneratorBatch]):
    """Evaluation requests of one task, collated batch by batch on demand.

    Each batch belongs to one rank as a whole, so the batches, and with them the bits of every
    result, do not depend on the number of ranks. Batch ``EMPTY_BATCH`` has no requests.

    Attributes:
        task: Task of the requests.
        requests: Requests of one task and split.
        rows: Rows of ``requests`` to use, ascending.
        batch_size: Requests in a batch; the last one may hold fewer.
        max_history_items: Number of most recent items of a history to read.
        exclude_history: Leave the user's own items out of recommendation lists.
    """

    task: Task
    requests: Sequence[Request]
    rows: Int64[np.ndarray, " request"]
    batch_size: int
    max_history_items: int
    exclude_history: bool

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, number: int) -> GeneratorBatch:
        start = len(self.rows) if number == EMPTY_BATCH else number * self.batch_size
        rows = self.rows[start : start + self.batch_size].tolist()
        return batch_of_requests(
            [self.requests[row] for row in rows],
            task=self.task,
            request_rows=rows,
            max_history_items=self.max_history_items,
            exclude_history=self.exclude_history,
        )


def _no_length(rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    return np.zeros_like(rows)
