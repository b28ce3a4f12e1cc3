"""Put a joint generator together: new for training, or from what its checkpoint holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from sidrec.encoder.loading import load_bi_encoder
from sidrec.encoder.tower import TextTower
from sidrec.generator.inputs import InputSettings
from sidrec.generator.model import GeneratorModel
from sidrec.generator.prior import CodebookPrior, code_means
from sidrec.generator.t5 import (
    load_tokenizer_of,
    snapshot_of,
    start_codes_from_items,
    t5_from_config,
    t5_from_hub,
    t5_from_snapshot,
    train_tokenizer,
)
from sidrec.generator.trie import SemanticIdTrie
from sidrec.generator.vocabulary import CodeVocabulary
from sidrec.run_directory import RunDirectory
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.maker import on_rank_zero

_QUIET_HEAD = 0.1


def new_generator(
    t5: str | dict[str, Any],
    *,
    revision: str | None,
    texts: Callable[[], list[str]],
    text_vocabulary_size: int,
    codes_from_items: bool,
    inputs: InputSettings,
    bundle: SemanticIdBundle,
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
        bundle: Semantic IDs and item embeddings.
        popularity: Train interactions of each item.
        encoder_run: Run directory of the bi-encoder; read for ``encoder_states`` only.

    Raises:
        ConfigError: If the T5 cannot be made or loaded, or does not fit ``inputs``.
        RunError: If the encoder run is not a finished one.
    """
    table = bundle.table
    if isinstance(t5, str):
        tokenizer = load_tokenizer_of(t5, revision=revision)
        vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), table.codebook_sizes)
        model = t5_from_hub(t5, revision=revision, vocabulary=vocabulary)
    else:
        trained = on_rank_zero(
            lambda: train_tokenizer(texts(), vocabulary_size=text_vocabulary_size).to_str()
        )
        tokenizer = Tokenizer.from_str(trained)
        vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), table.codebook_sizes)
        model = t5_from_config(t5, vocabulary=vocabulary)
    if codes_from_items:
        start_codes_from_items(model, vocabulary, table.codes, bundle.embeddings.vectors, seed=0)
    tied = model.lm_head.weight is model.shared.weight
    if (
        inputs.prior_scale is not None and not tied
    ):  # T5 starts quietly, so that the prior leads at first
        model.lm_head.weight.data[vocabulary.first_token :] *= _QUIET_HEAD
    return _together(model, tokenizer, inputs, bundle, popularity, encoder_run)


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
    bundle: SemanticIdBundle,
    encoder_run: str | None,
) -> GeneratorModel:
    """Return a generator whose weights are still to be loaded; needs no hub and no corpus.

    Args:
        parts: From ``parts_of``.
        inputs: As in training.
        bundle: As in training.
        encoder_run: Run directory of the bi-encoder; read for ``encoder_states`` only.

    Raises:
        RunError: If the encoder run is not a finished one.
    """
    tokenizer = Tokenizer.from_str(parts["tokenizer"])
    t5 = t5_from_snapshot(parts["t5"])
    return _together(t5, tokenizer, inputs, bundle, parts["popularity"], encoder_run)


def _together(
    t5: Any,  # noqa: ANN401 (transformers is untyped)
    tokenizer: Tokenizer,
    inputs: InputSettings,
    bundle: SemanticIdBundle,
    popularity: Int[Tensor, " item"],
    encoder_run: str | None,
) -> GeneratorModel:
    vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), bundle.table.codebook_sizes)
    tower = _frozen_tower(encoder_run) if inputs.text_input == "encoder_states" else None
    vectors = bundle.embeddings.vectors
    prior = None
    if inputs.prior_scale is not None:
        order = SemanticIdTrie.from_table(bundle.table, popularity).items
        prior = CodebookPrior(
            code_means(bundle.table.codes, vectors, bundle.table.codebook_sizes),
            bundle.table.codes[order],
            scale=inputs.prior_scale,
            max_history_items=inputs.max_history_items,
            half_life_items=inputs.prior_half_life_items,
        )
    return GeneratorModel(
        t5, inputs, tokenizer, vocabulary, bundle.table, vectors, popularity, tower, prior
    )


def _frozen_tower(encoder_run: str | None) -> TextTower | None:
    if encoder_run is None:
        return None
    tower = load_bi_encoder(RunDirectory(Path(encoder_run))).tower
    return tower.eval().requires_grad_(requires_grad=False)
