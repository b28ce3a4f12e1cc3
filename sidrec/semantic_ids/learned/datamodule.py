"""Item vectors, and pairs of items, for a quantiser that trains."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor

from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError
from sidrec.pairs.batches import BatchLoader, BatchNumber, PairBatchSampler, the_only
from sidrec.pairs.item_item import ItemItemPairs, item_item_pairs
from sidrec.pairs.resume import first_batch_after, position_in
from sidrec.semantic_ids.learned.batches import VectorBatch, VectorBatches


class VectorDataModule(L.LightningDataModule):
    """The module's vectors in batches; its ``semantic_ids`` says which.

    Args:
        batch_size: Items per rank.
        seed: Of shuffles and draws; dead codes follow it too.
        corpus: Corpus directory, for pairs of items; ``--from`` gives the encoder run's.
        pairs_per_batch: Pairs of items per rank, where the module asks for pairs.
        window: How many interactions a pair of items stands apart, at most.
        cap: Anchors that one user gives in an epoch, at most.
        weighting: How partners are drawn from the window: ``uniform`` or ``inverse_distance``.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        corpus: str | None = None,
        pairs_per_batch: int = 0,
        window: int = 5,
        cap: int = 100,
        weighting: Literal["uniform", "inverse_distance"] = "uniform",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size is {batch_size}, expected 1 or more.")
        self.corpus_folder = None if corpus is None else Path(corpus)
        self.batch_size, self.seed, self.pairs_per_batch = batch_size, seed, pairs_per_batch
        self.window, self.cap, self.weighting = window, cap, weighting
        self._first = BatchNumber(0, 0)
        self._loaded: Corpus | None = None
        self._batches: VectorBatches | None = None

    @property
    def corpus(self) -> Corpus | None:
        """The corpus, loaded when first asked for; None where no folder was given."""
        if self._loaded is None and self.corpus_folder is not None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def batches(self) -> VectorBatches:
        """This rank's batches, by number."""
        if self._batches is None:
            self._batches = VectorBatches(
                vectors=self._vectors(),
                batch_size=self.batch_size,
                pairs=self._pairs(),
                pairs_per_batch=self.pairs_per_batch,
                rank=self._trainer().global_rank,
                world_size=self._trainer().world_size,
                seed=self.seed,
            )
        return self._batches

    def train_dataloader(self) -> BatchLoader[VectorBatch]:
        """Return this rank's batches, from where a resumed run stopped."""
        return BatchLoader(
            self.batches,
            batch_sampler=PairBatchSampler(len(self.batches), self._first),
            collate_fn=the_only,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands and what must not change while it runs."""
        if self.trainer is None or self._batches is None:
            return {}
        return position_in(
            self.trainer.fit_loop, steps_per_epoch=len(self.batches), fixed=self._fixed()
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on training where ``state_dict`` was taken.

        Raises:
            ConfigError: If in the middle of an epoch a setting differs that decides its batches.
            DataError: If the vectors are those of another corpus.
        """
        if state_dict:
            folder = self.corpus_folder or Path(self._trainer().lightning_module.origin)
            self._first = first_batch_after(state_dict, fixed=self._fixed(), corpus_folder=folder)

    def _fixed(self) -> dict[str, Any]:
        batches = self.batches
        return {
            "corpus": self._trainer().lightning_module.fingerprint,
            "num_items": len(batches.vectors),
            "num_pairs": len(batches.pairs or ()),
            "batch_size": batches.batch_size,
            "pairs_per_batch": batches.pairs_per_batch,
            "world_size": batches.world_size,
            "seed": batches.seed,
        }

    def _vectors(self) -> Tensor:
        vectors: Tensor = self._trainer().lightning_module.vectors
        return vectors

    def _pairs(self) -> ItemItemPairs | None:
        if not self._trainer().lightning_module.needs_pairs:
            return None
        corpus = self.corpus
        if corpus is None or self.pairs_per_batch < 1:
            raise ConfigError(
                "model.collaborative_weight needs pairs of items: give data.corpus and "
                "data.pairs_per_batch, or set it to 0."
            )
        fingerprint = self._trainer().lightning_module.fingerprint
        if corpus.fingerprint != fingerprint:
            raise DataError(
                f"{self.corpus_folder} has fingerprint {corpus.fingerprint[:12]}, the vectors "
                f"{fingerprint[:12]}; give the corpus that was encoded."
            )
        train = corpus.train_interactions()
        check_train_only(corpus, train, "item-item pairs")
        return item_item_pairs(train, window=self.window, cap=self.cap, weighting=self.weighting)

    def _trainer(self) -> Any:  # noqa: ANN401 (Lightning's)
        if self.trainer is None:
            raise AssertionError("VectorDataModule works inside a Trainer")
        return self.trainer
