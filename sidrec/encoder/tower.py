"""Text tower: a transformers encoder, mean pooling, unit length."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sidrec.errors import ConfigError, DataError
from sidrec.kernels.cpu_dropout import use_cheap_dropout
from sidrec.pairs.token_store import cannot_load, load_tokenizer, locate_encoder
from sidrec.types import TextTokens

Snapshot = dict[str, str]


class TextTower(nn.Module):
    """Text tower over any transformers encoder.

    Args:
        encoder: Name on the Hugging Face hub, a folder, or ``package:NAME/FOLDER``.
        revision: Branch, tag or commit on the hub.
        dropout: Probability in [0, 1) for every dropout of the encoder; None keeps the model's.
        length_groups: Number of groups of similar length in a batch, so that short texts are not
            padded to the longest; 1 pads the batch as a whole. It changes speed, and results only
            by rounding.

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
    ) -> None:
        super().__init__()
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
        self._take(model, load_tokenizer(encoder, revision=revision), length_groups)

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, *, length_groups: int) -> "TextTower":
        """Build a tower with untrained weights from ``snapshot()``; needs no hub and no folder."""
        from transformers import AutoTokenizer

        tower = cls.__new__(cls)
        nn.Module.__init__(tower)
        with tempfile.TemporaryDirectory() as name:
            for file, text in snapshot.items():
                if Path(file).name != file:  # a checkpoint is not trusted
                    raise DataError(f"The checkpoint names a file '{file}'; it is no encoder's.")
                (Path(name) / file).write_text(text)
            model = _model_class().from_config(_load_config(name, None, None))
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            tower._take(model.float(), tokenizer, length_groups)
        return tower

    def _take(self, model: Any, tokenizer: Any, length_groups: int) -> None:  # noqa: ANN401
        if length_groups < 1:
            raise ConfigError(f"length_groups must be 1 or more, got {length_groups}.")
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its weights would get no gradient, which DDP refuses
        use_cheap_dropout(model)
        self.model, self.tokenizer, self.length_groups = model.train(), tokenizer, length_groups

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
            return {file.name: file.read_text() for file in sorted(Path(name).glob("*.*"))}

    def tokenize(self, texts: list[str], *, max_tokens: int) -> TextTokens:
        """Tokenize texts on the CPU; texts longer than ``max_tokens`` are truncated."""
        rows = self.tokenizer(
            texts, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt"
        )
        return TextTokens(rows["input_ids"], rows["attention_mask"].bool())

    def forward(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        """Return L2-normalized float32 embeddings, row ``i`` for text ``i``."""
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
            parts.append(F.normalize(mean_pool(states, mask[own]), dim=-1))
            first = end
        return torch.cat(parts)[torch.argsort(order)]

    def token_states(self, tokens: TextTokens) -> Float[Tensor, "text token dim"]:
        """Return the encoder's last hidden state of every token; padding holds arbitrary values."""
        states: Tensor = self.model(
            input_ids=tokens.ids, attention_mask=tokens.mask.long()
        ).last_hidden_state
        return states

    def _embed(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        return F.normalize(mean_pool(self.token_states(tokens), tokens.mask), dim=-1)


class EncoderView(nn.Module):
    """Tower interface of a bi-encoder whose ``embed`` differs from its tower's.

    Args:
        module: ``BiEncoder`` with its model built.
    """

    module: Any

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.tokenizer = self.module.tower.tokenizer

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        device = next(self.parameters()).device
        tokens = self.module.tower.tokenize(["a"], max_tokens=8)
        with torch.no_grad():
            return int(self(TextTokens(tokens.ids.to(device), tokens.mask.to(device))).shape[1])

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
