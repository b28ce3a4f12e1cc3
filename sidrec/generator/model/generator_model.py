"""The joint generator as a plain module: requests in, log-probabilities or ranked items out."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from sidrec.encoder.tower import TextTower
from sidrec.generator.decoding.backfill import popular_first, top_up
from sidrec.generator.decoding.beam_search import Decoded, Step, over_children
from sidrec.generator.decoding.item_filters import AllItemsBut, AllowedItems
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.code_space import CodeSpace
from sidrec.generator.model.prefix_prior import WeighedSteps
from sidrec.generator.model.request_embedder import InputSettings, RequestEmbedder
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.kernels.t5_forward import read_positions, write_tokens
from sidrec.types import TASKS, Task


class GeneratorModel(nn.Module):
    """A T5 that reads requests of both tasks and writes Semantic IDs.

    The probabilities of a step are normalized over the codes that the catalogue goes on with, each
    weighed by its items (``beams.over_children``), in training as in decoding: the probabilities
    of all Semantic IDs sum to one. TIGER normalizes over the whole vocabulary. The attribute
    ``decoding`` says how answers are searched for; beams, unless it is set.

    Args:
        t5: ``T5ForConditionalGeneration`` whose vocabulary holds the codes.
        inputs: How requests become positions.
        tokenizer: Of ``t5``.
        spaces: Semantic IDs in which each task answers, often the same object twice. Histories
            are read in those of recommendation.
        item_vectors: Bi-encoder embedding of every item.
        popularity: Train interactions of each item.
        tower: Frozen text tower; None when queries are read as T5's tokens.

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
    ) -> None:
        super().__init__()
        self.t5, self.popularity, self.decoding = t5, popularity, Decoding()
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
        )
        tokens = spaces["search"].vocabulary.level_token_ids()
        self.decoder = T5Decoder(t5, tokens, normalize_over="level")

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
        source, mask, mass_before = self.read(batch)
        space = self.space(batch.task)
        trie, vocabulary = space.trie, space.vocabulary
        codes = space.codes[batch.target]  # [request, level]
        hidden = self._decode(source, mask, vocabulary.tokens_of(codes))  # [request, level, dim]
        low = codes.new_zeros((len(codes), 1), dtype=torch.int32)
        high, weight, losses = low + trie.num_items, self.t5.lm_head.weight, []
        levels = zip(vocabulary.level_starts, vocabulary.codebook_sizes, strict=True)
        for level, (first, size) in enumerate(levels):
            logits = F.linear(hidden[:, level], weight[first : first + size]).float()
            bounds = trie.child_bounds(low, high, level=level)  # [request, 1, code + 1]
            log_probabilities = over_children(logits[:, None], bounds, mass_before)[:, 0]
            code = codes[:, level, None]
            low, high = bounds[:, 0].gather(1, code), bounds[:, 0].gather(1, code + 1)
            has_items = bounds[:, 0, 1:] > bounds[:, 0, :-1]
            losses.append(
                smoothed_loss(log_probabilities, code, has_items, label_smoothing=label_smoothing)
            )
        return torch.stack(losses) + self._untouched()

    def _decode(self, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        start = torch.full_like(target[:, :1], self.t5.config.decoder_start_token_id)
        write = self._write_tokens if self.training else write_tokens
        return write(self.t5, torch.cat([start, target[:, :-1]], dim=1), source, mask)

    def _untouched(self) -> Float[Tensor, ""]:
        """Return 0 as a function of the weights that only one of the tasks uses, for DDP."""
        own = [weight.sum() * 0.0 for weight in self.spaces.parameters()]
        return sum(own, start=self.embedder.untouched())

    def read(
        self, batch: GeneratorBatch
    ) -> tuple[
        Float[Tensor, "request position dim"],
        Bool[Tensor, "request position"],
        Float[Tensor, "request bound"],
    ]:
        """Return T5's encoder output, its mask, and the mass before each position of the trie."""
        read, mask, vector = self._read(batch)
        space = self.space(batch.task)
        if space.prior is None or vector is None:
            return read, mask, space.even_mass(len(read))
        return read, mask, space.prior(vector, task=batch.task)

    def _read(
        self, batch: GeneratorBatch
    ) -> tuple[
        Float[Tensor, "request position dim"],
        Bool[Tensor, "request position"],
        Float[Tensor, "request _"] | None,
    ]:
        reading = self.embedder(batch)
        read = self._read_positions if self.training else read_positions
        return read(self.t5, reading.positions, reading.mask), reading.mask, reading.vector

    @torch.no_grad()
    def answer(
        self,
        batch: GeneratorBatch,
        *,
        num_beams: int,
        top_k: int,
        allowed: AllowedItems | None = None,
    ) -> Decoded:
        """Decode a batch under the trie: real items only, none twice, none excluded.

        Lists are ``top_k`` long wherever so many items are allowed: what a search left short, as
        groups of beams that meet do, is filled up (``top_up``). The Semantic IDs in the answer are
        those that the search found.

        Args:
            batch: Requests of one task.
            num_beams: Width of the search.
            top_k: Length of the lists.
            allowed: Items each request may get; None: all but ``batch.excluded``.

        Raises:
            ConfigError: If ``num_beams`` is smaller than ``top_k``.
        """
        source, mask, vector = self._read(batch)
        space, masses = self.space(batch.task), None
        trie, tokens = space.trie, space.vocabulary.level_token_ids()
        if space.prior is not None and vector is not None:
            masses = space.prior.masses(vector, task=batch.task)

        def start() -> Step:
            steps = self.decoder.start(source, mask, level_token_ids=tokens)
            return steps if masses is None else WeighedSteps(steps, trie, masses)

        if allowed is None:
            allowed = AllItemsBut.of(trie, batch.excluded)
        found = self.decoding.search(
            start,
            trie,
            allowed,
            num_requests=batch.num_requests,
            num_beams=num_beams,
            top_k=top_k,
            mass_before=space.even_mass(batch.num_requests) if masses is None else None,
        )
        self._fill_order = self._fill_order.to(trie.items.device)
        ranked = top_up(found.ranked, trie=trie, allowed=allowed, fill_order=self._fill_order)
        return found._replace(ranked=ranked)


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
