"""Item vectors, and pairs of items, for a quantizer that trains."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError
from sidrec.pairs.item_item import ItemItemPairs, item_item_pairs
from sidrec.pairs.resumable.datamodule import ResumableDataModule
from sidrec.semantic_ids.learned.batches import VectorBatches


class VectorDataModule(ResumableDataModule[VectorBatches]):
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
        super().__init__(num_workers=0)  # the vectors lie in memory
        if batch_size < 1:
            raise ConfigError(f"data.batch_size is {batch_size}, expected 1 or more.")
        self.corpus_folder = None if corpus is None else Path(corpus)
        self.batch_size, self.seed, self.pairs_per_batch = batch_size, seed, pairs_per_batch
        self.window, self.cap, self.weighting = window, cap, weighting
        self._loaded: Corpus | None = None

    @property
    def corpus(self) -> Corpus | None:
        """The corpus, loaded when first asked for; None where no folder was given."""
        if self._loaded is None and self.corpus_folder is not None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def made_from(self) -> Path:
        """The corpus directory, or the bundle where there is none."""
        return self.corpus_folder or Path(self._trainer().lightning_module.origin)

    def ranks(self) -> tuple[int, int]:
        """Return those of the trainer: it may train in one process of several."""
        return self._trainer().global_rank, self._trainer().world_size

    def lay_out(self, rank: int, world_size: int) -> VectorBatches:
        """Return the training batches of a rank."""
        return VectorBatches(
            vectors=self._vectors(),
            batch_size=self.batch_size,
            pairs=self._pairs(),
            pairs_per_batch=self.pairs_per_batch,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
        )

    def fixed_settings(self) -> dict[str, Any]:
        """Return what decides the batches."""
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
