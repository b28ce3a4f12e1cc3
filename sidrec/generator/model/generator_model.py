"""The joint generator as a plain module: requests in, log-probabilities or ranked items out."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from sidrec.encoder.tower import TextTower
from sidrec.generator.decoding.backfill import popular_first, top_up
from sidrec.generator.decoding.beam_search import Decoded, Step
from sidrec.generator.decoding.item_filters import AllItemsBut, AllowedItems
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.code_space import CodeSpace
from sidrec.generator.model.prefix_prior import (
    PrefixMass,
    PriorSteps,
    TargetPath,
    allowed_positions,
    rank_by_scores,
    rerank,
    target_log_probabilities,
)
from sidrec.generator.model.request_embedder import InputSettings, Reading, RequestEmbedder
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.generator.scorers.scorer import ScorerQuery
from sidrec.kernels.t5_forward import read_positions, write_tokens
from sidrec.types import TASKS, Task

AnswerBy: TypeAlias = Literal["both", "t5", "prior"]


class GeneratorModel(nn.Module):
    """A T5 that reads requests of both tasks and writes Semantic IDs.

    The probabilities of a step are a softmax over the codes that the catalogue goes on with, each
    weighed by the prior of the items behind it, in training as in decoding: the probabilities of
    all Semantic IDs sum to one. Without a prior every item counts the same. TIGER normalizes over
    the whole vocabulary. The attribute ``decoding`` says how answers are searched for; beams,
    unless it is set.

    Args:
        t5: ``T5ForConditionalGeneration`` whose vocabulary holds the codes.
        inputs: How requests become positions.
        tokenizer: Of ``t5``.
        spaces: Semantic IDs in which each task answers, often the same object twice. Histories
            are read in those of recommendation.
        item_vectors: Bi-encoder embedding of every item.
        popularity: Train interactions of each item.
        tower: Frozen text tower; None when queries are read as T5's tokens.
        prior: Weighs the items; None leaves T5 alone.

    Raises:
        ConfigError: If ``inputs`` needs a tower that is missing or of another width.
    """

    def __init__(
        self,
        t5: Any,  # noqa: ANN401 (transformers is untyped)
        inputs: InputSettings,
        tokenizer: Tokenizer,
        spaces: Mapping[Task, CodeSpace],
        item_vectors: Float[Tensor, "item dim"],
        popularity: Int[Tensor, " item"],
        tower: TextTower | None,
        prior: ItemPrior | None = None,
    ) -> None:
        super().__init__()
        self.t5, self.popularity, self.decoding = t5, popularity, Decoding()
        self.prior = prior
        self._fill_order = popular_first(popularity)
        self.spaces = nn.ModuleDict({task: spaces[task] for task in TASKS})
        self._read_positions, self._write_tokens = read_positions, write_tokens
        self.embedder = RequestEmbedder(
            inputs,
            t5.get_input_embeddings(),
            tokenizer,
            spaces["recommendation"],
            item_vectors,
            tower,
            **self._reading_options(t5),
        )

    def _reading_options(self, t5: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return further arguments of the embedder."""
        del t5
        return {}

    def space(self, task: Task) -> CodeSpace:
        """Return the Semantic IDs in which a task answers."""
        return cast("CodeSpace", self.spaces[task])

    def compile_t5(self) -> None:
        """Let ``torch.compile`` turn T5's forward into kernels, in training alone."""
        self._read_positions = torch.compile(read_positions, dynamic=True)
        self._write_tokens = torch.compile(write_tokens, dynamic=True)

    def forward(self, batch: GeneratorBatch, *, label_smoothing: float) -> Float[Tensor, " level"]:
        """Return the mean cross-entropy of each level's code over the batch, in nats.

        Teacher forcing: level ``l`` sees the target's codes before it. The sum over levels is
        -ln of the probability that the catalogue's items share.

        Args:
            batch: Every target is known.
            label_smoothing: Share of the target's probability spread over the codes that the
                catalogue goes on with, in [0, 1).
        """
        reading = self.embedder(batch)
        path = self.target_path(batch, reading)
        mass = self._mass(
            batch, reading, AllItemsBut.of(self.space(batch.task).trie, batch.excluded)
        )
        factor = 1.0 if mass is None or self.prior is None else self.prior.t5_factor(batch.task)
        log_probabilities = target_log_probabilities(path, mass, t5_factor=factor)
        return self._losses(log_probabilities, path, label_smoothing)

    def _losses(
        self,
        log_probabilities: list[Float[Tensor, "request _"]],
        path: TargetPath,
        label_smoothing: float,
    ) -> Float[Tensor, " level"]:
        losses = [
            smoothed_loss(of_level, code, has_items, label_smoothing=label_smoothing)
            for of_level, code, has_items in zip(
                log_probabilities,
                path.codes.chunk(path.codes.shape[1], dim=1),
                path.has_items,
                strict=True,
            )
        ]
        return torch.stack(losses) + self._untouched()

    def target_path(self, batch: GeneratorBatch, reading: Reading) -> TargetPath:
        """Return T5's logits of the codes that compete with each code of the targets."""
        space = self.space(batch.task)
        codes = space.codes[batch.target]  # [request, level]
        hidden = self._states_before(space.vocabulary.tokens_of(codes), reading)
        return self._path_along(codes, hidden, space)

    def _path_along(
        self,
        codes: Int[Tensor, "request level"],
        hidden: Float[Tensor, "request level dim"],
        space: CodeSpace,
    ) -> TargetPath:
        trie, vocabulary = space.trie, space.vocabulary
        low = codes.new_zeros((len(codes), 1), dtype=torch.int32)
        high, weight = low + trie.num_items, self.t5.lm_head.weight
        logits, bounds = [], []
        levels = zip(vocabulary.level_starts, vocabulary.codebook_sizes, strict=True)
        for level, (first, size) in enumerate(levels):
            logits.append(F.linear(hidden[:, level], weight[first : first + size]).float())
            bounds.append(trie.child_bounds(low, high, level=level)[:, 0])  # [request, code + 1]
            code = codes[:, level, None]
            low, high = bounds[-1].gather(1, code), bounds[-1].gather(1, code + 1)
        return TargetPath(logits, bounds, codes, trie.num_items)

    def _states_before(
        self, target: Int[Tensor, "request level"], reading: Reading
    ) -> Float[Tensor, "request level dim"]:
        """Return the hidden state that predicts each token of the targets."""
        source, mask = self.encode(reading), reading.mask
        start = torch.full_like(target[:, :1], self.t5.config.decoder_start_token_id)
        write = self._write_tokens if self.training else write_tokens
        hidden: Tensor = write(self.t5, torch.cat([start, target[:, :-1]], dim=1), source, mask)
        return hidden

    def _steps_of(self, reading: Reading, tokens: list[Int[Tensor, " _"]]) -> Callable[[], Step]:
        """Read the requests; return a function that starts a search over their answers."""
        source = self.encode(reading)
        decoder = T5Decoder(self.t5, tokens, normalize_over="level")
        return lambda: decoder.start(source, reading.mask)

    def encode(self, reading: Reading) -> Float[Tensor, "request position dim"]:
        """Return the output of T5's encoder."""
        read = self._read_positions if self.training else read_positions
        encoded: Tensor = read(self.t5, reading.positions, reading.mask)
        return encoded

    def _untouched(self) -> Float[Tensor, ""]:
        """Return 0 as a function of the weights that only one of the tasks uses, for DDP."""
        own = [weight.sum() * 0.0 for weight in self.prior.parameters()] if self.prior else []
        return sum(own, start=self.embedder.untouched())

    def scorer_scores(
        self, batch: GeneratorBatch, reading: Reading
    ) -> Float[Tensor, "scorer request item"] | None:
        """Return the exact scores of the prior's scorers by item_index; None without a prior."""
        if self.prior is None or batch.task not in self.prior.names:
            return None
        asked = ScorerQuery(batch.texts, reading.vector, batch.history, batch.user_index)
        return self.prior.scores(asked, task=batch.task)

    def _mass(
        self, batch: GeneratorBatch, reading: Reading, allowed: AllowedItems
    ) -> PrefixMass | None:
        """Return the prior of a batch over the items that its requests may get, if there is one."""
        prior, space = self.prior, self.space(batch.task)
        if prior is None or not prior.is_exact(space.trie.num_items):
            return None
        scores = self.scorer_scores(batch, reading)
        if scores is None:
            return None
        with torch.autocast(scores.device.type, enabled=False):
            total = torch.tensordot(prior.weights(batch.task), scores, dims=1)  # [request, item]
        if self.training:
            total = total.masked_fill(prior.dropped(batch.indexed_item)[:, None], 0.0)
        trie = space.trie
        is_allowed = allowed_positions(allowed, trie, batch.num_requests)
        return PrefixMass(space.tree, total[:, trie.items], is_allowed)

    @torch.no_grad()
    def answer(
        self,
        batch: GeneratorBatch,
        *,
        num_beams: int,
        top_k: int,
        allowed: AllowedItems | None = None,
        by: AnswerBy = "both",
    ) -> Decoded:
        """Decode a batch under the trie: real items only, none twice, none excluded.

        Lists are ``top_k`` long wherever so many items are allowed: what a search left short, as
        groups of beams that meet do, is filled up (``top_up``). The Semantic IDs in the answer are
        those that the search found. Where T5's factor is 0, items are ranked by the prior itself.

        Args:
            batch: Requests of one task.
            num_beams: Width of the search.
            top_k: Length of the lists.
            allowed: Items each request may get; None: all but ``batch.excluded``.
            by: ``both``; ``t5``, every item counting the same; or ``prior``, which must exist.

        Raises:
            ConfigError: If ``num_beams`` is smaller than ``top_k``.
        """
        trie = self.space(batch.task).trie
        if allowed is None:
            allowed = AllItemsBut.of(trie, batch.excluded)
        found = self._search(batch, allowed, num_beams=num_beams, top_k=top_k, by=by)
        self._fill_order = self._fill_order.to(trie.items.device)
        ranked = top_up(found.ranked, trie=trie, allowed=allowed, fill_order=self._fill_order)
        return found._replace(ranked=ranked)

    def _search(
        self,
        batch: GeneratorBatch,
        allowed: AllowedItems,
        *,
        num_beams: int,
        top_k: int,
        by: AnswerBy,
    ) -> Decoded:
        reading, space, prior = self.embedder(batch), self.space(batch.task), self.prior
        trie, task = space.trie, batch.task
        if by == "t5" or prior is None or task not in prior.names:
            return self._t5_search(batch, reading, allowed, num_beams, top_k, mass=None)
        if by == "prior" or prior.t5_factor(task) == 0:
            weights = prior.weights_alone(task) if by == "prior" else prior.weights(task)
            scores = self.scorer_scores(batch, reading)
            total = torch.tensordot(weights, scores, dims=1)[:, trie.items]
            is_allowed = allowed_positions(allowed, trie, batch.num_requests)
            return rank_by_scores(total, is_allowed, trie, top_k=top_k)
        if prior.is_exact(trie.num_items):
            mass = self._mass(batch, reading, allowed)
            return self._t5_search(batch, reading, allowed, num_beams, top_k, mass=mass)
        found = self._t5_search(batch, reading, allowed, num_beams, num_beams, mass=None)
        total = torch.tensordot(prior.weights(task), self.scorer_scores(batch, reading), dims=1)
        return rerank(found, total, trie, t5_factor=prior.t5_factor(task), top_k=top_k)

    def _t5_search(
        self,
        batch: GeneratorBatch,
        reading: Reading,
        allowed: AllowedItems,
        num_beams: int,
        top_k: int,
        *,
        mass: PrefixMass | None,
    ) -> Decoded:
        space = self.space(batch.task)
        new_steps = self._steps_of(reading, space.vocabulary.level_token_ids())
        factor = 1.0 if self.prior is None else self.prior.t5_factor(batch.task)

        def start() -> Step:
            steps = new_steps()
            return steps if mass is None else PriorSteps(steps, space.trie, mass, t5_factor=factor)

        return self.decoding.search(
            start,
            space.trie,
            allowed,
            num_requests=batch.num_requests,
            num_beams=num_beams,
            top_k=top_k,
            mass_before=space.even_mass(batch.num_requests) if mass is None else None,
        )


def smoothed_loss(
    log_probabilities: Float[Tensor, "request code"],
    code: Int[Tensor, "request 1"],
    possible: Bool[Tensor, "request code"],
    *,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of ``code``, smoothed over the possible codes alone."""
    loss = -log_probabilities.gather(1, code).mean()
    if label_smoothing == 0:
        return loss
    spread = -torch.where(possible, log_probabilities, 0.0).sum(dim=1) / possible.sum(dim=1)
    return (1 - label_smoothing) * loss + label_smoothing * spread.mean()
