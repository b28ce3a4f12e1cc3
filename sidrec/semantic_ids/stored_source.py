"""What `sidrec ids` reads: bundles, alone or in a finished run, and the corpus they belong to."""

from pathlib import Path

import torch

from sidrec.console import say
from sidrec.errors import ConfigError, RunError, SidrecError
from sidrec.run_directory import RunDirectory
from sidrec.run_source import read_config
from sidrec.semantic_ids.attributes import Attribute, attributes_of_items
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle_files import DESCRIPTION


def stored_bundle(folder: Path) -> SemanticIdBundle:
    """Return the bundle in a folder, or that of a finished run.

    Raises:
        RunError: If the folder is an unfinished run or holds no bundle.
        DataError: If the bundle is damaged.
    """
    if not (folder / DESCRIPTION).exists():  # not a bundle itself
        run = RunDirectory(folder)
        run.finished_checkpoint()
        folder = run.semantic_ids
        if not folder.exists():
            raise RunError(f"{run.root} holds no semantic_ids; give --from an encoder run.")
    return SemanticIdBundle.load(folder)


def attributes_of_run(folder: Path, corpus_fingerprint: str) -> list[Attribute]:
    """Return attributes of the items of a run's corpus; none where that is not at hand.

    Args:
        folder: Run directory, or the bundle in it.
        corpus_fingerprint: Of the bundle; a corpus that has changed since is left alone.
    """
    run = RunDirectory(folder if (folder / "config.yaml").exists() else folder.parent)
    if not run.config.exists():
        return []
    from sidrec.corpus.store import Corpus  # late: it imports datasets

    try:
        corpus = Corpus.load(read_config(run.config)["data"]["init_args"]["corpus"])
    except (SidrecError, KeyError, TypeError):
        say("No purity figures: the corpus of the run is not at hand.")
        return []
    if corpus.fingerprint != corpus_fingerprint:
        say("No purity figures: the corpus of the run has changed since.")
        return []
    return attributes_of_items(corpus.items.data.table)


def device_named(name: str) -> torch.device:
    """Return the device for ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If there is no such device here.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: no GPU is visible; use --device cpu.")
    return torch.device(name)
