"""Prior over items: a weighted sum of exact scorers for each task."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sidrec.console import say
from sidrec.errors import DataError
from sidrec.generator.scorers.dense import DenseScorer
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.generator.scorers.next_item import NextItemScorer
from sidrec.generator.scorers.prior_settings import PriorSettings
from sidrec.generator.scorers.scorer import PopularityScorer, Scorer, ScorerQuery
from sidrec.types import TASKS, Task

if TYPE_CHECKING:  # a retriever needs no corpus, and its tables take a second to import
    from sidrec.corpus.store import Corpus

_ANSWERING, _LIKELIHOOD = 0, 1  # rows of calibrated scalars

TaskScorers = Mapping[Task, Mapping[str, Scorer]]


class ItemPrior(nn.Module):
    """Prior over items: softmax of a weighted sum of scores over the allowed items.

    In training the weights are ``exp(log_weights)``, with a learning rate of their own. In
    evaluation mode they are the calibrated ones, after ``set_calibrated``, together with the
    calibrated factor of T5's logits: those for answering, or within ``for_likelihood`` those of
    the largest likelihood.

    Args:
        scorers: Scorers of each task, by name; a missing task has no prior.
        corpus_fingerprint: Fingerprint of the corpus from which the scorers were made.
        dropout: Probability in training that an example has no prior, in [0, 1).
        calibration_floor: See ``PriorSettings``; for ``calibrate`` only.
        max_exact_items: See ``PriorSettings``.
    """

    def __init__(
        self,
        scorers: TaskScorers,
        *,
        corpus_fingerprint: str,
        dropout: float = 0.0,
        calibration_floor: float = 0.0,
        max_exact_items: int = 1_000_000,
    ) -> None:
        super().__init__()
        self.max_exact_items, self.calibration_floor = max_exact_items, calibration_floor
        self._row = _ANSWERING
        self.corpus_fingerprint, self.dropout = corpus_fingerprint, dropout
        self.names: dict[Task, tuple[str, ...]] = {
            task: tuple(scorers[task]) for task in TASKS if scorers.get(task)
        }
        self.scorers = nn.ModuleDict(
            {f"{task}_{name}": scorers[task][name] for task in self.names for name in scorers[task]}
        )
        self.log_weights = nn.ParameterDict()
        for task, names in self.names.items():
            start = [scorers[task][name].initial_weight for name in names]
            self.log_weights[task] = nn.Parameter(torch.tensor(start).log())
            unknown = torch.full((2, len(names) + 1), torch.nan)  # [purpose, scalar]
            self.register_buffer(f"{task}_alone", unknown[:, 1:].clone())
            self.register_buffer(f"{task}_scalars", unknown)

    @classmethod
    def of_corpus(
        cls,
        corpus: "Corpus",
        settings: PriorSettings,
        *,
        tasks: Collection[Task],
        item_vectors: Float[Tensor, "item dim"],
        popularity: Int[Tensor, " item"],
        cross_fit: bool,
    ) -> "ItemPrior":
        """Make the scorers for training.

        Args:
            corpus: Source of item texts and train interactions.
            settings: Settings of the prior.
            tasks: Tasks that are trained; the others get no prior.
            item_vectors: Bi-encoder embedding of every item.
            popularity: Train interactions of each item.
            cross_fit: Fit a next-item model per fold as well, without the users of the fold;
                needed where the prior takes part in training steps of recommendation.

        Raises:
            DataError: If a scorer lacks its data.
        """
        make: dict[str, Callable[[], Scorer]] = {
            "dense": lambda: DenseScorer(
                item_vectors, half_life_items=settings.dense_half_life_items
            ),
            "lexical": lambda: LexicalScorer.of_texts(corpus.item_texts()),
            "next_item": lambda: NextItemScorer.of_interactions(
                corpus.train_interactions(),
                corpus.num_items,
                settings.next_item,
                num_folds=settings.next_item.num_folds if cross_fit else 0,
            ),
            "popularity": lambda: PopularityScorer(popularity),
        }
        scorers: dict[Task, dict[str, Scorer]] = {
            task: {name: make[name]() for name in getattr(settings, task)} for task in tasks
        }
        if corpus.num_items > settings.max_exact_items:
            say(
                f"prior: {corpus.num_items:,} items are above prior.max_exact_items "
                f"({settings.max_exact_items:,}); T5 trains and searches alone, and the prior "
                "re-ranks what it finds."
            )
        return cls(
            scorers,
            corpus_fingerprint=corpus.fingerprint,
            dropout=settings.dropout,
            calibration_floor=settings.calibration_floor,
            max_exact_items=settings.max_exact_items,
        )

    def state(self) -> dict[str, Any]:
        """Return the arguments of ``from_state`` except the weights, as plain types and tensors."""
        return {
            "corpus_fingerprint": self.corpus_fingerprint,
            "max_exact_items": self.max_exact_items,
            "scorers": {
                task: {name: self._scorer(task, name).state() for name in names}
                for task, names in self.names.items()
            },
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        *,
        item_vectors: Float[Tensor, "item dim"],
        corpus_fingerprint: str,
    ) -> "ItemPrior":
        """Build a prior for decoding, to load its weights into.

        Args:
            state: Result of ``state``.
            item_vectors: Item embeddings of the Semantic-ID bundle.
            corpus_fingerprint: Fingerprint of the corpus of the Semantic IDs.

        Raises:
            DataError: If the scorers were made from another corpus.
        """
        if state["corpus_fingerprint"] != corpus_fingerprint:
            raise DataError(
                f"The generator's scorers were made from corpus {state['corpus_fingerprint'][:12]},"
                f" but its Semantic IDs belong to corpus {corpus_fingerprint[:12]}; give the IDs "
                "it was trained on, or train again."
            )
        make: dict[str, Callable[[dict[str, Any]], Scorer]] = {
            "dense": lambda own: DenseScorer(item_vectors, **own),
            "lexical": lambda own: LexicalScorer(**own),
            "next_item": NextItemScorer.from_state,
            "popularity": lambda own: PopularityScorer(**own),
        }
        scorers: dict[Task, dict[str, Scorer]] = {
            task: {name: make[name](own) for name, own in of_task.items()}
            for task, of_task in state["scorers"].items()
        }
        return cls(
            scorers,
            corpus_fingerprint=corpus_fingerprint,
            max_exact_items=state["max_exact_items"],
        )

    def extended(self, item_vectors: Float[Tensor, "item dim"]) -> "ItemPrior":
        """Build the prior over a catalogue with appended items, to load its weights into.

        Appended items have a dense score. Scorers without data for them score 0, as for an item
        that shares no word with the query, follows no history, or has no interaction.

        Args:
            item_vectors: Embeddings of the old items, then of the appended ones.
        """
        state, num_items = self.state(), len(item_vectors)
        for of_task in state["scorers"].values():
            for name, own in of_task.items():
                of_task[name] = _EXTENDED[name](own, num_items)
        fingerprint = self.corpus_fingerprint
        return ItemPrior.from_state(
            state, item_vectors=item_vectors, corpus_fingerprint=fingerprint
        )

    @torch.no_grad()
    def scores(self, query: ScorerQuery, *, task: Task) -> Float[Tensor, "scorer request item"]:
        """Return the exact scores of each scorer of a task, by item_index.

        Takes ``4 * scorers * requests * items`` bytes.

        Raises:
            DataError: If a score is NaN or infinite, outside training; the message names the
                scorer.
        """
        weights = self.log_weights[task]
        with torch.autocast(weights.device.type, enabled=False):
            found = [self._scorer(task, name)(query) for name in self.names[task]]
        scores = torch.stack([one.to(weights.device, torch.float32) for one in found])
        if self.training:  # the host does not wait for the scores; the loss's guard sees NaN
            return scores
        finite = torch.isfinite(scores).flatten(1).all(dim=1)
        if not bool(finite.all()):
            bad = [
                name
                for name, good in zip(self.names[task], finite.tolist(), strict=True)
                if not good
            ]
            raise DataError(
                f"Scorer {', '.join(bad)} of {task} gave NaN or infinity; check the item "
                "embeddings of the bundle and the request's text."
            )
        return scores

    def is_exact(self, num_items: int) -> bool:
        """Return whether the prior weights every decoding step, rather than re-ranks."""
        return num_items <= self.max_exact_items

    def weights(self, task: Task) -> Float[Tensor, " scorer"]:
        """Return the current weights: trained ones in training mode, calibrated ones otherwise."""
        if self.training or not self.is_calibrated(task):
            moving: Tensor = self.log_weights[task]
            return moving.exp()
        return self._buffer(task, "scalars")[self._row, :-1]

    def weights_alone(self, task: Task) -> Float[Tensor, " scorer"]:
        """Return the weights that are calibrated for the prior without T5."""
        calibrated = self.is_calibrated(task)
        return self._buffer(task, "alone")[self._row] if calibrated else self.weights(task)

    def t5_factor(self, task: Task) -> float:
        """Return the current factor of T5's logits; 1 in training."""
        if self.training or not self.is_calibrated(task):
            return 1.0
        return float(self._buffer(task, "scalars")[self._row, -1])

    def is_calibrated(self, task: Task) -> bool:
        """Return whether ``set_calibrated`` was called, before or after the checkpoint."""
        return not bool(self._buffer(task, "scalars").isnan().any())

    @contextmanager
    def for_likelihood(self) -> Iterator[None]:
        """Within this context, weights and factor are those of the largest likelihood."""
        self._row = _LIKELIHOOD
        try:
            yield
        finally:
            self._row = _ANSWERING

    def set_calibrated(
        self,
        task: Task,
        *,
        scalars: Float[Tensor, "*purpose scalar"],
        alone: Float[Tensor, "*purpose scorer"],
    ) -> None:
        """Store the scalars of a fit: one row for both purposes, or for answering and likelihood.

        Args:
            task: Task of the requests.
            scalars: Weights with T5, then T5's factor.
            alone: Weights without T5.
        """
        self._buffer(task, "scalars").copy_(scalars)
        self._buffer(task, "alone").copy_(alone)

    def figures(self) -> dict[str, float]:
        """Return weights and T5's factor, as ``metrics.json`` names them."""
        found: dict[str, float] = {}
        for task, names in self.names.items():
            for name, weight in zip(names, self.weights(task).tolist(), strict=True):
                found[f"{task}/prior_weight_{name}"] = weight
            found[f"{task}/t5_factor"] = self.t5_factor(task)
        return found

    def dropped(self, indexed_item: Int[Tensor, " request"]) -> Bool[Tensor, " request"]:
        """Draw the training examples without a prior; indexing examples never have one."""
        chance = torch.rand(len(indexed_item), device=indexed_item.device)
        return (indexed_item >= 0) | (chance < self.dropout)

    def _scorer(self, task: Task, name: str) -> Scorer:
        return cast(Scorer, self.scorers[f"{task}_{name}"])

    def _buffer(self, task: Task, name: str) -> Tensor:
        return self.get_buffer(f"{task}_{name}")


def _more_columns(table: Tensor, num_items: int) -> Tensor:
    return F.pad(table, (0, num_items - table.shape[-1]))


def _more_next_items(own: dict[str, Any], num_items: int) -> dict[str, Any]:
    rows, head = own["rows"], own["head"]
    rows = F.pad(rows, (0, 0, 0, num_items - len(rows)))
    if head is None:
        return own | {"rows": _more_columns(rows, num_items)}
    return own | {"rows": rows, "head": _more_columns(head, num_items)}


_EXTENDED: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "dense": lambda own, _: own,
    "lexical": lambda own, num_items: own | {"num_items": num_items},
    "next_item": _more_next_items,
    "popularity": lambda own, num_items: {
        "popularity": _more_columns(own["popularity"], num_items)
    },
}
