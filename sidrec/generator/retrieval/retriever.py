"""Retriever on a trained generator: queries or histories in, ranked items out."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from sidrec.distributed import device_named
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.generator.decoding.beam_search import Decoded
from sidrec.generator.decoding.item_filters import Restriction, SharedSet, allowed_items
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.batch import batch_of_requests
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.retrieval.appended_items import with_appended_items
from sidrec.generator.retrieval.oom_batching import FittingBatches, is_out_of_memory
from sidrec.generator.retrieval.parse_request import beginning_of, texts_in
from sidrec.generator.training.load_generator import TrainedGenerator, load_generator
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import RankedItems, Request, Task

__all__ = ["KnownItems", "RetrievedItem", "Retriever"]

BATCH_SIZE = 64
AllowedSet = Iterable[str] | Bool[Tensor, " item"]
_FREE = Restriction()


class RetrievedItem(NamedTuple):
    """Item of an answer.

    Attributes:
        item_id: Id from the user's catalogue.
        score: Log-probability of the item's Semantic ID, in nats; items of one ID have one score.
            None for a backfilled item that the search did not find, see ``top_up``.
        semantic_id: Codes, coarse level first.
    """

    item_id: str
    score: float | None
    semantic_id: tuple[int, ...]


class KnownItems(NamedTuple):
    """Known items of a list of item_ids.

    Attributes:
        items: item_index of the items that the catalogue has, in order.
        num_unknown: Number of item_ids that it does not have.
    """

    items: tuple[int, ...]
    num_unknown: int


class Retriever:
    """Trained joint generator, ready to answer; it needs its runs, but no corpus and no Trainer.

    Args:
        generator: Generator from ``load_generator``.
        device: Device of the model.
        bf16: Whether to answer under bfloat16 autocast.
        max_history_items: Number of most recent items of a history that are read.
        exclude_history: Whether to leave a history's own items out of its answer.

    Raises:
        RunError: If the device has no room for the model.
    """

    def __init__(
        self,
        generator: TrainedGenerator,
        *,
        device: torch.device,
        bf16: bool,
        max_history_items: int,
        exclude_history: bool,
    ) -> None:
        try:
            generator.model.to(device).eval()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"{device} has too little memory for the model; use --device cpu."
            ) from None
        self.generator, self.bf16, self.device = generator, bf16, device
        self.max_history_items, self.exclude_history = max_history_items, exclude_history
        self._rows = {item_id: row for row, item_id in enumerate(generator.ids.item_ids)}
        self._batches = FittingBatches(device)
        self._trained: Retriever | None = None  # over the items of training, see ``load``

    @classmethod
    def load(
        cls,
        run_folder: Path | str,
        *,
        device: str = "auto",
        bf16: bool | None = None,
        semantic_ids: Path | str | None = None,
    ) -> "Retriever":
        """Load a finished generator run; answers equal those of ``sidrec test``.

        Args:
            run_folder: Run directory of ``sidrec fit`` with a generator.
            device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
            bf16: bfloat16 autocast; None takes the setting of the run's configuration.
            semantic_ids: Bundle of training with further items appended; requests that are
                restricted to the old items get the same answers as without it.

        Raises:
            RunError: If the run is missing, unfinished, damaged, or not a generator's.
            DataError: If its Semantic IDs are missing or differ from those of training; or if
                ``semantic_ids`` changes an old item.
            ConfigError: If the device is not available.
        """
        run = RunDirectory(Path(run_folder))
        generator = load_generator(run)
        config = read_config(run.config)
        data = config["data"]["init_args"]
        if bf16 is None:
            bf16 = str(config["trainer"].get("precision")).startswith("bf16")
        how: dict[str, Any] = {
            "device": device_named(device),
            "bf16": bf16,
            "max_history_items": data["histories"]["max_history_items"],
            "exclude_history": generator.exclude_history,
        }
        if semantic_ids is None:
            return cls(generator, **how)
        larger = with_appended_items(generator, TaskBundles.load(Path(semantic_ids)))
        retriever = cls(larger, **how)
        retriever._trained = cls(generator, **how)
        return retriever

    @property
    def models(self) -> list[GeneratorModel]:
        """Models that answer: over all items, and over those of training if others came later."""
        own: GeneratorModel = self.generator.model
        return [own] if self._trained is None else [own, *self._trained.models]

    def search(
        self, texts: Iterable[str], top_k: int = 30, *, allowed: AllowedSet | None = None
    ) -> list[list[RetrievedItem]]:
        """Return the best items for each query, best first; ``top_k`` where that many exist.

        Args:
            texts: Queries; their first 4,096 characters and ``max_query_tokens`` tokens are read.
            top_k: Length of the lists.
            allowed: item_ids of the only items to return, or a mask by item_index; None allows the
                whole catalogue. Items that the catalogue does not have are skipped.

        Raises:
            DataError: If ``texts`` is one string, a query is empty (names its place), or no item
                is allowed.
        """
        texts = texts_in(texts, "texts")
        for place, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"Query {place} is empty; give at least one word.")
        requests = [Request("", "search", text, (), ()) for text in texts]
        return self.answer(requests, top_k=top_k, allowed=allowed)

    def recommend(
        self,
        histories: Iterable[Iterable[str]],
        top_k: int = 30,
        *,
        allowed: AllowedSet | None = None,
    ) -> list[list[RetrievedItem]]:
        """Return the best next items for each history of item_ids, oldest first.

        Items that the catalogue does not have are skipped; see :meth:`known`.

        Raises:
            DataError: If a history is not a list of strings or has no known item (names its
                place), or no item is allowed.
        """
        if isinstance(histories, str) or not isinstance(histories, Iterable):
            raise DataError("histories must be a list of lists of item_ids; put one into a list.")
        requests = []
        for place, history in enumerate(histories):
            items = self.known(texts_in(history, f"History {place}")).items
            if not items:
                raise DataError(f"History {place} holds no item of the catalogue; leave it out.")
            requests.append(Request("", "recommendation", "", items, ()))
        return self.answer(requests, top_k=top_k, allowed=allowed)

    def known(self, item_ids: Iterable[str]) -> KnownItems:
        """Look up the item_index of item_ids."""
        rows = [self._rows.get(item_id) for item_id in texts_in(item_ids, "item_ids")]
        items = tuple(row for row in rows if row is not None)
        return KnownItems(items, len(rows) - len(items))

    @torch.inference_mode()
    def answer(
        self,
        requests: Sequence[Request],
        *,
        top_k: int,
        batch_size: int = BATCH_SIZE,
        restrictions: Sequence[Restriction] | None = None,
        allowed: AllowedSet | None = None,
    ) -> list[list[RetrievedItem]]:
        """Answer requests of both tasks, in order; requests of similar length share a batch.

        When the device runs out of memory, later batches are smaller.

        Args:
            requests: Histories as item_index, not empty; queries not empty.
            top_k: Length of the answers; shorter where fewer items are available.
            batch_size: Maximum number of requests decoded together.
            restrictions: Restriction of each request; None restricts none.
            allowed: Limit of all requests, see :meth:`search`.

        Raises:
            ConfigError: If ``top_k`` or ``batch_size`` is below 1.
            DataError: If ``allowed`` holds no item.
            RunError: If a single request does not fit in the device's memory.
        """
        if min(top_k, batch_size) < 1:
            raise ConfigError(
                f"top_k and batch_size must be at least 1, got {top_k} and {batch_size}."
            )
        mask = None if allowed is None else self._mask_of(allowed)
        tasks = {request.task for request in requests}
        shared = {
            task: None if mask is None else SharedSet.of(self._trie(task), mask) for task in tasks
        }
        own = [
            self._restriction(request, given, mask)
            for request, given in zip(
                requests, restrictions or [_FREE] * len(requests), strict=True
            )
        ]
        answers: list[list[RetrievedItem]] = [[] for _ in requests]
        old = self._rows_of_training(requests, own, mask)
        if self._trained is not None and old:
            found = self._trained.answer(
                [requests[row] for row in old],
                top_k=top_k,
                batch_size=batch_size,
                restrictions=[own[row] for row in old],
                allowed=None if mask is None else mask[: len(self._trained._rows)],
            )
            for row, answer in zip(old, found, strict=True):
                answers[row] = answer
        skipped = set(old)

        def work(rows: Sequence[int]) -> list[list[RetrievedItem]]:
            asked, limits = [requests[row] for row in rows], [own[row] for row in rows]
            task = asked[0].task  # the same for all
            return self._items_of(self._decode(asked, limits, shared[task], top_k), task)

        for alike in _alike(requests, own):
            rows = [row for row in alike if row not in skipped]
            for part, found in self._batches.run(rows, work, batch_size=batch_size):
                for row, answer in zip(part, found, strict=True):
                    answers[row] = answer
        return answers

    def _rows_of_training(
        self,
        requests: Sequence[Request],
        restrictions: Sequence[Restriction],
        mask: Bool[Tensor, " item"] | None,
    ) -> list[int]:
        """Return the rows of requests that neither contain nor may get an appended item."""
        if self._trained is None:
            return []
        num_old = len(self._trained._rows)
        all_old = mask is not None and not bool(mask[num_old:].any())
        return [
            row
            for row, (request, (listed, excluded)) in enumerate(
                zip(requests, restrictions, strict=True)
            )
            if (all_old if listed is None else max(listed, default=0) < num_old)
            and max(*request.history, *excluded, -1, -1) < num_old
        ]

    def _mask_of(self, allowed: AllowedSet) -> Bool[Tensor, " item"]:
        num_items = len(self._rows)
        if isinstance(allowed, Tensor):
            mask = allowed.cpu()
            if len(mask) != num_items:
                raise DataError(f"allowed has {len(mask)} entries for {num_items} items; give all.")
        else:
            mask = torch.zeros(num_items, dtype=torch.bool)
            mask[list(self.known(texts_in(allowed, "allowed")).items)] = True
        if not bool(mask.any()):
            raise DataError("allowed holds no item of the catalogue; give one, or None for all.")
        return mask

    def _restriction(
        self, request: Request, given: Restriction, mask: Bool[Tensor, " item"] | None
    ) -> Restriction:
        """Add the history's own items, and apply the shared set to a list."""
        listed, excluded = given
        if self.exclude_history:
            excluded = (*excluded, *request.history)
        if listed is not None and mask is not None:
            listed = tuple(item for item in listed if mask[item])
        return Restriction(listed, excluded)

    def _decode(
        self,
        requests: list[Request],
        restrictions: list[Restriction],
        shared: SharedSet | None,
        top_k: int,
    ) -> RankedItems:
        model = self.generator.model
        batch = batch_of_requests(
            [one._replace(query=beginning_of(one.query)) for one in requests],
            task=requests[0].task,
            request_rows=range(len(requests)),
            max_history_items=self.max_history_items,
            exclude_history=False,  # see _restriction
        )
        tensors: dict[str, Any] = {
            name: value.to(self.device)
            for name, value in batch._asdict().items()
            if isinstance(value, Tensor)
        }
        trie = self._trie(batch.task)
        allowed = allowed_items(trie, restrictions, shared)
        length = min(top_k, len(self._rows))
        width = max(length, self.generator.num_beams)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            decoded: Decoded = model.answer(
                batch._replace(**tensors), num_beams=width, top_k=length, allowed=allowed
            )
        return decoded.ranked

    def _trie(self, task: Task) -> SemanticIdTrie:
        trie: SemanticIdTrie = self.generator.model.space(task).trie
        return trie

    def _items_of(self, ranked: RankedItems, task: Task) -> list[list[RetrievedItem]]:
        bundle = self.generator.ids.bundles[task]
        items, scores = ranked.items.cpu(), ranked.scores.cpu()
        codes = bundle.table.codes[items.clamp(min=0)].tolist()
        return [
            [
                RetrievedItem(
                    bundle.item_ids[item], score if math.isfinite(score) else None, tuple(code)
                )
                for item, score, code in zip(*columns, strict=True)
                if item >= 0
            ]
            for columns in zip(items.tolist(), scores.tolist(), codes, strict=True)
        ]


def _alike(requests: Sequence[Request], restrictions: Sequence[Restriction]) -> list[list[int]]:
    """Return the rows of requests that may share a batch: sorted by length, of one kind."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, (request, restriction) in enumerate(zip(requests, restrictions, strict=True)):
        groups.setdefault((request.task, restriction.allowed is None), []).append(row)
    for rows in groups.values():
        rows.sort(key=lambda row: (len(requests[row].query), len(requests[row].history)))
    return [groups[key] for key in sorted(groups, reverse=True)]
