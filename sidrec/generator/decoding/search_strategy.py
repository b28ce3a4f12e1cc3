"""Search strategy of a trained generator: a mode and its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import Decoded, Step, check_top_k, search_allowed
from sidrec.generator.decoding.diverse_beam_search import check_groups, diverse_search
from sidrec.generator.decoding.exhaustive import exact_search
from sidrec.generator.decoding.item_filters import AllowedItems
from sidrec.generator.decoding.trie import SemanticIdTrie

DecodingMode: TypeAlias = Literal["beam", "diverse", "exact"]

_PREFIXES_AT_ONCE = 128  # block size of the exact mode; never changes the result


@dataclass(frozen=True, slots=True)
class Decoding:
    """Search mode of the decoder.

    Attributes:
        mode: ``beam``; ``diverse``, groups of beams that avoid each other's codes; or ``exact``,
            which scores every Semantic ID and ignores the width.
        num_groups: Number of groups of ``diverse``, 1 otherwise.
        diversity_penalty: Penalty of ``diverse``, in nats, 0 otherwise.

    Raises:
        ConfigError: If the numbers do not fit the mode.
    """

    mode: DecodingMode = "beam"
    num_groups: int = 1
    diversity_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.mode != "diverse" and (self.num_groups != 1 or self.diversity_penalty):
            raise ConfigError(
                f"num_groups ({self.num_groups}) and diversity_penalty "
                f"({self.diversity_penalty}) need decoding: diverse, got '{self.mode}'."
            )

    def check_width(self, *, num_beams: int, top_k: int) -> None:
        """Check that a width fits the lists and the groups.

        Raises:
            ConfigError: If ``num_beams`` is smaller than ``top_k``, or groups do not divide it.
        """
        check_top_k(num_beams=num_beams, top_k=top_k)
        if self.mode == "diverse":
            penalty = self.diversity_penalty
            check_groups(num_beams, num_groups=self.num_groups, diversity_penalty=penalty)

    @torch.no_grad()
    def search(
        self,
        start: Callable[[], Step],
        trie: SemanticIdTrie,
        allowed: AllowedItems,
        *,
        num_requests: int,
        num_beams: int,
        top_k: int,
        mass_before: Float[Tensor, "request bound"] | None,
    ) -> Decoded:
        """Search the catalogue in this mode.

        Args:
            start: Returns a new step of the model for the batch.
            trie: Trie of the catalogue, on the model's device.
            allowed: Items that each request may get.
            num_requests: Number of requests in the batch.
            num_beams: Width; ``diverse`` raises it to a multiple of its groups.
            top_k: Length of the lists. Those of ``diverse`` can be shorter, see ``diverse_search``;
                ``GeneratorModel.answer`` backfills them.
            mass_before: See ``search_allowed``.

        Raises:
            ConfigError: If ``num_beams`` is smaller than ``top_k``.
        """
        if self.mode == "exact":
            return exact_search(
                start,
                trie,
                allowed,
                num_requests=num_requests,
                top_k=top_k,
                prefixes_at_once=_PREFIXES_AT_ONCE,
                mass_before=mass_before,
            )
        if self.mode == "diverse":
            return diverse_search(
                start(),
                trie,
                allowed,
                num_requests=num_requests,
                num_beams=-(-num_beams // self.num_groups) * self.num_groups,
                num_groups=self.num_groups,
                diversity_penalty=self.diversity_penalty,
                top_k=top_k,
                mass_before=mass_before,
            )
        return search_allowed(
            start(),
            trie,
            allowed,
            num_requests=num_requests,
            num_beams=num_beams,
            top_k=top_k,
            mass_before=mass_before,
        )
