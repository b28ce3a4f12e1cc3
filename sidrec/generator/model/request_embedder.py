"""Embedding of requests as input positions of T5's encoder."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from sidrec.encoder.tower import TextTower
from sidrec.errors import ConfigError
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.code_space import CodeSpace
from sidrec.generator.model.query_state_cache import TextStates
from sidrec.generator.model.t5 import END
from sidrec.settings import PositiveInt, Probability, Settings
from sidrec.types import Task, TextTokens

TextInput = Literal["tokens", "encoder_states", "tokens_and_states"]
HistoryInput = Literal["codes", "items"]
Positions = tuple[Float[Tensor, "request position dim"], Bool[Tensor, "request position"]]


class Reading(NamedTuple):
    """Input of T5's encoder for a batch, and the query embeddings.

    Attributes:
        positions: Embeddings; padding comes after each request's real positions.
        mask: True on real positions.
        vector: Query embedding; None for a history, and where no bi-encoder reads the query.
    """

    positions: Float[Tensor, "request position dim"]
    mask: Bool[Tensor, "request position"]
    vector: Float[Tensor, "request _"] | None


@dataclass(frozen=True, kw_only=True)
class InputSettings(Settings):
    """Encoder input of a request.

    Attributes:
        search_prompt: Template with ``{query}``.
        recommendation_prompt: Template with ``{history}``.
        text_input: ``tokens``: the generator's own tokens of the query; ``encoder_states``: the
            trained bi-encoder's output for the query, one position for its embedding, one per
            token; ``tokens_and_states``: both, so that words can be learned which the bi-encoder
            merges.
            An indexing example has its item's embedding alone, or with tokens these alone.
        history_input: ``codes``: one position per code of every item (TIGER); ``items``: one
            position per item, the sum of its codes' embeddings, its projected bi-encoder
            embedding and an embedding of its distance from the end of the history.
        max_query_tokens: Maximum number of tokens read from a query.
        max_history_items: Number of most recent items to read; at least the data module's.
        query_token_dropout: Probability in [0, 1) that a query token is masked in training.

    Raises:
        ConfigError: If a template lacks its placeholder, or a number is out of range.
    """

    search_prompt: str = "search: {query}"
    recommendation_prompt: str = "recommend: {history}"
    text_input: TextInput = "encoder_states"
    history_input: HistoryInput = "items"
    max_query_tokens: PositiveInt = 32
    max_history_items: PositiveInt = 30
    query_token_dropout: Probability = 0.1

    @property
    def reads_states(self) -> bool:
        """Whether queries are read through the bi-encoder."""
        return self.text_input != "tokens"

    @property
    def reads_tokens(self) -> bool:
        """Whether queries are read as tokens of the generator's own."""
        return self.text_input != "encoder_states"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, holder in (("search_prompt", "{query}"), ("recommendation_prompt", "{history}")):
            template = getattr(self, name)
            if template.count(holder) != 1:
                raise ConfigError(f"model.inputs.{name} must hold {holder} once, got '{template}'.")

    def around(self, task: Task) -> tuple[str, str]:
        """Return the text before and after the placeholder."""
        if task == "search":
            before, after = self.search_prompt.split("{query}")
        else:
            before, after = self.recommendation_prompt.split("{history}")
        return before, after


class _OwnedElsewhere(NamedTuple):
    """Modules that the embedder uses and that belong to another module.

    A tuple hides them from torch, so their weights are neither saved nor counted twice.
    """

    tokens: nn.Embedding
    tower: TextTower | None
    space: CodeSpace


