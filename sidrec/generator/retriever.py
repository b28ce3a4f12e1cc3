"""Answers from a trained generator: texts or histories in, ranked items out."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sidrec.errors import ConfigError, DataError, RunError
from sidrec.generator.batches import batch_of_requests
from sidrec.generator.module import JointGenerator
from sidrec.run_directory import RunDirectory
from sidrec.run_source import read_config
from sidrec.types import Request

BATCH_SIZE = 64


class RetrievedItem(NamedTuple):
    """One place of an answer.

    Attributes:
        item_id: The user's own id.
        score: Log-probability of the item's Semantic ID, in nats; items that share one share it.
        semantic_id: Codes, coarse level first.
    """

    item_id: str
    score: float
    semantic_id: tuple[int, ...]


class KnownHistory(NamedTuple):
    """A history in the catalogue's terms.

    Attributes:
        items: item_index of the items that the catalogue knows, oldest first.
        num_unknown: How many it does not know.
    """

    items: tuple[int, ...]
    num_unknown: int


class Retriever:
    """A trained joint generator, ready to answer; it needs its runs, no corpus and no Trainer.

    Args:
        generator: With its model built and its weights loaded.
        device: Where it answers.
        bf16: Answer under bfloat16 autocast.
        max_history_items: Only the most recent items of a history are read.
        exclude_history: Leave a history's own items out of its answer.
    """

    def __init__(
        self,
        generator: JointGenerator,
        *,
        device: torch.device,
        bf16: bool,
        max_history_items: int,
        exclude_history: bool,
    ) -> None:
        self.generator = generator.to(device).eval()
        self.bf16, self.device = bf16, device
        self.max_history_items, self.exclude_history = max_history_items, exclude_history
        self._rows = {item_id: row for row, item_id in enumerate(generator.bundle.item_ids)}

    @classmethod
    def load(
        cls, run_folder: Path | str, *, device: str = "auto", bf16: bool | None = None
    ) -> "Retriever":
        """Load a finished generator run; it answers as ``sidrec test`` does.

        Args:
            run_folder: Run directory of ``sidrec fit`` with a generator.
            device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
            bf16: bfloat16 autocast; None as in the run's configuration.

        Raises:
            RunError: If the run is missing, unfinished, damaged, or no generator's.
            DataError: If its Semantic IDs are gone, or are not those it was trained on.
            ConfigError: If the device is not there.
        """
        run = RunDirectory(Path(run_folder))
        generator = _generator_of(run)
        config = read_config(run.config)
        data = config["data"]["init_args"]
        if bf16 is None:
            bf16 = str(config["trainer"].get("precision")).startswith("bf16")
        return cls(
            generator,
            device=_device(device),
            bf16=bf16,
            max_history_items=data["max_history_items"],
            exclude_history=data["exclude_history"],
        )

    def search(self, texts: Sequence[str], top_k: int = 30) -> list[list[RetrievedItem]]:
        """Return the best items for each query, best first; ``top_k`` of them where they exist.

        Raises:
            DataError: If a query is empty; names its place.
        """
        for place, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"Query {place} is empty; give at least one word.")
        requests = [Request("", "search", text, (), ()) for text in texts]
        return self.answer(requests, top_k=top_k)

    def recommend(
        self, histories: Sequence[Sequence[str]], top_k: int = 30
    ) -> list[list[RetrievedItem]]:
        """Return the best next items for each history of item_ids, oldest first.

        Items that the catalogue does not know are skipped; see :meth:`known`.

        Raises:
            DataError: If nothing is left of a history; names its place.
        """
        requests = []
        for place, history in enumerate(histories):
            items = self.known(history).items
            if not items:
                raise DataError(f"History {place} holds no item of the catalogue; leave it out.")
            requests.append(Request("", "recommendation", "", items, ()))
        return self.answer(requests, top_k=top_k)

    def known(self, history: Sequence[str]) -> KnownHistory:
        """Look the items of a history up."""
        rows = [self._rows.get(item_id) for item_id in history]
        items = tuple(row for row in rows if row is not None)
        return KnownHistory(items, len(rows) - len(items))

    @torch.inference_mode()
    def answer(
        self, requests: Sequence[Request], *, top_k: int, batch_size: int = BATCH_SIZE
    ) -> list[list[RetrievedItem]]:
        """Answer requests of both tasks, in their order; requests of like length run together.

        Args:
            requests: Histories as item_index, not empty; queries not empty.
            top_k: Length of the answers; a smaller catalogue gives shorter ones.
            batch_size: Requests decoded together.

        Raises:
            ConfigError: If ``top_k`` or ``batch_size`` is below 1.
        """
        if min(top_k, batch_size) < 1:
            raise ConfigError(
                f"top_k and batch_size must be at least 1, got {top_k} and {batch_size}."
            )
        answers: list[list[RetrievedItem]] = [[] for _ in requests]
        for task in ("search", "recommendation"):
            rows = [row for row, request in enumerate(requests) if request.task == task]
            rows.sort(key=lambda row: (len(requests[row].query), len(requests[row].history)))
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                found = self._decode([requests[row] for row in part], top_k)
                for row, answer in zip(part, found, strict=True):
                    answers[row] = answer
        return answers

    def _decode(self, requests: list[Request], top_k: int) -> list[list[RetrievedItem]]:
        bundle, model = self.generator.bundle, self.generator.model
        batch = batch_of_requests(
            requests,
            request_rows=range(len(requests)),
            max_history_items=self.max_history_items,
            exclude_history=self.exclude_history,
        )
        tensors: dict[str, Any] = {
            name: value.to(self.device)
            for name, value in batch._asdict().items()
            if isinstance(value, torch.Tensor)
        }
        length = min(top_k, len(bundle.item_ids))
        width = max(length, self.generator.settings.num_beams)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            decoded = model.answer(batch._replace(**tensors), num_beams=width, top_k=length)
        ranked = decoded.ranked
        codes = bundle.table.codes[ranked.items.cpu().clamp(min=0)].tolist()
        return [
            [
                RetrievedItem(bundle.item_ids[item], score, tuple(semantic_id))
                for item, score, semantic_id in zip(*columns, strict=True)
                if item >= 0
            ]
            for columns in zip(ranked.items.tolist(), ranked.scores.tolist(), codes, strict=True)
        ]


def _generator_of(run: RunDirectory) -> JointGenerator:
    file = run.finished_checkpoint()
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{file} is damaged ({reason}); run `sidrec fit` again.") from None
    if "bundle_hash" not in checkpoint:
        raise RunError(f"{file} is no generator; give --from the folder of a generator run.")
    arguments = checkpoint["hyper_parameters"].items()
    generator = JointGenerator(**{k: v for k, v in arguments if not k.startswith("_")})
    generator.on_load_checkpoint(checkpoint)
    generator.load_state_dict(checkpoint["state_dict"])
    return generator


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: no GPU is visible; use --device cpu.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu or cuda, got '{name}'.") from None
