"""Put a joint generator together: new for training, or from what its checkpoint holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from sidrec.distributed import on_rank_zero
from sidrec.encoder.load_encoder import load_encoder
from sidrec.encoder.tower import TextTower
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary, vocabularies_of
from sidrec.generator.model.codebook_prior import CodebookPrior, code_means
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.generator.model.t5 import (
    load_tokenizer_of,
    snapshot_of,
    start_codes_from_items,
    t5_from_config,
    t5_from_hub,
    t5_from_snapshot,
    train_tokenizer,
)
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import TASKS, SemanticIdTable, Task

_QUIET_HEAD = 0.1  # factor of the new codes' logits: the prior leads at first, T5 joins in


def new_generator(
    t5: str | dict[str, Any],
    *,
    revision: str | None,
    texts: Callable[[], list[str]],
    text_vocabulary_size: int,
    codes_from_items: bool,
    inputs: InputSettings,
    ids: TaskBundles,
    popularity: Int[Tensor, " item"],
    encoder_run: str | None,
) -> GeneratorModel:
    """Return a generator to be trained; all ranks call it and get the same tokenizer.

    Args:
        t5: Hub name or folder of a pretrained T5, or settings of ``transformers.T5Config``.
        revision: Of ``t5`` on the hub.
        texts: What a new tokenizer is trained on; only called for a T5 from scratch.
        text_vocabulary_size: Tokens of a new tokenizer, at most.
        codes_from_items: Start the codes' embeddings from the item embeddings, not at random.
        inputs: How requests become positions.
        ids: Semantic IDs of each task, and item embeddings.
        popularity: Train interactions of each item.
        encoder_run: Run directory of the bi-encoder; read for ``encoder_states`` only.

    Raises:
        ConfigError: If the T5 cannot be made or loaded, or does not fit ``inputs``.
        RunError: If the encoder run is not a finished one.
    """
    if isinstance(t5, str):
        tokenizer = load_tokenizer_of(t5, revision=revision)
    else:
        trained = on_rank_zero(
            lambda: train_tokenizer(texts(), vocabulary_size=text_vocabulary_size).to_str()
        )
        tokenizer = Tokenizer.from_str(trained)
    vocabularies = _vocabularies(tokenizer, ids)
    widest = vocabularies[TASKS[-1]]  # its tokens are the last
    if isinstance(t5, str):
        model = t5_from_hub(t5, revision=revision, vocabulary=widest)
    else:
        model = t5_from_config(t5, vocabulary=widest)
    if codes_from_items:
        for task, vocabulary in vocabularies.items():
            codes = ids.bundles[task].table.codes
            start_codes_from_items(model, vocabulary, codes, ids.item_vectors, seed=0)
    is_tied = model.lm_head.weight is model.shared.weight
    if inputs.prior_scale is not None and not is_tied:
        model.lm_head.weight.data[widest.first_token :] *= _QUIET_HEAD
    return _together(model, tokenizer, inputs, ids, popularity, encoder_run)


def parts_of(model: GeneratorModel) -> dict[str, Any]:
    """Return what ``generator_from`` needs besides the weights, for a checkpoint."""
    return {
        "t5": snapshot_of(model.t5),
        "tokenizer": model.embedder.tokenizer.to_str(),
        "popularity": model.popularity.cpu(),
    }


def generator_from(
    parts: dict[str, Any],
    *,
    inputs: InputSettings,
    ids: TaskBundles,
    encoder_run: str | None,
) -> GeneratorModel:
    """Return a generator whose weights are still to be loaded; needs no hub and no corpus.

    Args:
        parts: From ``parts_of``.
        inputs: As in training.
        ids: As in training.
        encoder_run: Run directory of the bi-encoder; read for ``encoder_states`` only.

    Raises:
        RunError: If the encoder run is not a finished one.
    """
    tokenizer = Tokenizer.from_str(parts["tokenizer"])
    t5 = t5_from_snapshot(parts["t5"])
    return _together(t5, tokenizer, inputs, ids, parts["popularity"], encoder_run)


def _together(
    t5: Any,  # noqa: ANN401 (transformers is untyped)
    tokenizer: Tokenizer,
    inputs: InputSettings,
    ids: TaskBundles,
    popularity: Int[Tensor, " item"],
    encoder_run: str | None,
) -> GeneratorModel:
    tower = _frozen_tower(encoder_run) if inputs.text_input == "encoder_states" else None
    spaces: dict[Task, CodeSpace] = {}
    for task, vocabulary in _vocabularies(tokenizer, ids).items():
        if ids.is_common and spaces:
            spaces[task] = spaces[TASKS[0]]
            continue
        table = ids.bundles[task].table
        prior = _prior(table, ids.item_vectors, inputs, popularity)
        spaces[task] = CodeSpace(vocabulary, table, popularity, prior)
    return GeneratorModel(t5, inputs, tokenizer, spaces, ids.item_vectors, popularity, tower)


def _vocabularies(tokenizer: Tokenizer, ids: TaskBundles) -> dict[Task, CodeVocabulary]:
    sizes = {task: bundle.table.codebook_sizes for task, bundle in ids.bundles.items()}
    if ids.is_common:
        common = CodeVocabulary(tokenizer.get_vocab_size(), sizes[TASKS[0]])
        return dict.fromkeys(TASKS, common)
    return vocabularies_of(
        tokenizer.get_vocab_size(), sizes, num_shared_levels=ids.num_shared_levels
    )


def _prior(
    table: SemanticIdTable,
    item_vectors: Float[Tensor, "item dim"],
    inputs: InputSettings,
    popularity: Int[Tensor, " item"],
) -> CodebookPrior | None:
    if inputs.prior_scale is None:
        return None
    order = SemanticIdTrie.from_table(table, popularity).items
    return CodebookPrior(
        code_means(table.codes, item_vectors, table.codebook_sizes),
        table.codes[order],
        scale=inputs.prior_scale,
        max_history_items=inputs.max_history_items,
        half_life_items=inputs.prior_half_life_items,
    )


def _frozen_tower(encoder_run: str | None) -> TextTower | None:
    if encoder_run is None:
        return None
    tower = load_encoder(RunDirectory(Path(encoder_run))).tower
    return tower.eval().requires_grad_(requires_grad=False)
