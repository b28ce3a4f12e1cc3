"""Low-rank adapters (LoRA) on any transformers model, and checkpoints without the frozen base."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sidrec.errors import ConfigError, RunError
from sidrec.settings import PositiveFloat, PositiveInt, Probability, Settings

_BASE_HASH = "lora_base_hash"  # key in a checkpoint


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """Low-rank adapters: the pretrained weights stay frozen.

    Attributes:
        r: Rank of each adapter.
        alpha: Scale of the adapters, ``> 0``; their output is multiplied by ``alpha / r``.
        dropout: Dropout probability in [0, 1) of an adapter's input.
        target_modules: Names of the linear layers with an adapter, such as ``q`` and ``v``; None
            takes all but the output head.

    Raises:
        ConfigError: If the package peft is missing.

    Source:
        Hu et al. 2022 (https://arxiv.org/abs/2106.09685), as peft implements it.
    """

    r: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Probability = 0.0
    target_modules: tuple[str, ...] | None = None

    @classmethod
    def from_plain(cls, stored: dict[str, Any]) -> "LoraSettings":
        """Return the settings of a checkpoint, where tuples are lists."""
        targets = stored["target_modules"]
        return cls(**stored | {"target_modules": None if targets is None else tuple(targets)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if find_spec("peft") is None:
            raise ConfigError("lora needs the package peft: pip install 'sidrec[peft]'.")


class SplitRows(nn.Module):
    """Parametrization of an embedding whose first rows are frozen and whose other rows are trained.

    Args:
        num_frozen: Number of frozen rows.
    """

    def __init__(self, num_frozen: int) -> None:
        super().__init__()
        self.num_frozen = num_frozen

    def forward(self, frozen: Tensor, trained: Tensor) -> Tensor:
        """Return the whole weight."""
        return torch.cat([frozen, trained])

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts of a whole weight."""
        return weight[: self.num_frozen].clone(), weight[self.num_frozen :].clone()


def apply_lora(model: Any, settings: LoraSettings, *, first_new_token: int | None = None) -> None:  # noqa: ANN401
    """Freeze a transformers model and add adapters to its linear layers, in place.

    Args:
        model: Any ``PreTrainedModel``.
        settings: Rank, scale, dropout and places of the adapters.
        first_new_token: The rows of the input embedding and of the output head from this token on
            are trained too, since the pretrained model does not know these tokens; None trains
            adapters only.

    Raises:
        ConfigError: If a target module is not a linear layer of the model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(model, settings),
    )
    inject_adapter_in_model(config, model)
    if first_new_token is not None:
        _train_new_rows(model, first_new_token)


def merge_lora(model: Any) -> None:  # noqa: ANN401
    """Add the adapters to the weights and remove them, in place: a plain model remains."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    for tied in _tied_embeddings(model):
        if not parametrize.is_parametrized(tied[0], "weight"):
            continue
        weight = nn.Parameter(tied[0].weight.detach())
        for module in tied:  # torch's own removal would also change copies, which share the class
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            module.weight = weight
    del model.peft_config


def keep_adapters_only(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Remove the frozen weights of a module from its checkpoint; store their hash instead."""
    frozen = dict(_frozen(module))
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: state[name] for name in state if name not in frozen}
    known = vars(module)
    if _BASE_HASH not in known:  # once: it reads every byte
        known[_BASE_HASH] = _hash_of(frozen)
    checkpoint[_BASE_HASH] = known[_BASE_HASH]


def restore_base(
    checkpoint: dict[str, Any], module: nn.Module, *, base: str, prefix: str = ""
) -> None:
    """Add the frozen weights of a module, as loaded from its base, to the weights of a checkpoint.

    Args:
        checkpoint: Content of a checkpoint that ``keep_adapters_only`` has changed.
        module: Module with its base and untrained adapters.
        base: Hub name or folder of the base, and its revision, for the message.
        prefix: Part of the weights' names in the checkpoint before the module's own.

    Raises:
        RunError: If the base is not the one that the adapters were trained on.
    """
    frozen = {f"{prefix}{name}": weight for name, weight in _frozen(module)}
    if _hash_of(frozen) != checkpoint[_BASE_HASH]:
        raise RunError(
            f"The pretrained model {base} has other weights than the one that the adapters of this "
            "checkpoint were trained on; restore that model, or name its revision."
        )
    checkpoint["state_dict"] = checkpoint["state_dict"] | frozen


def _targets(model: Any, settings: LoraSettings) -> list[str]:  # noqa: ANN401
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in settings.target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ConfigError(
                f"lora.target_modules names '{target}', which is not a linear layer of "
                f"{type(model).__name__}; choose from {', '.join(known)}."
            )
    return list(settings.target_modules or known)


def _train_new_rows(model: Any, first_new_token: int) -> None:  # noqa: ANN401
    for tied in _tied_embeddings(model):
        for module in tied:
            parametrize.register_parametrization(
                module, "weight", SplitRows(first_new_token), unsafe=True
            )
            parts, first = module.parametrizations.weight, tied[0].parametrizations.weight
            parts.original0 = first.original0.requires_grad_(requires_grad=False)
            parts.original1 = first.original1.requires_grad_(requires_grad=True)


def _tied_embeddings(model: Any) -> list[list[Any]]:  # noqa: ANN401
    """Return input embedding and output head, each with all modules that share its weight."""
    groups: dict[int, list[Any]] = {}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    wanted = {_identity(module) for module in ends if module is not None}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.Linear) and _identity(module) in wanted:
            groups.setdefault(_identity(module), []).append(module)
    return list(groups.values())


def _identity(module: Any) -> int:  # noqa: ANN401
    if parametrize.is_parametrized(module, "weight"):
        return id(module.parametrizations.weight.original1)
    return id(module.weight)


def _frozen(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in module.named_parameters(remove_duplicate=False):
        if not weight.requires_grad:
            yield name, weight.detach()


def _hash_of(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
