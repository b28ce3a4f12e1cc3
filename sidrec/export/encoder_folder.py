"""Text tower -> folder of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

from sidrec.encoder.load_encoder import merged_encoder
from sidrec.encoder.tower import EncoderView, TextTower
from sidrec.errors import ConfigError
from sidrec.pairs.sentence_embedding import Pooling
from sidrec.pairs.token_store import num_prompt_tokens

_FLAGS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last_token": "pooling_mode_lasttoken",
}
_MODULES = "sentence_transformers.models"  # the names that every version of it reads


def write_encoder_folder(
    tower: TextTower | EncoderView, folder: Path, *, token_limits: dict[str, int]
) -> None:
    """Write a text tower as a folder that ``SentenceTransformer(folder)`` loads.

    Args:
        tower: Text tower of a finished run.
        folder: Folder to write into.
        token_limits: Tokens of a ``query`` and of an ``item`` in training, prompts excluded.
            sentence-transformers has one limit: the larger one, prompt included.

    Raises:
        ConfigError: If a subclass of ``BiEncoder`` embeds texts in its own way.
    """
    if isinstance(tower, EncoderView):
        raise ConfigError(
            "The encoder's class embeds texts in its own way, which sentence-transformers does not "
            "know; export a run of sidrec.BiEncoder."
        )
    how = tower.embedding
    merged_encoder(tower).save_pretrained(folder)
    tower.tokenizer.save_pretrained(folder)
    limits = {
        "query": token_limits["query"] + num_prompt_tokens(tower.tokenizer, how.query_prompt),
        "item": token_limits["item"] + num_prompt_tokens(tower.tokenizer, how.item_prompt),
    }
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    kinds |= {"2_Normalize": "Normalize"} if how.normalize else {}
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"{_MODULES}.{kind}"}
        for idx, (path, kind) in enumerate(kinds.items())
    ]
    flags = {flag: flag == _FLAGS[how.pooling] for flag in _FLAGS.values()}
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": tower.dim} | flags)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max(limits.values())})
    _write(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {},
            "model_type": "SentenceTransformer",
            "prompts": {"query": how.query_prompt, "document": how.item_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if how.normalize else "dot",
        },
    )


def _write(file: Path, content: Any) -> None:  # noqa: ANN401
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
