"""T5 models from the hub or from a configuration, their vocabulary extended by the codes."""

import json
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from sidrec.errors import ConfigError, one_line
from sidrec.generator.model.code_space import CodeVocabulary

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def train_tokenizer(texts: list[str], *, vocabulary_size: int) -> Tokenizer:
    """Train a byte-pair tokenizer on the corpus, for a T5 that starts from scratch.

    Text is lower-cased, accents are folded and words are separated by one blank. As in T5,
    token 0 pads, 1 ends a text and 2 is unknown. The same texts give the same tokenizer.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, END, UNKNOWN],
        show_progress=False,
        limit_alphabet=500,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def load_tokenizer_of(name: str, *, revision: str | None, setting: str = "model.t5") -> Tokenizer:
    """Return the tokenizer of a pretrained model, by hub name or folder.

    Args:
        name: Hub name or folder.
        revision: Branch, tag or commit on the hub.
        setting: Name of the setting in messages.

    Raises:
        ConfigError: If it cannot be loaded, or leaves out token numbers, which codes would take.
    """
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error, setting) from error
    tokenizer: Tokenizer = loaded.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size, last = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values())
    if last >= size:
        raise ConfigError(
            f"{setting} '{name}' has {size} tokens, but numbers up to {last}; the codes follow the "
            "text tokens, so these must be numbered without gaps: take another model."
        )
    return tokenizer


def t5_from_hub(name: str, *, revision: str | None, vocabulary: CodeVocabulary) -> Any:  # noqa: ANN401
    """Return a pretrained ``T5ForConditionalGeneration`` with rows for the codes.

    The rows are drawn at random, with the standard deviation of the text tokens' rows.

    Raises:
        ConfigError: If it cannot be loaded, or has no ``decoder_start_token_id``.
    """
    from transformers import T5ForConditionalGeneration

    try:
        model: Any = T5ForConditionalGeneration.from_pretrained(
            name, revision=revision, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise ConfigError(
            f"model.t5 '{name}' has no decoder_start_token_id in its config.json; set it to the "
            "token that begins a target, for a T5 usually pad_token_id."
        )
    head = model.lm_head.weight.detach().clone()
    is_own = not is_tied(model)
    model.resize_token_embeddings(vocabulary.num_tokens, mean_resizing=False)
    text = slice(0, vocabulary.first_token)  # hub models have spare rows behind it
    with torch.no_grad():
        rows = model.shared.weight
        rows[vocabulary.first_token :].normal_(std=float(rows[text].std()))
        if is_own:  # v1.1 and flan have an untied head, which resizing ties
            untie(model, std=float(head[text].std()))
            model.lm_head.weight[text] = head[text]
    return model.train()  # transformers loads in evaluation mode: without dropout


def t5_from_config(settings: dict[str, Any], *, vocabulary: CodeVocabulary) -> Any:  # noqa: ANN401
    """Return a ``T5ForConditionalGeneration`` with random weights.

    Args:
        settings: Arguments of ``transformers.T5Config``; the vocabulary comes from sidrec.
        vocabulary: Text and code tokens.

    Raises:
        ConfigError: If a setting is unknown to T5Config, of another type, or set by sidrec.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import T5Config, T5ForConditionalGeneration

    own = {
        "vocab_size": vocabulary.num_tokens,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    unknown = sorted(set(settings) - set(T5Config().to_dict()) | set(settings) & set(own))
    if unknown:
        raise ConfigError(
            "model.t5.shape has settings that T5Config does not know or sidrec sets itself; leave "
            f"them out: {unknown}."
        )
    try:
        config = T5Config(**own, **settings)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"model.t5: {one_line(str(error))}") from error
    model = T5ForConditionalGeneration(config)
    if settings.get("tie_word_embeddings") is False:  # transformers 5 ties all the same
        untie(model, std=config.d_model**-0.5)
    return model


def snapshot_of(model: Any) -> str:  # noqa: ANN401
    """Return a model's configuration as JSON, for ``t5_from_snapshot``."""
    return json.dumps({"config": model.config.to_dict(), "is_tied": is_tied(model)}, default=str)


def t5_from_snapshot(snapshot: str) -> Any:  # noqa: ANN401
    """Return a ``T5ForConditionalGeneration`` with random weights, to load a checkpoint into."""
    from transformers import T5Config, T5ForConditionalGeneration

    stored = json.loads(snapshot)
    model = T5ForConditionalGeneration(T5Config.from_dict(stored["config"]))
    if not stored["is_tied"]:
        untie(model, std=1.0)
    return model


def is_tied(model: Any) -> bool:  # noqa: ANN401
    """Return whether input embedding and output head are one weight."""
    return model.lm_head.weight is model.shared.weight


def untie(model: Any, *, std: float) -> None:  # noqa: ANN401
    """Separate the output head from the input embedding, with random weights."""
    shape = model.shared.weight.shape
    model.lm_head.weight = nn.Parameter(torch.randn(shape) * std)


@torch.no_grad()
def start_codes_from_items(
    model: Any,  # noqa: ANN401
    vocabulary: CodeVocabulary,
    codes: Int[Tensor, "item level"],
    item_vectors: Float[Tensor, "item dim"],
    *,
    seed: int,
) -> None:
    """Initialize the codes' input and output embeddings from the item embeddings.

    One random projection maps ``code_means`` of all levels to the width of the model; each level
    is scaled to the root mean square that its rows had. Codes without items keep their random
    rows.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    projection = torch.randn(item_vectors.shape[1], weights[0].shape[1], generator=generator)
    means = code_means(codes, item_vectors, vocabulary.codebook_sizes)
    for level, start in enumerate(vocabulary.level_starts):
        counts = torch.bincount(codes[:, level].long(), minlength=vocabulary.codebook_sizes[level])
        rows = means[level] @ projection
        rows = rows / rows[counts > 0].pow(2).mean().sqrt().clamp(min=1e-12)
        used = start + (counts > 0).nonzero().flatten()
        for weight in {id(weight): weight for weight in weights}.values():
            weight[used] = rows[counts > 0].to(weight) * weight[used].pow(2).mean().sqrt()


def code_means(
    codes: Int[Tensor, "item level"],
    item_vectors: Float[Tensor, "item dim"],
    codebook_sizes: tuple[int, ...],
) -> list[Float[Tensor, "_ dim"]]:
    """Return the mean residual of each code's items after the earlier levels.

    For RQ-KMeans these are the centroids, up to the mean of all items and the items that a
    collision policy moved. For other quantizers they are the greedy least-squares additive
    codebooks. Codes without items are 0.
    """
    residual = item_vectors.float() - item_vectors.float().mean(dim=0)
    means = []
    for level, size in enumerate(codebook_sizes):
        column = codes[:, level].long()
        counts = torch.bincount(column, minlength=size).clamp(min=1)
        sums = residual.new_zeros(size, residual.shape[1]).index_add_(0, column, residual)
        means.append(sums / counts[:, None])
        residual = residual - means[-1][column]
    return means


def _cannot_load(name: str, error: Exception, setting: str = "model.t5") -> ConfigError:
    reason = str(error).splitlines()[0]
    return ConfigError(f"{setting} '{name}' cannot be loaded from the hub or a folder: {reason}")
