"""Joint generator as a plain torch module: requests to log-probabilities or ranked items."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias, cast

import torch
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
    likelihood_along,
    rank_by_scores,
    rerank,
    target_log_probabilities,
)
from sidrec.generator.model.request_embedder import InputSettings, Reading, RequestEmbedder
from sidrec.generator.model.seq2seq import Seq2SeqDecoder
from sidrec.generator.model.t5_decoder import StepDecoder, T5Decoder
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.generator.scorers.scorer import ScorerQuery
from sidrec.kernels.t5_forward import (
    code_logits,
    has_wrapped_decoder,
    is_wrapped,
    plain_read_positions,
    plain_write_tokens,
    read_positions,
    write_tokens,
)
from sidrec.types import TASKS, Task

AnswerBy: TypeAlias = Literal["both", "t5", "prior"]


class GeneratorModel(nn.Module):
    """T5 that reads requests of both tasks and generates Semantic IDs.

    Each step is a softmax over the codes that continue a prefix in the trie. Each code is
    weighted by the prior mass of the items below it, in training and in decoding, so the
    probabilities of all Semantic IDs sum to one. Without a prior all items have equal mass.
    TIGER instead normalizes over the whole vocabulary. The attribute ``decoding`` is the search
    strategy, beam search by default. ``base`` holds name, revision and LoRA settings of a model
    with adapters.

    Args:
        t5: ``T5ForConditionalGeneration`` whose vocabulary holds the codes.
        inputs: Encoder input of a request.
        tokenizer: Tokenizer of ``t5``.
        spaces: Semantic IDs of each task, often the same object twice. Histories use those of
            recommendation.
        item_vectors: Bi-encoder embedding of every item.
        popularity: Train interactions of each item.
        tower: Frozen text tower; None when queries are read as T5's tokens.
        prior: Prior over items; None: T5 alone.

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
        self.base: dict[str, Any] | None = None
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}
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
        """Return the Semantic IDs of a task."""
        return cast("CodeSpace", self.spaces[task])

    def compile_t5(self) -> None:
        """Compile T5's training forward with ``torch.compile``."""
        self._compiled = {one: torch.compile(one, dynamic=True) for one in self._forward_of_t5()}

    def _forward_of_t5(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """Return T5's encoder and decoder: transformers' own where anything wraps the model."""
        if is_wrapped(self.t5):
            read, write = plain_read_positions, plain_write_tokens
        else:
            read, write = read_positions, write_tokens
        compiled = self._compiled if self.training else {}
        return compiled.get(read, read), compiled.get(write, write)

    @property
    def decoder(self) -> StepDecoder:
        """Step-wise decoder: transformers' own forward where anything wraps the decoder."""
        kind = Seq2SeqDecoder if has_wrapped_decoder(self.t5) else T5Decoder
        tokens = self.space("search").vocabulary.level_token_ids()
        return kind(self.t5, tokens, normalize_over="level")

    def forward(self, batch: GeneratorBatch, *, label_smoothing: float) -> Float[Tensor, " level"]:
        """Return the mean cross-entropy of each level's code over the batch, in nats.

        Uses teacher forcing: level ``l`` sees the target's codes before it. The sum over levels
        is the negative log-likelihood of the target among the items of the catalogue.

        Args:
            batch: Training examples, every target known.
            label_smoothing: Share of the target's probability spread over the codes that
                continue the prefix in the trie, in [0, 1).
        """
        return self._losses(*self._along_targets(batch), label_smoothing)

    @torch.no_grad()
    def log_likelihood(self, batch: GeneratorBatch) -> Float[Tensor, " request"]:
        """Return the log-probability of each request's target, in nats.

        The prior takes part with its weights of the largest likelihood. NaN where the target is
        unknown or excluded.
        """
        known = (batch.target >= 0) & (batch.excluded != batch.target[:, None]).all(dim=1)
        with nullcontext() if self.prior is None else self.prior.for_likelihood():
            along = self._along_targets(batch._replace(target=batch.target.clamp(min=0)))
        return torch.where(known, likelihood_along(*along), torch.nan)

    def _along_targets(
        self, batch: GeneratorBatch
    ) -> tuple[list[Float[Tensor, "request _"]], TargetPath]:
        """Return the log-probabilities of all codes at each level of the targets."""
        reading = self.embedder(batch)
        path = self.target_path(batch, reading)
        mass = self._mass(
            batch, reading, AllItemsBut.of(self.space(batch.task).trie, batch.excluded)
        )
        factor = 1.0 if mass is None or self.prior is None else self.prior.t5_factor(batch.task)
        return target_log_probabilities(path, mass, t5_factor=factor), path

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
        """Return T5's logits of all codes at each level, along the targets' prefixes."""
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
        high = low + trie.num_items
        logits, bounds = [], []
        levels = zip(vocabulary.level_starts, vocabulary.codebook_sizes, strict=True)
        for level, (first, size) in enumerate(levels):
            tokens = slice(first, first + size)
            logits.append(code_logits(self.t5, hidden[:, level], tokens).float())
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
        _, write = self._forward_of_t5()
        return write(self.t5, torch.cat([start, target[:, :-1]], dim=1), source, mask)

    def _steps_of(self, reading: Reading, tokens: list[Int[Tensor, " _"]]) -> Callable[[], Step]:
        """Read the requests; return a function that starts a search over their answers."""
        source, decoder = self.encode(reading), self.decoder
        return lambda: decoder.start(source, reading.mask, level_token_ids=tokens)

    def encode(self, reading: Reading) -> Float[Tensor, "request position dim"]:
        """Return the output of T5's encoder."""
        read, _ = self._forward_of_t5()
        return read(self.t5, reading.positions, reading.mask)

    def _untouched(self) -> Float[Tensor, ""]:
        """Return 0 as a function of the weights that only one task uses, for DDP."""
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
        """Return the prior of a batch over its allowed items, or None without a prior."""
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
        """Decode ranked lists under the trie: real items, none twice, none excluded.

        A list shorter than ``top_k`` is filled up (``top_up``) as far as enough items are
        allowed. The Semantic IDs of the result are those that the search found. Where T5's
        factor is 0, the prior alone ranks the items.

        Args:
            batch: Requests of one task.
            num_beams: Beam width.
            top_k: Length of the lists.
            allowed: Items that each request allows; None: all but ``batch.excluded``.
            by: ``both``; ``t5``, with equal mass for every item; or ``prior``, which must exist.

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

        def start() -> Step:
            steps = new_steps()
            if self.prior is None or mass is None:
                return steps
            factor = self.prior.t5_factor(batch.task)
            return PriorSteps(steps, space.trie, mass, t5_factor=factor)

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
    """Return the mean cross-entropy of ``code``, smoothed over the possible codes only."""
    loss = -log_probabilities.gather(1, code).mean()
    if label_smoothing == 0:
        return loss
    spread = -torch.where(possible, log_probabilities, 0.0).sum(dim=1) / possible.sum(dim=1)
    return (1 - label_smoothing) * loss + label_smoothing * spread.mean()
