"""Pooling, normalization and prompts of an encoder, as its Sentence-Transformers folder says."""

from dataclasses import dataclass
from typing import Any, Literal

from sidrec.errors import ConfigError
from sidrec.pairs.encoder_files import read_json_of
from sidrec.types import TextKind

Pooling = Literal["mean", "cls", "last_token"]

MODULES, POOLING, PROMPTS = "modules.json", "config.json", "config_sentence_transformers.json"
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
_FLAG = "pooling_mode_"  # files before sentence-transformers 6 have one flag for each mode
_ITEM_PROMPTS = ("document", "passage", "corpus")  # as ``encode_document`` looks for them


@dataclass(frozen=True, kw_only=True)
class SentenceEmbedding:
    """From token states to the embedding of a text.

    Attributes:
        pooling: ``mean`` of the tokens' states, or the state of the first (``cls``) or last token.
        normalize: Whether embeddings have length 1. Without it, items are compared by inner
            product.
        query_prompt: Text before every query.
        item_prompt: Text before every item text.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    query_prompt: str = ""
    item_prompt: str = ""

    def prompt(self, kind: TextKind) -> str:
        """Return the text that goes before a query or an item text."""
        return self.query_prompt if kind == "query" else self.item_prompt


def read_sentence_embedding(
    encoder: str,
    *,
    revision: str | None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    query_prompt: str | None = None,
    item_prompt: str | None = None,
) -> SentenceEmbedding:
    """Return how an encoder embeds texts: the arguments given, for the others what its folder says.

    A folder without ``modules.json`` says mean pooling, normalized, and no prompts. A folder
    without a ``Normalize`` module whose similarity is the cosine is normalized as well: the cosine
    ignores lengths.

    Args:
        encoder: Hub name, folder, or ``package:NAME/FOLDER``.
        revision: Branch, tag or commit on the hub.
        pooling: None takes the folder's.
        normalize: None takes the folder's.
        query_prompt: None takes the folder's prompt ``query``.
        item_prompt: None takes the folder's prompt ``document``, ``passage`` or ``corpus``.

    Raises:
        ConfigError: If the folder asks for a module or a pooling that sidrec has not, or the hub
            cannot be asked.
    """
    modules = {_kind_of(one): one for one in read_json_of(encoder, revision, MODULES) or []}
    facts = read_json_of(encoder, revision, PROMPTS) or {}
    _check_modules(encoder, modules)
    if pooling is None and "Pooling" in modules:
        file = f"{modules['Pooling']['path']}/{POOLING}"
        pooling = _pooling_of(encoder, read_json_of(encoder, revision, file) or {})
    if normalize is None and modules:
        normalize = "Normalize" in modules or facts.get("similarity_fn_name") in (None, "cosine")
    prompts = facts.get("prompts") or {}
    named = next((prompts[name] for name in _ITEM_PROMPTS if name in prompts), None)
    return SentenceEmbedding(
        pooling=pooling or "mean",
        normalize=normalize is not False,
        query_prompt=(prompts.get("query") or "") if query_prompt is None else query_prompt,
        item_prompt=(named or "") if item_prompt is None else item_prompt,
    )


def _kind_of(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _check_modules(encoder: str, modules: dict[str, Any]) -> None:
    unknown = [kind for kind in modules if kind not in _KNOWN_MODULES]
    if unknown:
        raise ConfigError(
            f"encoder '{encoder}' has the module {unknown[0]} in {MODULES}, which sidrec cannot "
            f"apply; it knows {', '.join(_KNOWN_MODULES)}: give another encoder."
        )
    if modules and modules.get("Transformer", {"path": "?"})["path"] != "":
        raise ConfigError(
            f"encoder '{encoder}' has its transformer in a folder of its own ({MODULES}); give "
            "that folder, and model.tower.pooling with it."
        )


def _pooling_of(encoder: str, config: dict[str, Any]) -> Pooling:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [key for key, value in config.items() if key.startswith(_FLAG) and value is True]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    names = [
        mode.removeprefix(_FLAG).removesuffix("_tokens").removesuffix("_token") for mode in modes
    ]
    if len(names) != 1 or names[0] not in _POOLINGS:
        raise ConfigError(
            f"encoder '{encoder}' pools by {' and '.join(names)}; sidrec knows mean, cls and "
            "last_token: give one as model.tower.pooling, or another encoder."
        )
    if config.get("include_prompt") is False:
        raise ConfigError(
            f"encoder '{encoder}' pools without its prompt (include_prompt: false), which sidrec "
            "cannot; give model.tower.pooling to pool with it, or another encoder."
        )
    return _POOLINGS[names[0]]
