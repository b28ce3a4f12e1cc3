"""Sharded checkpoints: folders into which each rank wrote its share, read by one process."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata as index
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

_INDEX = ".metadata"
_WEIGHTS = "model."  # prefix of Lightning
_PATHS = {"PosixPath", "WindowsPath"}
_KNOWN = {
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # Python 3.13
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        name for name, one in vars(index).items() if isinstance(one, type)
    },
}


class _IndexUnpickler(pickle.Unpickler):
    """Unpickler of the index that torch writes; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        is_value = module == "torch" and isinstance(
            getattr(torch, name, None), torch.dtype | torch.layout
        )
        if is_value or (module, name) == ("torch", "Size") or name in _KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Reader(FileSystemReader):
    """Reader of a folder that executes no code of its index."""

    def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:  # noqa: ANN401
        del arguments, named
        return index_of(Path(self.path))


def index_of(folder: Path) -> Metadata:
    """Return the index of a folder of shards.

    Raises:
        OSError: If the index or a shard is missing.
        ValueError: If a shard is shorter than it was.
        UnpicklingError: If the index holds other things than an index does.
    """
    with (folder / _INDEX).open("rb") as file:
        content: Metadata = _IndexUnpickler(file).load()
    ends: dict[str, int] = {}
    for part in content.storage_data.values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        if (folder / name).stat().st_size < end:
            raise ValueError(f"{name} is truncated")
    return content


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Return the whole weights of a sharded checkpoint, on the CPU."""
    weights = {
        name.removeprefix(_WEIGHTS): torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name, tensor in index_of(folder).state_dict_metadata.items()
        if name.startswith(_WEIGHTS) and isinstance(tensor, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process alone, which is meant
        load({"model": weights}, storage_reader=_Reader(folder), no_dist=True)
    return weights
