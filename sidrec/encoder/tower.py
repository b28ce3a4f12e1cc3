"""Text tower: a transformers encoder, its pooling, normalization and prompts."""

import json
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sidrec.errors import ConfigError, DataError
from sidrec.kernels.cpu_dropout import use_cheap_dropout
from sidrec.pairs.encoder_files import cannot_load, load_tokenizer, locate_encoder
from sidrec.pairs.sentence_embedding import Pooling, SentenceEmbedding, read_sentence_embedding
from sidrec.pairs.token_store import token_rows
from sidrec.types import TextKind, TextTokens

Snapshot = dict[str, str]
_EMBEDDING = "sentence_embedding.json"  # of a snapshot


class TextTower(nn.Module):
    """Text tower over any transformers encoder.

    Args:
        encoder: Name on the Hugging Face hub, a folder, or ``package:NAME/FOLDER``.
        revision: Branch, tag or commit on the hub.
        dropout: Probability in [0, 1) for every dropout of the encoder; None keeps the model's.
        length_groups: Number of groups of similar length in a batch, so that short texts are not
            padded to the longest; 1 pads the batch as a whole. It changes speed, and results only
            by rounding.
        pooling: From token states to one vector; None takes what the encoder's folder says.
        normalize: Whether embeddings have length 1; None takes what the folder says.
        query_prompt: Text before every query; None takes the folder's.
        item_prompt: Text before every item text; None takes the folder's.

    Raises:
        ConfigError: If the encoder cannot be loaded, or an argument is out of range.
    """

    def __init__(
        self,
        encoder: str,
        *,
        revision: str | None,
        dropout: float | None,
        length_groups: int,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        query_prompt: str | None = None,
        item_prompt: str | None = None,
    ) -> None:
        super().__init__()
        embedding = read_sentence_embedding(
            encoder,
            revision=revision,
            pooling=pooling,
            normalize=normalize,
            query_prompt=query_prompt,
            item_prompt=item_prompt,
        )
        config = _load_config(encoder, revision, dropout)
        try:
            model = _model_class().from_pretrained(
                locate_encoder(encoder),
                revision=revision,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise cannot_load(encoder, error) from error
        tokenizer = load_tokenizer(encoder, revision=revision)
        self._take(model, tokenizer, embedding, length_groups)

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, *, length_groups: int) -> "TextTower":
        """Build a tower with untrained weights from ``snapshot()``; needs no hub and no folder."""
        from transformers import AutoTokenizer

        tower = cls.__new__(cls)
        nn.Module.__init__(tower)
        with tempfile.TemporaryDirectory() as name:
            for file, text in snapshot.items():
                if Path(file).name != file:  # a checkpoint is not trusted
                    raise DataError(
                        f"The checkpoint names a file '{file}'; give the checkpoint of an encoder "
                        "run."
                    )
                (Path(name) / file).write_text(text)
            model = _model_class().from_config(_load_config(name, None, None))
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            embedding = SentenceEmbedding(**json.loads(snapshot[_EMBEDDING]))
            tower._take(model.float(), tokenizer, embedding, length_groups)
        return tower

    def _take(
        self,
        model: Any,  # noqa: ANN401
        tokenizer: Any,  # noqa: ANN401
        embedding: SentenceEmbedding,
        length_groups: int,
    ) -> None:
        if length_groups < 1:
            raise ConfigError(f"length_groups must be 1 or more, got {length_groups}.")
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its weights would get no gradient, which DDP refuses
        use_cheap_dropout(model)
        model.config.use_cache = False  # decoders keep keys and values for tokens to come
        self.model, self.tokenizer, self.length_groups = model.train(), tokenizer, length_groups
        self.embedding = embedding

    def compile_encoder(self) -> None:
        """Compile the encoder with ``torch.compile``; the names of its weights do not change."""
        self.model.compile(dynamic=True)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.model.config.hidden_size)

    def snapshot(self) -> Snapshot:
        """Return configuration and tokenizer as texts of small files, for ``from_snapshot``."""
        with tempfile.TemporaryDirectory() as name:
            self.tokenizer.save_pretrained(name)
            config = self.model.config.to_dict() | {"model_type": self.model.config.model_type}
            (Path(name) / "config.json").write_text(json.dumps(config, default=str))
            (Path(name) / _EMBEDDING).write_text(json.dumps(asdict(self.embedding)))
            return {file.name: file.read_text() for file in sorted(Path(name).glob("*.*"))}

    def tokenize(self, texts: list[str], *, max_tokens: int, kind: TextKind) -> TextTokens:
        """Tokenize texts behind the prompt of their kind, on the CPU, padded on the right.

        Texts longer than ``max_tokens`` are truncated; the prompt does not count.
        """
        return self.padded(self.token_rows(texts, max_tokens=max_tokens, kind=kind))

    def token_rows(self, texts: list[str], *, max_tokens: int, kind: TextKind) -> list[list[int]]:
        """Return the token ids of ``tokenize``, without padding."""
        prompt = self.embedding.prompt(kind)
        return token_rows(self.tokenizer, texts, max_tokens=max_tokens, prompt=prompt)

    def padded(self, rows: list[list[int]]) -> TextTokens:
        """Return rows of token ids as a batch."""
        padding, longest = self.tokenizer.pad_token_id or 0, max([1, *map(len, rows)])
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return TextTokens(ids, torch.arange(longest) < lengths[:, None])

    def forward(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        """Return float32 embeddings, row ``i`` for text ``i``, as ``pool`` gives them."""
        if self.length_groups == 1 or len(tokens.ids) <= self.length_groups:
            return self._embed(tokens)
        lengths = tokens.lengths_on_host()
        ascending = sorted(range(len(lengths)), key=lengths.__getitem__)
        sorted_lengths = [lengths[row] for row in ascending]
        order = torch.tensor(ascending, device=tokens.mask.device)
        mask = tokens.mask[order]
        # words of all groups at once: each look-up's gradient is as large as the vocabulary
        words = self.model.get_input_embeddings()(tokens.ids[order])
        parts, first = [], 0
        for end in group_ends(sorted_lengths, self.length_groups):
            own = slice(first, end), slice(0, sorted_lengths[end - 1])
            states: Tensor = self.model(
                inputs_embeds=words[own], attention_mask=mask[own].long()
            ).last_hidden_state
            parts.append(self.pool(states, mask[own]))
            first = end
        return torch.cat(parts)[torch.argsort(order)]

    def token_states(self, tokens: TextTokens) -> Float[Tensor, "text token dim"]:
        """Return the encoder's last hidden state of every token; padding holds arbitrary values."""
        states: Tensor = self.model(
            input_ids=tokens.ids, attention_mask=tokens.mask.long()
        ).last_hidden_state
        return states

    def pool(
        self, states: Float[Tensor, "text token dim"], mask: Bool[Tensor, "text token"]
    ) -> Float[Tensor, "text dim"]:
        """Return float32 embeddings from token states: pooled, and of length 1 if so set.

        Args:
            states: Output of ``token_states``.
            mask: True on tokens, which are at the front of each row.
        """
        pooled = _POOLS[self.embedding.pooling](states, mask)
        return F.normalize(pooled, dim=-1) if self.embedding.normalize else pooled

    def _embed(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        return self.pool(self.token_states(tokens), tokens.mask)


class EncoderView(nn.Module):
    """Tower interface of a bi-encoder whose ``embed`` differs from its tower's.

    Args:
        module: ``BiEncoder`` with its model built.
    """

    module: Any

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.tokenizer, self.embedding = self.module.tower.tokenizer, self.module.tower.embedding

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        device = next(self.parameters()).device
        tokens = self.module.tower.tokenize(["a"], max_tokens=8, kind="item")
        with torch.no_grad():
            return int(self(TextTokens(tokens.ids.to(device), tokens.mask.to(device))).shape[1])

    def token_rows(self, texts: list[str], *, max_tokens: int, kind: TextKind) -> list[list[int]]:
        """Return the token ids of the tower."""
        rows: list[list[int]] = self.module.tower.token_rows(
            texts, max_tokens=max_tokens, kind=kind
        )
        return rows

    def padded(self, rows: list[list[int]]) -> TextTokens:
        """Return rows of token ids as a batch."""
        batch: TextTokens = self.module.tower.padded(rows)
        return batch

    def forward(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        """Return the module's own embeddings."""
        embeddings: Tensor = self.module.embed(tokens)
        return embeddings


def mean_pool(
    states: Float[Tensor, "text token dim"], mask: Bool[Tensor, "text token"]
) -> Float[Tensor, "text dim"]:
    """Average the states of tokens that are not padding, in float32."""
    weights = mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    with torch.autocast(states.device.type, enabled=False):
        pooled: Tensor = torch.bmm(weights[:, None], states.float())[:, 0]
    return pooled


def first_token(
    states: Float[Tensor, "text token dim"], mask: Bool[Tensor, "text token"]
) -> Float[Tensor, "text dim"]:
    """Return the state of the first token, in float32."""
    del mask
    return states[:, 0].float()


def last_token(
    states: Float[Tensor, "text token dim"], mask: Bool[Tensor, "text token"]
) -> Float[Tensor, "text dim"]:
    """Return the state of the last token that is not padding, in float32."""
    last = mask.sum(dim=1).sub(1).clamp(min=0)
    return states[torch.arange(len(states), device=states.device), last].float()


_POOLS = {"mean": mean_pool, "cls": first_token, "last_token": last_token}


def group_ends(sorted_lengths: list[int], num_groups: int) -> list[int]:
    """Divide ascending lengths into neighboring groups so that little padding remains.

    Each step divides the group where the best cut saves most padding.

    Args:
        sorted_lengths: Tokens per text, ascending.
        num_groups: Number of groups, at most.

    Returns:
        End of each group, ascending; the last is ``len(sorted_lengths)``.

    >>> group_ends([2, 2, 2, 9, 10], 2)
    [3, 5]
    """
    cuts = {0, len(sorted_lengths)}
    while len(cuts) <= num_groups:
        bounds = sorted(cuts)
        found = [_best_cut(sorted_lengths, first, end) for first, end in pairwise(bounds)]
        saved, cut = max(found)
        if saved <= 0:
            break
        cuts.add(cut)
    return sorted(cuts)[1:]


def _best_cut(lengths: list[int], first: int, end: int) -> tuple[int, int]:
    """Return the padding that the best cut of one group saves, and the place of that cut."""
    longest = lengths[end - 1]
    best = (0, first)
    for cut in range(first + 1, end):
        best = max(best, ((longest - lengths[cut - 1]) * (cut - first), cut))
    return best


def _load_config(encoder: str, revision: str | None, dropout: float | None) -> Any:  # noqa: ANN401
    from transformers import AutoConfig

    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"dropout must lie in [0, 1), got {dropout}.")
    try:
        config = AutoConfig.from_pretrained(
            locate_encoder(encoder), revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise cannot_load(encoder, error) from error
    for name, value in config.to_dict().items():
        if dropout is not None and "dropout" in name and isinstance(value, float):
            setattr(config, name, dropout)
    return config


def _model_class() -> Any:  # noqa: ANN401
    from transformers import AutoModel

    return AutoModel
