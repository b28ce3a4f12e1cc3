"""Memory-mapped cache of a frozen encoder's token states for the training texts."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Int, Int16, Int64, UInt32
from torch import Tensor

from sidrec.console import track
from sidrec.distributed import gather_objects, on_rank_zero, rank_and_world_size
from sidrec.encoder.tower import TextTower
from sidrec.errors import DataError, SidrecError
from sidrec.files import disk_errors
from sidrec.types import TextTokens

_TOKENIZED_TOGETHER = 4_096


@dataclass(frozen=True)
class TextStates:
    """Token states of texts in bfloat16, one file per rank that wrote them.

    Attributes:
        files: Bit patterns of bfloat16 states, memory-mapped, one file per rank.
        paths: Paths of the files, for messages.
        file: Number of the file that holds text ``i``.
        first: First row of text ``i`` in its file.
        lengths: Number of tokens of text ``i``.
        checksums: CRC-32 of the bytes of text ``i``, compared at every read.
    """

    files: list[Int16[np.ndarray, "token dim"]]
    paths: list[Path]
    file: Int64[np.ndarray, " text"]
    first: Int64[np.ndarray, " text"]
    lengths: Int64[np.ndarray, " text"]
    checksums: UInt32[np.ndarray, " text"]

    def gather(
        self, rows: Int[Tensor, " text"]
    ) -> tuple[BFloat16[Tensor, "text token dim"], Bool[Tensor, "text token"]]:
        """Return padded bfloat16 states and their mask; row -1 has no tokens.

        Raises:
            DataError: If the bytes of a text differ from those that were written.
        """
        chosen = rows.tolist()
        lengths = [0 if row < 0 else int(self.lengths[row]) for row in chosen]
        states = np.zeros((len(chosen), max([1, *lengths]), self.files[0].shape[1]), np.int16)
        for place, (row, length) in enumerate(zip(chosen, lengths, strict=True)):
            if length:
                states[place, :length] = self._read(row)
        mask = torch.arange(states.shape[1])[None, :] < torch.tensor(lengths)[:, None]
        return torch.from_numpy(states).view(torch.bfloat16), mask

    def _read(self, row: int) -> Int16[np.ndarray, "token dim"]:
        number, first = int(self.file[row]), int(self.first[row])
        states: Int16[np.ndarray, "token dim"] = np.ascontiguousarray(
            self.files[number][first : first + int(self.lengths[row])]
        )
        if zlib.crc32(states.data) != self.checksums[row]:
            raise DataError(
                f"{self.paths[number]} is damaged at text {row}; run the same command again to "
                "write it anew."
            )
        return states


@torch.no_grad()
def store_text_states(
    tower: TextTower,
    texts: list[str],
    *,
    max_tokens: int,
    batch_size: int,
    folder: Path,
    bf16: bool,
) -> TextStates:
    """Encode texts with a frozen tower, split over ranks, and map the files of all ranks.

    Each file has one writer, because network disks write whole pages back.

    Args:
        tower: Text tower; set to evaluation mode.
        texts: The same on every rank.
        max_tokens: Longer texts are cut; the tower's query prompt does not count.
        batch_size: Texts per forward pass.
        folder: On a disk that all ranks share; existing files are replaced.
        bf16: Run the encoder under bfloat16 autocast.

    Raises:
        SidrecError: On every rank, if a disk has no room for its file.
    """
    tower.eval()
    rank, world_size = rank_and_world_size()
    lengths = _lengths(tower, texts, max_tokens)
    order = np.argsort(lengths, kind="stable")  # the same batches for any number of ranks
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    file, first = np.zeros_like(lengths), np.zeros_like(lengths)
    for number in range(world_size):
        rows = np.concatenate([order[:0], *batches[number::world_size]])
        file[rows], first[rows] = number, np.cumsum(lengths[rows]) - lengths[rows]
    paths = [folder / f"text_states.{number}.bin" for number in range(world_size)]
    shapes = [(int(lengths[file == number].sum()), tower.dim) for number in range(world_size)]
    on_rank_zero(lambda: _remove_old(folder))
    _raise_together(_reserve(paths[rank], num_bytes=2 * shapes[rank][0] * shapes[rank][1]))
    checksums = np.zeros(len(texts), np.uint32)
    with paths[rank].open("r+b") as stream:
        own = batches[rank::world_size]
        for rows in track(own, "Encoding queries", total=len(own)):
            states = _states(tower, [texts[row] for row in rows.tolist()], max_tokens, bf16)
            for place, row in enumerate(rows.tolist()):
                data = states[place, : lengths[row]].tobytes()
                checksums[row] = zlib.crc32(data)
                stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    for number, found in enumerate(gather_objects(checksums[file == rank])):
        checksums[file == number] = found  # also waits for all ranks to have written
    files = [_mapped(*one) for one in zip(paths, shapes, strict=True)]
    return TextStates(files, paths, file, first, lengths, checksums)


def _lengths(tower: TextTower, texts: list[str], max_tokens: int) -> Int64[np.ndarray, " text"]:
    lengths: list[int] = []
    for first in range(0, len(texts), _TOKENIZED_TOGETHER):
        part = texts[first : first + _TOKENIZED_TOGETHER]
        lengths += (
            tower.tokenize(part, max_tokens=max_tokens, kind="query").mask.sum(dim=1).tolist()
        )
    return np.array(lengths, dtype=np.int64)


def _states(
    tower: TextTower, texts: list[str], max_tokens: int, bf16: bool
) -> Int16[np.ndarray, "text token dim"]:
    tokens = tower.tokenize(texts, max_tokens=max_tokens, kind="query")
    device = next(tower.parameters()).device
    on_device = TextTokens(tokens.ids.to(device), tokens.mask.to(device))
    from sidrec.encoder.encode import autocast_of  # a retriever needs no catalogue

    with autocast_of(tower, bf16):
        states = tower.token_states(on_device).bfloat16()
    bits: Int16[np.ndarray, "text token dim"] = states.cpu().view(torch.int16).numpy()
    return bits


def _remove_old(folder: Path) -> None:
    for file in folder.glob("text_states.*.bin"):
        file.unlink()  # processes that have mapped the old file keep it


def _reserve(file: Path, *, num_bytes: int) -> SidrecError | None:
    """Allocate the file at its full size, so that a full disk fails early; return the error."""
    try:
        with disk_errors(file, "free space and run the same command again to resume."):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as opened:
                os.posix_fallocate(opened.fileno(), 0, max(1, num_bytes))
    except SidrecError as error:
        return error
    return None


def _raise_together(error: SidrecError | None) -> None:
    errors = [one for one in gather_objects(error) if one is not None]
    if errors:
        raise errors[0]


def _mapped(file: Path, shape: tuple[int, int]) -> Int16[np.ndarray, "token dim"]:
    if not shape[0]:
        return np.empty(shape, np.int16)
    mapped: Int16[np.ndarray, "token dim"] = np.memmap(file, np.int16, "r", shape=shape)
    return mapped