class RequestEmbedder(nn.Module):
    """Embed a batch of requests for T5's encoder.

    Args:
        settings: Encoder input of a request.
        tokens: T5's input embedding, shared with T5.
        tokenizer: T5's tokenizer.
        space: Semantic IDs of the items of histories.
        item_vectors: Bi-encoder embedding of every item.
        tower: Frozen tower of the bi-encoder; needed unless ``text_input`` is ``tokens``.
        end_token: Token that ends each request; None takes the tokenizer's ``</s>``.
        has_recency: Whether an item is told how long ago it was; not where all positions of a
            history are read at once.

    Raises:
        ConfigError: If states are read without a tower, or tower and item embeddings differ
            in width.
    """

    item_vectors: Tensor

    def __init__(
        self,
        settings: InputSettings,
        tokens: nn.Embedding,
        tokenizer: Tokenizer,
        space: CodeSpace,
        item_vectors: Float[Tensor, "item dim"],
        tower: TextTower | None,
        *,
        end_token: int | None = None,
        has_recency: bool = True,
    ) -> None:
        super().__init__()
        self.settings, self.tokenizer = settings, tokenizer
        self._end_token, self._has_recency = end_token, has_recency
        self._elsewhere = _OwnedElsewhere(tokens, tower, space)
        self.states: TextStates | None = None
        self.register_buffer("item_vectors", item_vectors, persistent=False)
        width, dim = tokens.embedding_dim, item_vectors.shape[1]
        if settings.reads_states:
            _check_tower(tower, dim)
            self.from_state = nn.Linear(dim, width)
            self.from_embedding = nn.Linear(dim, width)
        if settings.history_input == "items":
            self.from_item = nn.Linear(dim, width)
            if has_recency:
                self.recency = nn.Embedding(settings.max_history_items, width)
        if (settings.text_input, settings.history_input) != ("tokens", "codes"):
            self.norm = nn.LayerNorm(width)

    @property
    def tower(self) -> TextTower | None:
        """Frozen bi-encoder; not a submodule, so its weights are saved in its own run only."""
        return self._elsewhere.tower

    @property
    def _tower(self) -> TextTower:
        if self.tower is None:
            raise AssertionError("no tower, although text_input reads its states")
        return self.tower

    def forward(self, batch: GeneratorBatch) -> Reading:
        """Return the input of T5's encoder.

        Each request ends with T5's end token, so no input is empty.
        """
        read = self._query(batch) if batch.task == "search" else self.history(batch)
        inner, seen, vector = read
        parts, masks = [inner], [seen]
        for place, part in zip((0, 2), self.around(batch.task), strict=True):
            parts.insert(place, part.expand(len(seen), -1, -1).to(inner.dtype))
            masks.insert(place, seen.new_ones(len(seen), len(part)))
        return Reading(*packed(torch.cat(parts, dim=1), torch.cat(masks, dim=1)), vector)

    def around(self, task: Task) -> tuple[Float[Tensor, "before dim"], Float[Tensor, "after dim"]]:
        """Return the embedded text before and after a query or history, with its end token."""
        before, after = (self._text_ids(text) for text in self.settings.around(task))
        device = self.item_vectors.device
        before_ids, after_ids = (
            torch.tensor(ids, dtype=torch.long, device=device)
            for ids in (before, [*after, self.end_token])
        )
        return self._embed(before_ids), self._embed(after_ids)

    def untouched(self) -> Float[Tensor, ""]:
        """Return 0 as a function of all weights of this module.

        Each task uses weights of its own. DDP waits for the gradient of every weight; added to
        the loss, this gives unused weights a gradient of 0 instead of None, with and without DDP.
        """
        zero = self.item_vectors.new_zeros((), dtype=torch.float32)
        return sum((weight.sum() * 0.0 for weight in self.parameters()), start=zero)

    def _query(self, batch: GeneratorBatch) -> Reading:
        if not self.settings.reads_states:
            return Reading(*self._own_tokens(batch), None)
        states, mask = self._states(batch)
        embedding = self._tower.pool(states, mask)
        indexed = batch.indexed_item >= 0
        known = self.item_vectors[batch.indexed_item.clamp(min=0)]
        embedding = torch.where(indexed[:, None], known, embedding)
        scale = embedding.shape[1] ** 0.5  # unit vectors → unit variance per dimension
        first = self.from_embedding(embedding * scale)[:, None]
        parts = [first, self.from_state(states)]
        seen = [torch.ones_like(mask[:, :1]), self._thin(mask)]
        if self.settings.reads_tokens:
            tokens, own = self._own_tokens(batch)
            parts, seen = [*parts, tokens], [~indexed[:, None], seen[1], own]
        return Reading(self.norm(torch.cat(parts, dim=1)), torch.cat(seen, dim=1), embedding)

    def _own_tokens(self, batch: GeneratorBatch) -> Positions:
        before, _ = self.settings.around("search")
        blank = " " if before.endswith(" ") else ""  # part of a word in byte-level tokenizers
        tokens = self._tokenize([blank + text for text in batch.texts])
        return self._embed(tokens.ids), self._thin(tokens.mask)

    def _states(
        self, batch: GeneratorBatch
    ) -> tuple[Float[Tensor, "text token dim"], Bool[Tensor, "text token"]]:
        """Return token states: cached ones in training, computed ones otherwise.

        Indexing rows have none; they use their item's embedding alone.
        """
        device = self.item_vectors.device
        if self.states is not None and self.training:
            states, mask = self.states.gather(batch.text_rows.cpu())
            return states.to(device).float(), mask.to(device)
        tower = self._tower
        tower.to(device).eval()
        limit = self.settings.max_query_tokens
        tokens = tower.tokenize(batch.texts, max_tokens=limit, kind="query")
        tokens = TextTokens(tokens.ids.to(device), tokens.mask.to(device))
        with torch.no_grad():
            states = tower.token_states(tokens)
        return states.float(), tokens.mask & (batch.indexed_item < 0)[:, None]

    def history(self, batch: GeneratorBatch) -> Reading:
        """Return the positions of the items alone, padding last."""
        real = batch.history >= 0
        items = batch.history.clamp(min=0)
        last = real.sum(dim=1, keepdim=True)
        ago = (last - 1 - torch.arange(items.shape[1], device=items.device)).clamp(min=0)
        codes = self._embed(self._elsewhere.space.tokens_of(items))  # [request, item, level, dim]
        if self.settings.history_input == "codes":
            num_levels = codes.shape[2]
            return Reading(codes.flatten(1, 2), real.repeat_interleave(num_levels, dim=1), None)
        vectors = self.item_vectors[items] * self.item_vectors.shape[1] ** 0.5
        inner = codes.sum(dim=2) + self.from_item(vectors)
        if self._has_recency:
            inner = inner + self.recency(ago)
        return Reading(self.norm(inner), real, None)

    def _thin(self, mask: Bool[Tensor, "request token"]) -> Bool[Tensor, "request token"]:
        share = self.settings.query_token_dropout
        if not self.training or share == 0:
            return mask
        return mask & (torch.rand(mask.shape, device=mask.device) >= share)

    def _embed(self, ids: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        embedded: Tensor = self._elsewhere.tokens(ids)
        return embedded

    def _tokenize(self, texts: list[str]) -> TextTokens:
        rows = [
            encoding.ids[: self.settings.max_query_tokens]
            for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
        width = max([1, *map(len, rows)])
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
        device = self.item_vectors.device
        return TextTokens(ids.to(device), mask.to(device))

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text.rstrip(), add_special_tokens=False).ids
        return ids

    @property
    def end_token(self) -> int:
        """Token that ends each request."""
        if self._end_token is not None:
            return self._end_token
        token = self.tokenizer.token_to_id(END)
        return 1 if token is None else int(token)  # T5's own number


def _check_tower(tower: TextTower | None, dim: int) -> None:
    if tower is None:
        raise ConfigError("text_input with states needs model.encoder_run; give --from RUN.")
    if tower.dim != dim:
        raise ConfigError(
            "text_input with states needs Semantic IDs from the encoder that reads the "
            f"queries: its states have width {tower.dim}, the item embeddings {dim}; give the "
            "encoder run that made them, or text_input tokens."
        )


def packed(
    states: Float[Tensor, "request given dim"], mask: Bool[Tensor, "request given"]
) -> Positions:
    """Move each row's real positions to the front, in order.

    T5's position bias uses distances, so a gap would make a request depend on its batch. Common
    padding is cut on a CPU only: elsewhere the host would wait for the width, and shapes would
    change.
    """
    order = torch.argsort((~mask).byte(), dim=1, stable=True)
    if mask.device.type == "cpu":
        order = order[:, : int(mask.sum(dim=1).max())]
    return torch.take_along_dim(states, order[..., None], dim=1), mask.gather(1, order)
