"""Training pairs of both tasks for Lightning: where batches come from and where they go on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from sidrec.corpus.leakage import check_train_only, check_train_queries_only
from sidrec.corpus.memmap_cache import derived_folder
from sidrec.errors import ConfigError, DataError
from sidrec.pairs.batches import PairBatches
from sidrec.pairs.item_item import ItemItemPairs, Weighting, item_item_pairs
from sidrec.pairs.query_item import QueryItemPairs, query_item_pairs, train_query_rows
from sidrec.pairs.schedule import PairSchedule
from sidrec.pairs.token_store import TokenStore, load_tokenizer, tokenize_once
from sidrec.training.resumable_data import CorpusDataModule

_TEXTS_AT_ONCE = 4_096


class PairDataModule(CorpusDataModule[PairBatches]):
    """Query–item and item–item pairs of one corpus, one task per batch.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        encoder: Whose tokenizer cuts the texts: hub name, folder, or ``package:NAME/FOLDER``.
        revision: Of the encoder on the hub: branch, tag or commit.
        batch_size: Pairs per rank.
        max_query_tokens: Longer queries are cut; special tokens count.
        max_item_tokens: Longer item texts are cut; special tokens count.
        query_item_share: Share of the batches that are query–item, any scale; 0 switches the
            task off.
        item_item_share: Share of the batches that are item–item; 0 switches the task off. The
            task that runs short is seen whole in an epoch, the other one sampled.
        query_rows: ``query``: every query once an epoch, with one of its items; ``pair``: every
            (query, item) once.
        window: How many interactions a pair of items stands apart, at most.
        cap: Anchors that one user gives in an epoch, at most.
        weighting: How partners are drawn from the window: ``uniform`` or ``inverse_distance``.
        seed: Of shuffles and draws; dropout follows it too.
        num_workers: Processes that make batches; 0 makes them in the training process.
        cache: Folder for tokenized texts; None puts them beside the corpus, or under the user's
            cache folder where the corpus cannot be written.
    """

    def __init__(
        self,
        corpus: str,
        encoder: str,
        batch_size: int,
        max_query_tokens: int,
        max_item_tokens: int,
        query_item_share: float,
        item_item_share: float,
        query_rows: Literal["query", "pair"],
        window: int,
        cap: int,
        weighting: Weighting,
        seed: int,
        num_workers: int = 0,
        revision: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(corpus, num_workers)
        if min(query_item_share, item_item_share) < 0:
            raise ConfigError("query_item_share and item_item_share must be 0 or more.")
        self.encoder, self.revision = encoder, revision
        self.batch_size, self.seed = batch_size, seed
        self.max_query_tokens, self.max_item_tokens = max_query_tokens, max_item_tokens
        self.shares = (query_item_share, item_item_share)
        self.query_rows, self.window, self.cap, self.weighting = query_rows, window, cap, weighting
        self.cache = Path(cache) if cache else None

    def prepare_data(self) -> None:
        """Tokenize on one process per machine; the others then find the files."""
        self._token_stores()

    def setup(self, stage: str) -> None:
        """Lay out the batches before training begins: what is wrong with them is said first."""
        if stage == "fit":
            _ = self.batches

    def lay_out(self, rank: int, world_size: int) -> PairBatches:
        """Return the training batches of a rank; tokens are mapped, not copied into memory."""
        query_tokens, item_tokens = self._token_stores()
        query_item, item_item = self._pairs()
        frequency = {}
        if query_item is not None:
            frequency["search"] = query_item.log_frequency(self.corpus.num_items)
        if item_item is not None:
            frequency["recommendation"] = item_item.log_frequency(self.corpus.num_items)
        schedule = PairSchedule(
            num_rows=(len(query_item or ()), len(item_item or ())),
            mix=self.shares if min(self.shares) > 0 else None,
            batch_size=self.batch_size,
            world_size=world_size,
            seed=self.seed,
        )
        return PairBatches(
            schedule, rank, query_item, item_item, query_tokens, item_tokens, frequency
        )

    def val_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split: the model ranks the whole catalogue in it."""
        return DataLoader(["valid"], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split."""
        return DataLoader(["test"], batch_size=None)  # type: ignore[arg-type]

    def fixed_settings(self) -> dict[str, Any]:
        """Return what decides the batches."""
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": list(schedule.num_rows),
            "shares": list(self.shares),
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "seed": schedule.seed,
        }

    def _pairs(self) -> tuple[QueryItemPairs | None, ItemItemPairs | None]:
        query_item = item_item = None
        if self.shares[0] > 0:
            check_train_queries_only(self.corpus, train_query_rows(self.corpus), "query-item pairs")
            query_item = query_item_pairs(self.corpus, rows=self.query_rows)
            if not len(query_item):
                raise DataError(
                    f"{self.corpus_folder}/queries.parquet has no train query; run `sidrec "
                    "prepare` with --queries, or set data.query_item_share to 0."
                )
        if self.shares[1] > 0:
            train = self.corpus.train_interactions()
            check_train_only(self.corpus, train, "item-item pairs")
            item_item = item_item_pairs(
                train, window=self.window, cap=self.cap, weighting=self.weighting
            )
        return query_item, item_item

    def _token_stores(self) -> tuple[TokenStore | None, TokenStore]:
        corpus, tokenizer = self.corpus, load_tokenizer(self.encoder, revision=self.revision)
        for name in ("max_query_tokens", "max_item_tokens"):
            if not 3 <= getattr(self, name) <= tokenizer.model_max_length:
                raise ConfigError(
                    f"data.{name} must lie in [3, {tokenizer.model_max_length}] for "
                    f"'{self.encoder}', got {getattr(self, name)}."
                )
        same = {
            "tokenizer": tokenizer,
            "corpus_fingerprint": corpus.fingerprint,
            "cache": self.cache or derived_folder(corpus.folder, corpus.fingerprint) / "tokens",
        }
        item_tokens = tokenize_once(
            _texts(corpus.items, None),
            num_texts=corpus.num_items,
            max_tokens=self.max_item_tokens,
            what="items",
            **same,
        )
        if self.shares[0] == 0:
            return None, item_tokens
        rows = train_query_rows(corpus)
        query_tokens = tokenize_once(
            _texts(corpus.queries, rows),
            num_texts=len(rows),
            max_tokens=self.max_query_tokens,
            what="train queries",
            **same,
        )
        return query_tokens, item_tokens


def _texts(table: Any, rows: "np.ndarray | None") -> Iterator[str]:  # noqa: ANN401
    """Yield the text column of a dataset, chunk by chunk; of some rows only, if given."""
    chosen = table if rows is None else table.select(rows)
    for chunk in chosen.with_format("arrow").iter(batch_size=_TEXTS_AT_ONCE):
        yield from chunk.column("text").to_pylist()
