"""Trained text encoder, from a run directory alone; imports no training code."""

import copy
from typing import Any, NamedTuple

from sidrec.encoder.tower import TextTower
from sidrec.errors import RunError
from sidrec.runs.checkpoints import read_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.training.lora import LoraSettings, apply_lora, merge_lora, restore_base

_PREFIX = "tower."  # of the tower's weights in the checkpoint of a BiEncoder
_EMBEDDING = ("pooling", "normalize", "query_prompt", "item_prompt")
_OWN_CLASS = "sidrec.encoder.module.BiEncoder"


class TrainedEncoder(NamedTuple):
    """Text tower of a finished run.

    Attributes:
        tower: Text tower on the CPU, in evaluation mode.
        settings: Arguments of the ``BiEncoder`` that trained it.
    """

    tower: TextTower
    settings: dict[str, Any]


def load_encoder(run: RunDirectory) -> TrainedEncoder:
    """Return the best text tower of a finished run.

    Everything comes from the checkpoint; the hub, package or folder of the pretrained encoder is
    only needed for one with adapters. Those are not merged, so embeddings equal those of training.

    Raises:
        RunError: If the run has not finished, is not an encoder run, or its checkpoint is damaged.
    """
    file = run.finished_checkpoint()
    checkpoint = read_checkpoint(file)
    if "text_tower" not in checkpoint:
        raise RunError(
            f"{file} is not a bi-encoder checkpoint; give --from the folder of an encoder run."
        )
    settings = dict(checkpoint["hyper_parameters"])
    if checkpoint["class_path"] != _OWN_CLASS:
        return _load_subclass(checkpoint, settings)
    own = settings["tower"]
    if own["lora"] is None:
        tower = TextTower.from_snapshot(
            checkpoint["text_tower"], length_groups=own["length_groups"]
        )
    else:
        names = ("encoder", "revision", "dropout", "length_groups", *_EMBEDDING)
        tower = TextTower(**{name: own[name] for name in names})
        apply_lora(tower.model, LoraSettings.from_plain(own["lora"]))
        restore_base(checkpoint, tower, base=own["encoder"], prefix=_PREFIX)
    weights = checkpoint["state_dict"].items()
    tower.load_state_dict({name.removeprefix(_PREFIX): value for name, value in weights})
    return TrainedEncoder(tower.eval(), settings)


def merged_encoder(tower: TextTower) -> Any:  # noqa: ANN401 (transformers is untyped)
    """Return a copy of the encoder as a plain model of transformers, with its adapters merged."""
    model = copy.deepcopy(tower.model)
    merge_lora(model)
    return model


def _load_subclass(checkpoint: dict[str, Any], settings: dict[str, Any]) -> TrainedEncoder:
    """Return the encoder of a subclass of ``BiEncoder``, which may embed texts differently."""
    from sidrec.encoder.module import BiEncoder  # imported late: it needs Lightning
    from sidrec.plugins import find_class

    kind = find_class("encoders", checkpoint["class_path"], BiEncoder, known=[])
    return TrainedEncoder(kind.from_checkpoint(checkpoint).text_encoder, settings)
