"""Construction of joint generators: new for training, or from a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from sidrec.distributed import on_rank_zero
from sidrec.encoder.load_encoder import load_encoder
from sidrec.encoder.tower import TextTower
from sidrec.generator.model.causal.causal_generator import CausalGenerator
from sidrec.generator.model.causal.causal_lm import (
    causal_lm_from_config,
    causal_lm_from_hub,
    causal_lm_from_snapshot,
    config_of,
)
from sidrec.generator.model.causal.causal_settings import CausalLmSettings
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary, vocabularies_of
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.generator_settings import T5Settings
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
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.settings import as_plain
from sidrec.training.lora import LoraSettings, apply_lora
from sidrec.types import TASKS, Task

_QUIET_HEAD = 0.1  # factor of the new codes' logits: the prior leads at first, T5 joins in


def new_generator(
    settings: T5Settings | CausalLmSettings,
    *,
    texts: Callable[[], list[str]],
    inputs: InputSettings,
    ids: TaskBundles,
    popularity: Int[Tensor, " item"],
    encoder_run: str | None,
    prior: ItemPrior | None,
) -> GeneratorModel:
    """Build a generator for training; all ranks call this and get the same tokenizer.

    Args:
        settings: T5 or causal language model, pretrained or from scratch.
        texts: Returns the texts to train a new tokenizer on; only called for a T5 from scratch.
        inputs: Encoder input of a request.
        ids: Semantic IDs of each task, and item embeddings.
        popularity: Train interactions of each item.
        encoder_run: Run directory of the bi-encoder; not read for ``text_input: tokens``.
        prior: Prior over items, made from the corpus; None: T5 alone.

    Raises:
        ConfigError: If the T5 cannot be made or loaded, or does not fit ``inputs``.
        RunError: If the encoder run has not finished.
    """
    name, revision = settings.pretrained, settings.revision
    is_causal = isinstance(settings, CausalLmSettings)
    if name is not None:
        setting = f"model.{settings.name}"
        tokenizer = load_tokenizer_of(name, revision=revision, setting=setting)
    else:
        size = settings.text_vocabulary_size
        trained = on_rank_zero(lambda: train_tokenizer(texts(), vocabulary_size=size).to_str())
        tokenizer = Tokenizer.from_str(trained)
    vocabularies = _vocabularies(tokenizer, ids)
    widest = vocabularies[TASKS[-1]]  # its tokens are the last
    if name is not None:
        from_hub = causal_lm_from_hub if is_causal else t5_from_hub
        model = from_hub(name, revision=revision, vocabulary=widest)
    else:
        from_config = causal_lm_from_config if is_causal else t5_from_config
        model = from_config(settings.shape.arguments(), vocabulary=widest)
    if settings.codes_from_items:
        for task, vocabulary in vocabularies.items():
            codes = ids.bundles[task].table.codes
            start_codes_from_items(model, vocabulary, codes, ids.item_vectors, seed=0)
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    if prior is not None and not is_tied:
        model.lm_head.weight.data[widest.first_token :] *= _QUIET_HEAD
    base = None
    options = settings.training_options() if isinstance(settings, CausalLmSettings) else {}
    if settings.lora is not None:
        base = {"name": name, "revision": revision, "lora": as_plain(settings.lora)}
        apply_lora(model, settings.lora, first_new_token=tokenizer.get_vocab_size())
    return _together(
        model, tokenizer, inputs, ids, popularity, encoder_run, prior, base=base, **options
    )


def parts_of(model: GeneratorModel) -> dict[str, Any]:
    """Return what a checkpoint must hold besides the weights, for ``generator_from``."""
    if isinstance(model, CausalGenerator):
        made_from = {"causal_lm": config_of(model.t5), "options": model.training_options()}
    else:
        made_from = {"t5": snapshot_of(model.t5)}
    return made_from | {
        "base": model.base,
        "tokenizer": model.embedder.tokenizer.to_str(),
        "popularity": model.popularity.cpu(),
        "prior": None if model.prior is None else model.prior.state(),
    }


def generator_from(
    parts: dict[str, Any],
    *,
    inputs: InputSettings,
    ids: TaskBundles,
    encoder_run: str | None,
) -> GeneratorModel:
    """Build a generator without weights from a checkpoint's parts; needs no hub and no corpus.

    Only a model with adapters is read from the hub or its folder again.

    Args:
        parts: From ``parts_of``.
        inputs: As in training.
        ids: As in training.
        encoder_run: Run directory of the bi-encoder; not read for ``text_input: tokens``.

    Raises:
        ConfigError: If the model of the adapters cannot be loaded.
        RunError: If the encoder run is not a finished one.
        DataError: If the prior was made from another corpus than the Semantic IDs.
    """
    prior = parts["prior"]
    if prior is not None:
        fingerprint = ids.bundles["search"].corpus_fingerprint
        prior = ItemPrior.from_state(
            prior, item_vectors=ids.item_vectors, corpus_fingerprint=fingerprint
        )
    tokenizer = Tokenizer.from_str(parts["tokenizer"])
    base, options = parts["base"], parts.get("options", {})
    is_causal = "causal_lm" in parts
    if base is not None:
        widest = _vocabularies(tokenizer, ids)[TASKS[-1]]
        from_hub = causal_lm_from_hub if is_causal else t5_from_hub
        t5 = from_hub(base["name"], revision=base["revision"], vocabulary=widest)
        lora = LoraSettings.from_plain(base["lora"])
        apply_lora(t5, lora, first_new_token=tokenizer.get_vocab_size())
    elif is_causal:
        t5 = causal_lm_from_snapshot(parts["causal_lm"])
    else:
        t5 = t5_from_snapshot(parts["t5"])
    popularity = parts["popularity"]
    return _together(
        t5, tokenizer, inputs, ids, popularity, encoder_run, prior, base=base, **options
    )


def _together(
    t5: Any,  # noqa: ANN401 (transformers is untyped)
    tokenizer: Tokenizer,
    inputs: InputSettings,
    ids: TaskBundles,
    popularity: Int[Tensor, " item"],
    encoder_run: str | None,
    prior: ItemPrior | None,
    *,
    base: dict[str, Any] | None,
    **options: Any,  # noqa: ANN401
) -> GeneratorModel:
    tower = _frozen_tower(encoder_run) if inputs.reads_states else None
    spaces: dict[Task, CodeSpace] = {}
    for task, vocabulary in _vocabularies(tokenizer, ids).items():
        if ids.is_common and spaces:
            spaces[task] = spaces[TASKS[0]]
            continue
        table = ids.bundles[task].table
        spaces[task] = CodeSpace(vocabulary, table, popularity)
    kind = GeneratorModel if t5.config.is_encoder_decoder else CausalGenerator
    model = kind(
        t5, inputs, tokenizer, spaces, ids.item_vectors, popularity, tower, prior, **options
    )
    model.base = base
    return model


def _vocabularies(tokenizer: Tokenizer, ids: TaskBundles) -> dict[Task, CodeVocabulary]:
    sizes = {task: bundle.table.codebook_sizes for task, bundle in ids.bundles.items()}
    if ids.is_common:
        common = CodeVocabulary(tokenizer.get_vocab_size(), sizes[TASKS[0]])
        return dict.fromkeys(TASKS, common)
    return vocabularies_of(
        tokenizer.get_vocab_size(), sizes, num_shared_levels=ids.num_shared_levels
    )


def _frozen_tower(encoder_run: str | None) -> TextTower | None:
    if encoder_run is None:
        return None
    tower = load_encoder(RunDirectory(Path(encoder_run))).tower
    return tower.eval().requires_grad_(requires_grad=False)
