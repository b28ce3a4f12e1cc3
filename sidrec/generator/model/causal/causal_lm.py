"""A causal language model from the hub or from a configuration, with rows for the codes."""

import json
from typing import Any

import torch
from torch import Tensor

from sidrec.errors import ConfigError, one_line
from sidrec.generator.model.causal.causal_decoder import CausalSteps, read_prompts
from sidrec.generator.model.code_space import CodeVocabulary

_TOLERANCE = 1e-3  # of log-probabilities in float32, in nats


def causal_lm_from_hub(name: str, *, revision: str | None, vocabulary: CodeVocabulary) -> Any:  # noqa: ANN401
    """Return a pretrained ``AutoModelForCausalLM`` with rows for the codes.

    The rows are drawn at random, as widely spread as the text tokens' rows.

    Args:
        name: Hub name or folder.
        revision: Branch, tag or commit on the hub.
        vocabulary: Text and code tokens.

    Raises:
        ConfigError: If it cannot be loaded, or sidrec cannot search with it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.causal_lm '{name}' cannot be loaded from the hub or a folder: "
            f"{one_line(str(error))}"
        ) from error
    model.resize_token_embeddings(vocabulary.num_tokens, mean_resizing=False)
    first = vocabulary.first_token  # hub models have spare rows behind it
    weights = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    with torch.no_grad():
        for weight in {id(weight): weight for weight in weights}.values():
            weight[first:].normal_(std=float(weight[:first].std()))
    return checked(model).train()  # transformers loads in evaluation mode: without dropout


def causal_lm_from_config(settings: dict[str, Any], *, vocabulary: CodeVocabulary) -> Any:  # noqa: ANN401
    """Return an ``AutoModelForCausalLM`` with random weights.

    Args:
        settings: Arguments of ``transformers.AutoConfig.for_model``, ``model_type`` among them; the
            vocabulary comes from sidrec.
        vocabulary: Text and code tokens.

    Raises:
        ConfigError: If a setting is unknown to the family, of another type, or one that sidrec
            makes itself; or sidrec cannot search with the model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    own = {
        "vocab_size": vocabulary.num_tokens,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    family = settings["model_type"]
    try:
        known = set(AutoConfig.for_model(family).to_dict())
        settings = _with_even_heads(settings, known)
        unknown = sorted(set(settings) - known | set(settings) & set(own))
        if unknown:
            raise ConfigError(
                f"model.causal_lm.shape has settings that {family} does not know or sidrec makes "
                f"itself: {unknown}."
            )
        return checked(_new(AutoConfig.for_model(**own, **settings)))
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"model.causal_lm: {one_line(str(error))}") from error


def _with_even_heads(settings: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Return settings with the width of a head where none is given and the family has the field."""
    if settings.get("head_dim") is not None:
        return settings
    others = {name: value for name, value in settings.items() if name != "head_dim"}
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if width % heads:
        raise ValueError(
            f"shape.hidden_size ({width}) must be a multiple of num_attention_heads ({heads})"
        )
    return others | ({"head_dim": width // heads} if "head_dim" in known else {})


def causal_lm_from_snapshot(snapshot: str) -> Any:  # noqa: ANN401
    """Return a causal language model whose weights are still to be loaded.

    Args:
        snapshot: JSON of the model's configuration, from ``config_of``.
    """
    from transformers import AutoConfig

    return _new(AutoConfig.for_model(**json.loads(snapshot)))


def config_of(model: Any) -> str:  # noqa: ANN401
    """Return the configuration of a model, as JSON."""
    return json.dumps(model.config.to_dict(), default=str)


def end_token_of(model: Any) -> int:  # noqa: ANN401
    """Return the token that ends a text.

    Raises:
        ConfigError: If the model's configuration names none.
    """
    end = model.config.eos_token_id
    if isinstance(end, list):
        end = end[0] if end else None
    if end is None:
        raise ConfigError("model.causal_lm: its configuration names no eos_token_id; add one.")
    return int(end)


@torch.no_grad()
def checked(model: Any) -> Any:  # noqa: ANN401
    """Return a model after a check that searching with it gives its own log-probabilities.

    Not so with recurrent or linear attention, with positions that no ``position_ids`` sets, or
    with an output head that does more than multiply: all these are refused.

    Raises:
        ConfigError: If some log-probability differs from that of the model's own forward.
    """
    end_token_of(model)
    family = f"{type(model).__name__} cannot generate Semantic IDs here"
    remedy = "take a model with plain attention, such as Llama, Mistral or Qwen3"
    is_training = model.training
    model.eval()
    try:
        expected, found = _expected_and_found(model)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.causal_lm: {family} ({one_line(str(error))}); {remedy}."
        ) from None
    if not torch.allclose(expected, found, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise ConfigError(
            f"model.causal_lm: {family} (beams beside each other change its probabilities); "
            f"{remedy}."
        )
    return model.train(is_training)


def _expected_and_found(model: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return the log-probabilities of all tokens after four sequences, by forward and by steps."""
    size, device = model.get_input_embeddings().num_embeddings, model.device
    tokens = torch.arange(1, 9, device=device) % size
    prompts = torch.stack([tokens[:3], tokens[3:6]])  # the second one is one token shorter
    mask = torch.tensor([[True] * 3, [True, True, False]], device=device)
    expected = []
    for row, length in enumerate((3, 2)):
        for first, second in ((6, 7), (7, 6)):
            line = torch.cat([prompts[row, :length], tokens[[first]], tokens[[second]]])
            expected.append(model(input_ids=line[None]).logits[0, -1].float().log_softmax(dim=-1))
    every = torch.arange(size, device=device)
    read = read_prompts(model, model.get_input_embeddings()(prompts), mask)
    step = CausalSteps(model, read, [every] * 3, normalize_over="vocabulary")
    start = torch.zeros((2, 1), dtype=torch.long, device=device)
    step(0, start, start)
    step(1, start.expand(2, 2), tokens[[6, 7]].expand(2, 2))
    swapped = torch.tensor([[1, 0]], device=device).expand(2, 2)
    found = step(2, swapped, tokens[[6, 7]].expand(2, 2))  # the second beam first
    return torch.stack(expected), found[:, [1, 0]].flatten(0, 1)


def _new(config: Any) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
