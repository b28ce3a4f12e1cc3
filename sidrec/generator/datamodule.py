"""Training examples and evaluation requests of both tasks for Lightning."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.raw import Split
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.distributed import rank_and_world_size
from sidrec.errors import ConfigError, DataError
from sidrec.generator.batches import GeneratorBatch, batch_of_requests
from sidrec.generator.examples import GeneratorBatches, RecommendationExamples, SearchExamples
from sidrec.generator.schedule import BucketedSchedule
from sidrec.pairs.batches import BatchNumber, PairBatchSampler
from sidrec.pairs.query_item import query_item_pairs, train_query_rows
from sidrec.types import Request

_NOTHING = np.zeros(0, dtype=np.int64)


class GeneratorDataModule(L.LightningDataModule):
    """Queries and histories of one corpus, one task per batch.

    Args:
        corpus: Corpus directory; ``--from`` gives the encoder run's.
        batch_size: Training examples per rank.
        eval_batch_size: Requests decoded together on a rank.
        search_share: Share of the batches that are search; 0 switches the task off.
        recommendation_share: Share of the batches that are recommendation.
        indexing_share: Share of the search examples that are item texts → their own IDs.
        max_history_items: Only the most recent items of a history are read.
        target_window: A training target is drawn from the next so many interactions.
        history_dropout: Probability with which an item of a training history is left out.
        exclude_history: Leave the user's own items out of recommendation lists.
        pool_batches: Batches sorted by length together; 1 switches bucketing off.
        valid_requests: Validation requests per task, the first ones by a fixed stride; None: all.
        seed: Of shuffles and draws.
        num_workers: Processes that make batches.
    """

    def __init__(
        self,
        corpus: str,
        batch_size: int,
        eval_batch_size: int,
        search_share: float,
        recommendation_share: float,
        indexing_share: float,
        max_history_items: int,
        target_window: int,
        history_dropout: float,
        exclude_history: bool,
        pool_batches: int,
        valid_requests: int | None,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= indexing_share < 1:
            raise ConfigError(f"data.indexing_share must lie in [0, 1), got {indexing_share}.")
        self.corpus_folder = Path(corpus)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.mix = (search_share, recommendation_share)
        self.indexing_share, self.max_history_items = indexing_share, max_history_items
        self.target_window, self.history_dropout = target_window, history_dropout
        self.exclude_history, self.pool_batches = exclude_history, pool_batches
        self.valid_requests, self.seed, self.num_workers = valid_requests, seed, num_workers
        self._first = BatchNumber(0, 0)
        self._loaded: Corpus | None = None
        self._batches: GeneratorBatches | None = None

    @property
    def corpus(self) -> Corpus:
        """The corpus, loaded when first asked for."""
        if self._loaded is None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def batches(self) -> GeneratorBatches:
        """This rank's training batches, by number."""
        if self._batches is None:
            self._batches = self._lay_out()
        return self._batches

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.batches)

    def train_queries(self) -> list[str]:
        """Return the texts of the train queries, in the order of their numbers."""
        texts: list[str] = self.corpus.queries.select(train_query_rows(self.corpus))["text"][:]
        return list(texts)

    def requests(self, split: Split) -> list[Sequence[Request]]:
        """Return the requests of a split: of search, then of recommendation."""
        return [search_requests(self.corpus, split), recommendation_requests(self.corpus, split)]

    def train_dataloader(self) -> DataLoader[GeneratorBatch]:
        """Return this rank's batches, from where a resumed run stopped."""
        return DataLoader(
            self.batches,
            batch_sampler=PairBatchSampler(len(self.batches), self._first),
            collate_fn=_the_only,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[Request]]:
        """Return this rank's validation requests, one loader per task."""
        return [self._loader(requests, self.valid_requests) for requests in self.requests("valid")]

    def test_dataloader(self) -> list[DataLoader[Request]]:
        """Return this rank's test requests, one loader per task."""
        return [self._loader(requests, None) for requests in self.requests("test")]

    def predict_dataloader(self) -> list[DataLoader[Request]]:
        """Return the same as ``test_dataloader``."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands and what must not change while it runs."""
        if self.trainer is None or self._batches is None:
            return {}
        loop = self.trainer.fit_loop
        epoch = max(0, loop.epoch_progress.current.ready - 1)
        step = loop.epoch_loop.batch_progress.current.processed
        if step >= len(self._batches):
            epoch, step = epoch + 1, 0
        return {"epoch": epoch, "step": step, **self._fixed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ConfigError: If in the middle of an epoch a setting differs that decides its batches.
            DataError: If the corpus is another one.
        """
        if not state_dict:
            return
        fixed = self._fixed()
        if state_dict["corpus"] != fixed["corpus"]:
            raise DataError(
                f"{self.corpus_folder} is not the corpus that this run began with; "
                "give that one, or begin a new run directory."
            )
        changed = [name for name, value in fixed.items() if state_dict[name] != value]
        if changed and state_dict["step"] > 0:
            raise ConfigError(
                "This run stopped in the middle of an epoch; to resume it keep "
                + ", ".join(f"{name} {state_dict[name]} (now {fixed[name]})" for name in changed)
                + "."
            )
        self._first = BatchNumber(state_dict["epoch"], state_dict["step"])

    def _fixed(self) -> dict[str, Any]:
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": [len(rows) for rows in schedule.lengths],
            "mix": list(schedule.mix),
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "pool_batches": schedule.pool_batches,
            "seed": schedule.seed,
        }

    def _lay_out(self) -> GeneratorBatches:
        search = self._search_examples() if self.mix[0] > 0 else None
        recommendation = self._recommendation_examples() if self.mix[1] > 0 else None
        rank, world_size = rank_and_world_size()
        schedule = BucketedSchedule(
            lengths=(
                _NOTHING if search is None else search.lengths(),
                _NOTHING if recommendation is None else recommendation.lengths(),
            ),
            mix=self.mix,
            batch_size=self.batch_size,
            world_size=world_size,
            pool_batches=self.pool_batches,
            seed=self.seed,
        )
        return GeneratorBatches(schedule, rank, search, recommendation)

    def _search_examples(self) -> SearchExamples:
        pairs = query_item_pairs(self.corpus, rows="query")
        if not len(pairs):
            raise DataError(
                f"{self.corpus_folder}/queries.parquet has no train query; run `sidrec prepare` "
                "with --queries, or set data.search_share to 0."
            )
        num_indexing = round(len(pairs) * self.indexing_share / (1 - self.indexing_share))
        return SearchExamples(pairs, self.train_queries(), self.corpus.item_texts(), num_indexing)

    def _recommendation_examples(self) -> RecommendationExamples:
        train = self.corpus.train_interactions()
        check_train_only(self.corpus, train, "generator training")
        return RecommendationExamples.of(
            train,
            max_history_items=self.max_history_items,
            target_window=self.target_window,
            history_dropout=self.history_dropout,
        )

    def _loader(self, requests: Sequence[Request], limit: int | None) -> DataLoader[Request]:
        rows = np.arange(len(requests))
        if limit is not None and limit < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
        rank, world_size = rank_and_world_size()
        size = -(-len(rows) // world_size)  # the same number of steps on every rank
        mine = rows[rank * size : (rank + 1) * size]
        return DataLoader(
            [(int(row), requests[int(row)]) for row in mine],  # type: ignore[arg-type]
            batch_size=self.eval_batch_size,
            collate_fn=partial(
                _collate,
                max_history_items=self.max_history_items,
                exclude_history=self.exclude_history,
            ),
        )


def _collate(
    rows: list[tuple[int, Request]], *, max_history_items: int, exclude_history: bool
) -> GeneratorBatch:
    numbers, requests = zip(*rows, strict=True)
    return batch_of_requests(
        requests,
        request_rows=numbers,
        max_history_items=max_history_items,
        exclude_history=exclude_history,
    )


def _the_only(batches: list[GeneratorBatch]) -> GeneratorBatch:
    return batches[0]
