"""Appended items: serve items that are newer than the training of the generator."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from sidrec.errors import DataError
from sidrec.generator.model.code_space import CodeSpace
from sidrec.generator.training.load_generator import TrainedGenerator
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import TASKS, Task


def with_appended_items(generator: TrainedGenerator, ids: TaskBundles) -> TrainedGenerator:
    """Return the generator over the items of ``ids``; both generators share the T5.

    New items have no train interactions, so they come last among items of one Semantic ID. The
    prior keeps its weights; of a new item it knows the embedding alone, see
    ``ItemPrior.extended``.

    Args:
        generator: Trained generator with its model built.
        ids: Bundle of training with further items, from ``sidrec ids --append``.

    Raises:
        DataError: If anything of an old item differs; names the first one.
    """
    check_extends(generator.ids, ids)
    model = generator.model
    num_new = len(ids.item_ids) - len(generator.ids.item_ids)
    popularity = F.pad(model.popularity, (0, num_new))
    spaces: dict[Task, CodeSpace] = {}
    for task in TASKS:
        if ids.is_common and spaces:
            spaces[task] = spaces[TASKS[0]]
            continue
        old, table = model.space(task), ids.bundles[task].table
        spaces[task] = CodeSpace(old.vocabulary, table, popularity)
    embedder = model.embedder
    larger = type(model)(
        model.t5,
        embedder.settings,
        embedder.tokenizer,
        spaces,
        ids.item_vectors,
        popularity,
        embedder.tower,
        None if model.prior is None else model.prior.extended(ids.item_vectors),
    )
    larger.load_state_dict(model.state_dict())
    larger.decoding = model.decoding
    return replace(generator, model=larger.eval(), ids=ids)


def check_extends(trained: TaskBundles, ids: TaskBundles) -> None:
    """Check that bundles extend those of training by items behind the old ones.

    Raises:
        DataError: Names the first old item that is missing, moved or changed.
    """
    is_alike = trained.num_shared_levels == ids.num_shared_levels or trained.is_common
    if trained.is_common != ids.is_common or not is_alike:
        raise DataError(
            "The given Semantic IDs share other levels between the tasks than those of training; "
            "append to the bundle that the generator was trained on."
        )
    for task in TASKS:
        _check_bundle(trained.bundles[task], ids.bundles[task])


def _check_bundle(old: SemanticIdBundle, new: SemanticIdBundle) -> None:
    remedy = "append to the generator's own bundle with `sidrec ids --append`, which keeps all IDs"
    num_old = len(old.item_ids)
    if old.table.codebook_sizes != new.table.codebook_sizes:
        raise DataError(
            f"The given Semantic IDs have codebook sizes {list(new.table.codebook_sizes)}, the "
            f"generator was trained on {list(old.table.codebook_sizes)}; {remedy}."
        )
    for row, item_id in enumerate(old.item_ids):
        if new.item_ids[row : row + 1] != [item_id]:
            raise DataError(
                f"item_id '{item_id}' is item {row} of the generator's Semantic IDs but not of the "
                f"given ones; {remedy}."
            )
    codes = new.table.codes[:num_old]
    changed = (codes != old.table.codes).any(dim=1).nonzero().flatten().tolist()
    if changed:
        row = changed[0]
        raise DataError(
            f"{len(changed)} old items have another Semantic ID than in training (first: "
            f"'{old.item_ids[row]}', {old.table.codes[row].tolist()} then, {codes[row].tolist()} "
            f"now); {remedy}."
        )
    if not torch.equal(new.embeddings.vectors[:num_old], old.embeddings.vectors):
        raise DataError(f"Old items have other vectors than in training; {remedy}.")
