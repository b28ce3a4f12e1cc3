"""A trained joint generator, from its run directories alone."""

import torch

from sidrec.errors import ConfigError, RunError
from sidrec.generator.training.module import JointGenerator
from sidrec.runs.checkpoints import read_checkpoint
from sidrec.runs.directory import RunDirectory


def load_generator(run: RunDirectory) -> JointGenerator:
    """Return the best generator of a finished run, on the CPU, with its model built.

    Needs the Semantic IDs it was trained on and, where it reads queries through one, its encoder
    run; no corpus, no hub, no Trainer.

    Raises:
        RunError: If the run has not finished, is no generator run, or its checkpoint is damaged.
        DataError: If its Semantic IDs are gone, or are not those it was trained on.
    """
    file = run.finished_checkpoint()
    checkpoint = read_checkpoint(file)
    if "bundle_hash" not in checkpoint:
        raise RunError(f"{file} is no generator; give --from the folder of a generator run.")
    return JointGenerator.from_checkpoint(checkpoint)


def device_named(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` names.

    Raises:
        ConfigError: If there is no such device, or no GPU to be seen.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: no GPU is visible; use --device cpu.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu or cuda, got '{name}'.") from None
