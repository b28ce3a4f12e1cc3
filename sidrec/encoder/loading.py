"""A trained bi-encoder, from a run directory alone."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from sidrec.encoder.module import BiEncoder
from sidrec.errors import RunError
from sidrec.run_directory import RunDirectory


def load_bi_encoder(run: RunDirectory) -> BiEncoder:
    """Return the best bi-encoder of a finished run, on the CPU, in evaluation mode.

    Everything comes from the checkpoint: no hub, no package, no folder of the pretrained encoder
    is needed.

    Raises:
        RunError: If the run has not finished, is no encoder run, or its checkpoint is damaged.
    """
    file = run.finished_checkpoint()
    checkpoint = read_checkpoint(file)
    if "text_tower" not in checkpoint:
        raise RunError(f"{file} is no bi-encoder; give --from the folder of an encoder run.")
    arguments = {
        name: value
        for name, value in checkpoint["hyper_parameters"].items()
        if not name.startswith("_")
    }
    model = BiEncoder(**arguments)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    return model


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, on the CPU; every byte is checked by its checksum first.

    A flipped bit in the weights would load without a word.

    Raises:
        RunError: If the file cannot be read, is truncated or altered, or is no checkpoint.
    """
    try:
        content = _checked(file)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}; check the disk.") from None
    except Exception:  # a damaged pickle or archive can raise anything
        content = None
    if not isinstance(content, dict):
        raise RunError(
            f"{file} is damaged (truncated, altered, or no checkpoint); bring back a copy of it, "
            "or train again in a new run directory."
        )
    return content


def _checked(file: Path) -> Any:  # noqa: ANN401
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:
            return None
    return torch.load(file, map_location="cpu", weights_only=True)
