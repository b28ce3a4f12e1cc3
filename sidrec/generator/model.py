"""The joint generator as a plain module: requests in, log-probabilities or ranked items out."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from sidrec.encoder.tower import TextTower
from sidrec.generator.batches import GeneratorBatch
from sidrec.generator.beams import Decoded, beam_search
from sidrec.generator.decoder import T5Decoder
from sidrec.generator.inputs import InputSettings, RequestEmbedder
from sidrec.generator.trie import SemanticIdTrie
from sidrec.generator.vocabulary import CodeVocabulary
from sidrec.types import SemanticIdTable


class GeneratorModel(nn.Module):
    """A T5 that reads requests of both tasks and writes Semantic IDs.

    The probabilities of a step are normalised over the codes of its level, in training as in
    decoding: no other token can stand there. TIGER normalises over the whole vocabulary.

    Args:
        t5: ``T5ForConditionalGeneration`` whose vocabulary holds the codes.
        inputs: How requests become positions.
        tokenizer: Of ``t5``.
        vocabulary: Tokens of the codes.
        table: Semantic ID of every item.
        item_vectors: Bi-encoder embedding of every item.
        popularity: Train interactions of each item: orders items that share a Semantic ID.
        tower: Frozen text tower; None when queries are read as T5's tokens.

    Raises:
        ConfigError: If ``inputs`` needs a tower that is missing or of another width.
    """

    def __init__(
        self,
        t5: Any,  # noqa: ANN401 (transformers is untyped)
        inputs: InputSettings,
        tokenizer: Tokenizer,
        vocabulary: CodeVocabulary,
        table: SemanticIdTable,
        item_vectors: Float[Tensor, "item dim"],
        popularity: Int[Tensor, " item"],
        tower: TextTower | None,
    ) -> None:
        super().__init__()
        self.t5, self.vocabulary, self.popularity = t5, vocabulary, popularity
        codes = table.codes.long()
        self.embedder = RequestEmbedder(
            inputs, t5.get_input_embeddings(), tokenizer, vocabulary, codes, item_vectors, tower
        )
        self.decoder = T5Decoder(t5, vocabulary.level_token_ids(), normalise_over="level")
        self._trie = SemanticIdTrie.from_table(
            SemanticIdTable(codes, table.codebook_sizes), popularity
        )

    @property
    def trie(self) -> SemanticIdTrie:
        """The catalogue, on the device of the weights."""
        device = self.embedder.codes.device
        if self._trie.items.device != device:
            self._trie = self._trie.to(device)
        return self._trie

    def forward(self, batch: GeneratorBatch, *, label_smoothing: float) -> Float[Tensor, " level"]:
        """Return the mean cross-entropy of each level's code over the batch, in nats.

        Teacher forcing: level ``l`` sees the target's codes before it.

        Args:
            batch: Every target is known.
            label_smoothing: Share of the target's probability spread over the level, in [0, 1).
        """
        source, mask = self.read(batch)
        codes = self.embedder.codes[batch.target]  # [request, level]
        tokens = self.vocabulary.tokens_of(codes)[:, :-1]
        start = torch.full_like(tokens[:, :1], self.t5.config.decoder_start_token_id)
        hidden = self.t5.decoder(
            input_ids=torch.cat([start, tokens], dim=1),
            encoder_hidden_states=source,
            encoder_attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state
        if self.t5.config.scale_decoder_outputs:
            hidden = hidden * self.t5.model_dim**-0.5
        weight = self.t5.lm_head.weight
        losses = []
        levels = zip(self.vocabulary.level_starts, self.vocabulary.codebook_sizes, strict=True)
        for level, (first, size) in enumerate(levels):
            logits = F.linear(hidden[:, level], weight[first : first + size]).float()
            losses.append(F.cross_entropy(logits, codes[:, level], label_smoothing=label_smoothing))
        return torch.stack(losses) + self.embedder.untouched()

    def read(
        self, batch: GeneratorBatch
    ) -> tuple[Float[Tensor, "request position dim"], Bool[Tensor, "request position"]]:
        """Return T5's encoder output and its mask."""
        positions, mask = self.embedder(batch)
        read = self.t5.encoder(inputs_embeds=positions, attention_mask=mask.long())
        return read.last_hidden_state, mask

    @torch.no_grad()
    def answer(self, batch: GeneratorBatch, *, num_beams: int, top_k: int) -> Decoded:
        """Decode a batch under the trie: real items only, none twice, none excluded.

        Raises:
            ConfigError: If ``num_beams`` is smaller than ``top_k``.
        """
        steps = self.decoder.start(*self.read(batch))
        return beam_search(
            steps, self.trie, num_beams=num_beams, top_k=top_k, excluded=batch.excluded
        )
