"""States of a frozen encoder for the training texts, made once and memory-mapped."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Int, Int16, Int64
from torch import Tensor

from sidrec.console import track
from sidrec.distributed import on_rank_zero, rank_and_world_size, wait_for_all_ranks
from sidrec.encoder.tower import TextTower
from sidrec.files import disk_errors
from sidrec.types import TextTokens

_TOKENIZED_TOGETHER = 4_096


@dataclass(frozen=True)
class TextStates:
    """Token states of texts, in bfloat16.

    Attributes:
        starts: States of text ``i`` are rows ``[starts[i], starts[i + 1])`` of ``values``.
        values: Bit pattern of bfloat16 states, memory-mapped.
    """

    starts: Int64[np.ndarray, " bound"]
    values: Int16[np.ndarray, "token dim"]

    def gather(
        self, rows: Int[Tensor, " text"]
    ) -> tuple[BFloat16[Tensor, "text token dim"], Bool[Tensor, "text token"]]:
        """Return padded bfloat16 states and their mask; row -1 has no token at all."""
        chosen = rows.tolist()
        lengths = [0 if row < 0 else int(self.starts[row + 1] - self.starts[row]) for row in chosen]
        width = max([1, *lengths])
        states = np.zeros((len(chosen), width, self.values.shape[1]), dtype=np.int16)
        for place, (row, length) in enumerate(zip(chosen, lengths, strict=True)):
            if length:
                states[place, :length] = self.values[self.starts[row] : self.starts[row + 1]]
        mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
        return torch.from_numpy(states).view(torch.bfloat16), mask


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
    """Encode texts with a frozen tower, each rank its share, into one memory-mapped file.

    Args:
        tower: In evaluation mode afterwards.
        texts: The same on every rank.
        max_tokens: Longer texts are cut.
        batch_size: Texts per forward pass.
        folder: On a disk that all ranks share; the file is written anew.
        bf16: Run the encoder under bfloat16 autocast.

    Raises:
        SidrecError: If the disk has no room for the file; on every rank.
    """
    tower.eval()
    rank, world_size = rank_and_world_size()
    starts = _starts(tower, texts, max_tokens)
    file, shape = folder / "text_states.bin", (int(starts[-1]), tower.dim)
    on_rank_zero(lambda: _reserve(file, num_bytes=2 * shape[0] * shape[1]))
    values = np.memmap(file, np.int16, "r+", shape=shape)
    order = np.argsort(np.diff(starts), kind="stable")  # the same batches for any number of ranks
    batches = range(rank * batch_size, len(order), world_size * batch_size)
    for first in track(batches, "Encoding queries", total=len(batches)):
        rows = order[first : first + batch_size].tolist()
        states = _states(tower, [texts[row] for row in rows], max_tokens, bf16)
        for place, row in enumerate(rows):
            length = starts[row + 1] - starts[row]
            values[starts[row] : starts[row + 1]] = states[place, :length]
    values.flush()
    wait_for_all_ranks()
    return TextStates(starts, np.memmap(file, np.int16, "r", shape=shape))


def _starts(tower: TextTower, texts: list[str], max_tokens: int) -> Int64[np.ndarray, " bound"]:
    lengths = [0]
    for first in range(0, len(texts), _TOKENIZED_TOGETHER):
        part = texts[first : first + _TOKENIZED_TOGETHER]
        lengths += tower.tokenize(part, max_tokens=max_tokens).mask.sum(dim=1).tolist()
    return np.cumsum(lengths, dtype=np.int64)


def _states(
    tower: TextTower, texts: list[str], max_tokens: int, bf16: bool
) -> Int16[np.ndarray, "text token dim"]:
    tokens = tower.tokenize(texts, max_tokens=max_tokens)
    device = next(tower.parameters()).device
    on_device = TextTokens(tokens.ids.to(device), tokens.mask.to(device))
    from sidrec.encoder.encode import autocast_of  # a retriever needs no catalogue

    with autocast_of(tower, bf16):
        states = tower.token_states(on_device).bfloat16()
    bits: Int16[np.ndarray, "text token dim"] = states.cpu().view(torch.int16).numpy()
    return bits


def _reserve(file: Path, *, num_bytes: int) -> None:
    """Make the file at its full size now: a disk that fills up under a memory map kills."""
    with disk_errors(file, "make room and run again; what was trained so far is kept."):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # a reader of the old file keeps it
        with file.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, num_bytes)
