"""States of a frozen encoder for the training texts, made once and memory-mapped."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sidrec.console import track
from sidrec.distributed import rank_and_world_size, wait_for_all_ranks
from sidrec.encoder.catalogue import autocast_of
from sidrec.encoder.tower import TextTower
from sidrec.types import TextTokens


@dataclass(frozen=True)
class TextStates:
    """Token states of texts, in bfloat16.

    Attributes:
        starts: States of text ``i`` are rows ``[starts[i], starts[i + 1])`` of ``values``.
        values: Bit pattern of bfloat16 states, memory-mapped.
    """

    starts: Int64[np.ndarray, " bound"]
    values: np.ndarray

    def gather(
        self, rows: Int[Tensor, " text"]
    ) -> tuple[Float[Tensor, "text token dim"], Bool[Tensor, "text token"]]:
        """Return padded states and their mask; row -1 has no token at all."""
        chosen = rows.tolist()
        lengths = [0 if row < 0 else int(self.starts[row + 1] - self.starts[row]) for row in chosen]
        width = max([1, *lengths])
        states = np.zeros((len(chosen), width, self.values.shape[1]), dtype=np.int16)
        for place, (row, length) in enumerate(zip(chosen, lengths, strict=True)):
            if length:
                states[place, :length] = self.values[self.starts[row] : self.starts[row + 1]]
        mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
        return torch.from_numpy(states).view(torch.bfloat16).float(), mask


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
    """
    tower.eval()
    rank, world_size = rank_and_world_size()
    lengths = [0] * len(texts)
    for first in range(0, len(texts), 4096):
        mask = tower.tokenize(texts[first : first + 4096], max_tokens=max_tokens).mask
        lengths[first : first + len(mask)] = mask.sum(dim=1).tolist()
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    file, shape = folder / "text_states.bin", (int(starts[-1]), tower.dim)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        np.memmap(file, np.int16, "w+", shape=shape).flush()
    wait_for_all_ranks()
    values = np.memmap(file, np.int16, "r+", shape=shape)
    order = np.argsort(lengths, kind="stable")[rank::world_size]
    device = next(tower.parameters()).device
    batches = range(0, len(order), batch_size)
    for first in track(batches, "Encoding queries", total=len(batches)):
        rows = order[first : first + batch_size].tolist()
        tokens = tower.tokenize([texts[row] for row in rows], max_tokens=max_tokens)
        on_device = TextTokens(tokens.ids.to(device), tokens.mask.to(device))
        with autocast_of(tower, bf16):
            states = tower.token_states(on_device).bfloat16().cpu().view(torch.int16).numpy()
        for place, row in enumerate(rows):
            values[starts[row] : starts[row + 1]] = states[place, : lengths[row]]
    values.flush()
    wait_for_all_ranks()
    return TextStates(starts, np.memmap(file, np.int16, "r", shape=shape))
