"""Catalogue as the page shows it: items by title, and items below a prefix."""

from typing import TYPE_CHECKING, Any

import torch

from sidrec.errors import DataError
from sidrec.generator.decoding.trie import pack
from sidrec.types import TASKS, Task

if TYPE_CHECKING:
    from sidrec.generator.training.load_generator import TrainedGenerator

_MOST_SHOWN = 12
_MOST_BELOW = 60


class ShownCatalogue:
    """Titles and Semantic IDs of a generator's items.

    Args:
        generator: Trained generator.
    """

    def __init__(self, generator: "TrainedGenerator") -> None:
        self._generator = generator
        ids = generator.ids
        self.item_ids, self.titles = ids.item_ids, ids.bundles["search"].titles
        self._lowered = [title.casefold() for title in self.titles]
        self._rows = {item_id: row for row, item_id in enumerate(self.item_ids)}

    def matching(self, text: str) -> list[dict[str, str]]:
        """Return the first items whose title contains ``text``, those that begin with it first."""
        wanted = text.strip().casefold()
        found = [row for row, title in enumerate(self._lowered) if wanted in title]
        found.sort(key=lambda row: not self._lowered[row].startswith(wanted))
        return [self.item(row) for row in found[:_MOST_SHOWN]]

    def titles_of(self, item_ids: list[str]) -> dict[str, str]:
        """Return the title of each item."""
        return {item_id: self.titles[self._rows[item_id]] for item_id in item_ids}

    def below(self, task: str, codes: list[int]) -> dict[str, Any]:
        """Return the items whose Semantic ID begins with ``codes``; at most 60, and their number.

        Raises:
            DataError: If the task is unknown, or a code does not exist.
        """
        if task not in TASKS:
            raise DataError(f"task must be one of {', '.join(TASKS)}, got '{task}'.")
        known: Task = task
        trie = self._generator.model.space(known).trie
        sizes = trie.codebook_sizes
        if not 1 <= len(codes) <= len(sizes) or any(
            not 0 <= code < size for code, size in zip(codes, sizes, strict=False)
        ):
            raise DataError(f"codes {codes} are no prefix of levels with {list(sizes)} codes.")
        rest = sizes[len(codes) :]
        lowest = torch.tensor([*codes, *(0 for _ in rest)])
        highest = torch.tensor([*codes, *(size - 1 for size in rest)])
        keys = trie.keys.cpu()
        first = int(torch.searchsorted(keys, pack(lowest, sizes)))
        end = int(torch.searchsorted(keys, pack(highest, sizes), right=True))
        rows = trie.items[first : min(end, first + _MOST_BELOW)].tolist()
        table = self._generator.ids.bundles[known].table.codes
        items = [self.item(row) | {"semantic_id": table[row].tolist()} for row in rows]
        return {"num_items": end - first, "items": items}

    def item(self, row: int) -> dict[str, Any]:
        """Return the id and the title of an item."""
        return {"item_id": self.item_ids[row], "title": self.titles[row]}
