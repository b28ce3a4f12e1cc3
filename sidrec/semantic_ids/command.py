"""``sidrec ids``: make Semantic IDs again from stored embeddings, without training."""

import inspect
import sys
from pathlib import Path
from typing import NoReturn

import torch
from jsonargparse import ArgumentParser

from sidrec.errors import ConfigError, RunError
from sidrec.run_directory import RunDirectory
from sidrec.run_source import allow_known_classes_only
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions import CollisionPolicy
from sidrec.semantic_ids.maker import make_semantic_ids
from sidrec.semantic_ids.quantiser import Quantiser
from sidrec.semantic_ids.report import quality_table
from sidrec.semantic_ids.vector_file import NamedVectors, read_vector_file
from sidrec.suggestion import options_of, with_suggestion


class IdsParser(ArgumentParser):
    """Parser whose error is one line that names the nearest valid key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with code 2."""
        del ex
        parts = (*Quantiser.__subclasses__(), *CollisionPolicy.__subclasses__())
        valid = [name for part in parts for name in inspect.signature(part).parameters]
        valid += options_of(self)
        sys.stderr.write(f"sidrec ids: {with_suggestion(message, valid)}\n")
        sys.exit(ConfigError.exit_code)


def main(args: list[str]) -> None:
    """Run ``sidrec ids`` with the words after the command's name."""
    allow_known_classes_only()
    parser = IdsParser(
        prog="sidrec ids",
        description="Make Semantic IDs from stored embeddings, with any quantiser and policy.",
    )
    parser.add_argument("--config", action="config", help="YAML file, e.g. configs/ids/NAME.yaml.")
    parser.add_argument("--from", type=str | None, help="Run directory of an encoder, or a bundle.")
    parser.add_argument(
        "--embeddings", type=str | None, help="Your own vectors: .npy, .safetensors or .parquet."
    )
    parser.add_argument("--out", type=str, required=True, help="Folder of the new bundle.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    parser.add_argument("--quantiser", type=Quantiser, required=True, help="How codes are made.")
    parser.add_argument("--policy", type=CollisionPolicy, required=True, help="What collisions do.")
    config = parser.instantiate(parser.parse_args(args))
    bundle = make_ids(
        config["from"],
        config.embeddings,
        out=Path(config.out),
        quantiser=config.quantiser,
        policy=config.policy,
        device=config.device,
    )
    sys.stdout.write(f"{quality_table(bundle)}\nwritten: {config.out}\n")


def make_ids(
    run: str | None,
    embeddings: str | None,
    *,
    out: Path,
    quantiser: Quantiser,
    policy: CollisionPolicy,
    device: str,
) -> SemanticIdBundle:
    """Make a bundle from a run's embeddings or from a file, and write it to ``out``.

    Args:
        run: Encoder run directory (or a bundle folder); give this or ``embeddings``.
        embeddings: File of vectors.
        out: Folder to write.
        quantiser: How codes are made.
        policy: What happens where items share codes.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If not exactly one source is given, or the device is not there.
        RunError: If the run has not finished or holds no embeddings.
        DataError: If the vectors are not usable.
    """
    if run is None and embeddings is None:
        raise ConfigError("`sidrec ids` needs either --from RUN or --embeddings FILE.")
    if run is not None and embeddings is not None:
        raise ConfigError(
            "`sidrec ids` takes only one of --from and --embeddings, got both; leave one out."
        )
    if run is not None:
        vectors, source = _from_run(Path(run))
    else:
        file = Path(str(embeddings))
        vectors, source = read_vector_file(file), {"file": file.name}
    bundle = make_semantic_ids(
        vectors.embeddings,
        quantiser=quantiser,
        policy=policy,
        item_ids=vectors.item_ids,
        titles=vectors.titles,
        source=source,
        device=_device(device),
    )
    bundle.save(out)
    return bundle


def _from_run(folder: Path) -> tuple[NamedVectors, dict[str, object]]:
    if not (folder / "semantic_ids.json").exists():  # not a bundle itself
        run = RunDirectory(folder)
        run.finished_checkpoint()
        folder = run.semantic_ids
        if not folder.exists():
            raise RunError(f"{run.root} holds no semantic_ids; give --from an encoder run.")
    bundle = SemanticIdBundle.load(folder)
    vectors = NamedVectors(bundle.embeddings, bundle.item_ids, bundle.titles)
    return vectors, bundle.source


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: no GPU is visible; use --device cpu.")
    return torch.device(name)
