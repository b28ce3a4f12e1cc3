"""Task bundles: one bundle per task over one catalogue, and the number of shared levels."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import DataError
from sidrec.files import atomic_folder, read_json, write_json
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle.storage import DESCRIPTION
from sidrec.types import TASKS, ItemEmbeddings, Task

TASK_IDS = "task_ids.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True, eq=False)
class TaskBundles:
    """Semantic IDs of each task: one bundle for both, or a separate bundle for each.

    Attributes:
        bundles: One per task, over the same items in the same order.
        num_shared_levels: Number of first levels with the same codes and tokens in both; 0 if all
            are separate.

    Raises:
        DataError: If the bundles disagree on the items, or on a level that they should share.
    """

    bundles: dict[Task, SemanticIdBundle]
    num_shared_levels: int

    def __post_init__(self) -> None:
        search, recommendation = (self.bundles[task] for task in TASKS)
        if search.item_ids != recommendation.item_ids or (
            search.corpus_fingerprint != recommendation.corpus_fingerprint
        ):
            raise DataError(
                "The bundles of the two tasks hold different items; make both from one run."
            )
        shared = [
            bundle.table.codes[:, : self.num_shared_levels] for bundle in self.bundles.values()
        ]
        if not torch.equal(*shared):
            raise DataError(
                f"The first {self.num_shared_levels} levels of the two tasks differ; use a "
                "collision policy that moves no item to another prefix."
            )

    @classmethod
    def common(cls, bundle: SemanticIdBundle) -> "TaskBundles":
        """Build task bundles in which both tasks use one bundle."""
        return cls(dict.fromkeys(TASKS, bundle), len(bundle.table.codebook_sizes))

    def refuse_other_than(self, wanted: str, folder: str) -> None:
        """Refuse Semantic IDs other than those that a generator was trained on.

        Raises:
            DataError: If the hashes differ; names the folder and both hashes.
        """
        if self.hash != wanted:
            raise DataError(
                f"{folder} holds Semantic IDs {self.hash[:12]}, but the generator was trained on "
                f"{wanted[:12]}; give those."
            )

    @property
    def is_common(self) -> bool:
        """Whether both tasks have the same bundle."""
        return self.bundles["search"] is self.bundles["recommendation"]

    @property
    def item_ids(self) -> list[str]:
        """The user's own ids, by item_index."""
        return self.bundles["search"].item_ids

    @property
    def item_vectors(self) -> Float[Tensor, "item dim"]:
        """Item vectors that a generator reads.

        Raises:
            DataError: If the bundles hold different vectors.
        """
        search, other = (self.bundles[task].embeddings.vectors for task in TASKS)
        if search is not other and not torch.equal(search, other):
            raise DataError(
                "The bundles of the two tasks hold different item vectors, of which a generator "
                "reads one; make them with `sidrec fuse --reader RUN`."
            )
        return search

    @property
    def hash(self) -> str:
        """Hash of the common bundle; for two bundles, sha256 over both and their shared levels."""
        if self.is_common:
            return self.bundles["search"].hash
        parts = [*(self.bundles[task].hash for task in TASKS), str(self.num_shared_levels)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def quality(self) -> dict[str, float]:
        """Metrics of the common bundle; for two, ``ids/TASK/…`` and the worse collision rates."""
        if self.is_common:
            return self.bundles["search"].quality
        figures = {
            key.replace("ids/", f"ids/{task}/", 1): value
            for task, bundle in self.bundles.items()
            for key, value in bundle.quality.items()
        }
        for key in ("ids/collision_rate", "ids/collision_rate_before"):
            rates = [b.quality[key] for b in self.bundles.values() if key in b.quality]
            figures |= {key: max(rates)} if rates else {}
        return figures

    def read_as(self, embeddings: ItemEmbeddings) -> "TaskBundles":
        """Return the same Semantic IDs with other item vectors for a generator to read."""
        read = {task: replace(one, embeddings=embeddings) for task, one in self.bundles.items()}
        return TaskBundles(read, self.num_shared_levels)

    def save(self, folder: Path) -> None:
        """Write ``search/``, ``recommendation/`` and ``task_ids.json`` atomically."""
        with atomic_folder(folder) as temporary:
            for task, bundle in self.bundles.items():
                bundle.save(temporary / task)
            hashes = {task: bundle.hash for task, bundle in self.bundles.items()}
            write_json(
                temporary / TASK_IDS,
                {
                    "schema_version": SCHEMA_VERSION,
                    "num_shared_levels": self.num_shared_levels,
                    "hashes": hashes,
                },
            )

    @classmethod
    def load(cls, folder: Path, *, corpus_fingerprint: str | None = None) -> "TaskBundles":
        """Read both bundles; if the folder is a bundle itself, both tasks use it.

        Args:
            folder: Folder that holds ``task_ids.json`` or ``semantic_ids.json``.
            corpus_fingerprint: Corpus that the bundles must belong to, if given.

        Raises:
            DataError: If one is missing, damaged, of another corpus, or not the one that was saved
                with the other.
        """
        if (folder / DESCRIPTION).exists() or not (folder / TASK_IDS).exists():
            one = SemanticIdBundle.load(folder, corpus_fingerprint=corpus_fingerprint)
            return cls.common(one)
        description: dict[str, Any] = read_json(folder / TASK_IDS)
        if description.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{folder / TASK_IDS} was made by another version of sidrec; make the Semantic IDs "
                "again."
            )
        bundles: dict[Task, SemanticIdBundle] = {
            task: SemanticIdBundle.load(folder / task, corpus_fingerprint=corpus_fingerprint)
            for task in TASKS
        }
        for task, bundle in bundles.items():
            if bundle.hash != description["hashes"][task]:
                raise DataError(
                    f"{folder / task} differs from the hash in {TASK_IDS}; make the Semantic IDs "
                    "again."
                )
        return cls(bundles, int(description["num_shared_levels"]))
