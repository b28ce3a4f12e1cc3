"""Two bundles over one catalogue, one per task, and how many levels they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sidrec.errors import ConfigError, DataError
from sidrec.files import atomic_folder, read_json, write_json
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions import CollisionPolicy
from sidrec.semantic_ids.maker import make_semantic_ids
from sidrec.semantic_ids.quality import quality_of
from sidrec.semantic_ids.quantiser import Quantiser
from sidrec.semantic_ids.rq_codebooks import RqKMeans
from sidrec.semantic_ids.task_ids.prefix_share import PrefixShareSettings, fit_prefix_share
from sidrec.types import TASKS, ItemEmbeddings, SemanticIdTable, Task

_DESCRIPTION = "task_ids.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class TaskBundles:
    """Semantic IDs of which each task has its own.

    Attributes:
        bundles: One per task, over the same items in the same order.
        num_shared_levels: First levels that are the same codes in both; 0 when all are separate.

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
            raise DataError("The bundles of the two tasks hold other items; make both of one run.")
        shared = [
            bundle.table.codes[:, : self.num_shared_levels] for bundle in self.bundles.values()
        ]
        if not torch.equal(*shared):
            raise DataError(
                f"The first {self.num_shared_levels} levels of the two tasks differ; use a "
                "collision policy that moves no item to another prefix."
            )

    def save(self, folder: Path) -> None:
        """Write ``search/``, ``recommendation/`` and what binds them; whole or not at all."""
        with atomic_folder(folder) as temporary:
            for task, bundle in self.bundles.items():
                bundle.save(temporary / task)
            hashes = {task: bundle.hash for task, bundle in self.bundles.items()}
            write_json(
                temporary / _DESCRIPTION,
                {
                    "schema_version": SCHEMA_VERSION,
                    "num_shared_levels": self.num_shared_levels,
                    "hashes": hashes,
                },
            )

    @classmethod
    def load(cls, folder: Path) -> "TaskBundles":
        """Read both bundles.

        Raises:
            DataError: If one is missing, damaged, or not the one that was saved with the other.
        """
        description: dict[str, Any] = read_json(folder / _DESCRIPTION)
        if description.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"{folder / _DESCRIPTION} is of another version; make the IDs again.")
        bundles: dict[Task, SemanticIdBundle] = {
            task: SemanticIdBundle.load(folder / task) for task in TASKS
        }
        for task, bundle in bundles.items():
            if bundle.hash != description["hashes"][task]:
                raise DataError(f"{folder / task} is not the bundle that belongs here.")
        return cls(bundles, int(description["num_shared_levels"]))


def separate_ids(
    vectors: dict[Task, ItemEmbeddings],
    *,
    quantiser: Quantiser,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
    device: torch.device,
) -> TaskBundles:
    """Quantise each task's own vectors with codebooks of its own ("Separate" of the paper).

    Raises:
        DataError: If the vectors are not usable, or of different catalogues.
    """
    bundles = {
        task: make_semantic_ids(
            vectors[task],
            quantiser=quantiser,
            policy=policy,
            item_ids=item_ids,
            titles=titles,
            source={"task_ids": "separate", "task": task},
            device=device,
        )
        for task in TASKS
    }
    return TaskBundles(bundles, num_shared_levels=0)


def prefix_share_ids(
    vectors: dict[Task, ItemEmbeddings],
    settings: PrefixShareSettings,
    *,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
) -> TaskBundles:
    """Give each item a first code that both tasks share and a second one of each task.

    The bundles hold the tasks' own vectors; codebooks and quality figures lie in the latent space.

    Raises:
        ConfigError: If there are fewer items than codes, or the policy would move an item to
            another prefix.
        DataError: If the vectors are of different catalogues.
    """
    search, recommendation = vectors["search"].vectors, vectors["recommendation"].vectors
    fitted = fit_prefix_share(search, recommendation, settings)
    bundles = {
        task: _bundle(
            task, vectors[task], fitted.latents, fitted.quantisers[task], policy, item_ids, titles
        )
        for task in TASKS
    }
    for task in TASKS:
        before = fitted.quantisers[task].encode(fitted.latents)[:, 0]
        if not torch.equal(bundles[task].table.codes[:, 0].long(), before.cpu()):
            raise ConfigError(
                f"{policy.settings()['name']} moved items of {task} to another prefix, which both "
                "tasks must share; use ExtraLevel or more task_codes."
            )
        bundles[task].quality["ids/task_reconstruction_error"] = fitted.errors[task]
    return TaskBundles(bundles, num_shared_levels=1)


def _bundle(
    task: Task,
    vectors: ItemEmbeddings,
    latents: torch.Tensor,
    quantiser: RqKMeans,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
) -> SemanticIdBundle:
    codes = quantiser.encode(latents).cpu()
    resolution = policy.resolve(latents, codes, quantiser)
    return SemanticIdBundle(
        table=SemanticIdTable(resolution.codes, resolution.codebook_sizes),
        embeddings=vectors,
        item_ids=item_ids,
        titles=titles,
        codebooks=quantiser.tensors(),
        quantiser={"name": "rq_kmeans", "space": "prefix_share"},
        policy=policy.settings(),
        source={"task_ids": "prefix_share", "task": task},
        quality=quality_of(latents, codes, resolution, quantiser),
    )
