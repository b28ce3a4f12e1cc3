"""Files of a pretrained encoder, in a folder, in an installed package or on the hub."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tokenizers import normalizers

from sidrec.errors import ConfigError

PACKAGE_PREFIX = "package:"
_TRANSFORMER = "sentence_bert_config.json"  # settings of the transformer in sentence-transformers


def locate_encoder(encoder: str) -> str:
    """Return the hub name or folder from which transformers loads an encoder.

    Args:
        encoder: Name on the Hugging Face hub, a folder, or ``package:NAME/FOLDER`` for a folder in
            an installed Python package.

    Raises:
        ConfigError: If the package or its folder does not exist.
    """
    if not encoder.startswith(PACKAGE_PREFIX):
        return encoder
    package, _, inside = encoder.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"encoder '{encoder}': no Python package '{package}'; run `pip install "
            f"{package.replace('_', '-')}`, or give a hub name or a folder."
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ConfigError(f"encoder '{encoder}': the package has no folder '{inside}'.")
    return str(folder)


def load_tokenizer(encoder: str, *, revision: str | None) -> Any:  # noqa: ANN401
    """Return the tokenizer of an encoder; code from the hub is never run.

    Raises:
        ConfigError: If it cannot be loaded; the message gives the reason in one line.
    """
    from transformers import AutoTokenizer

    where = locate_encoder(encoder)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise cannot_load(encoder, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty one
        raise cannot_load(encoder, ValueError("it has no tokenizer"))
    if (read_json_of(encoder, revision, _TRANSFORMER) or {}).get("do_lower_case"):
        backend = tokenizer.backend_tokenizer
        given = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *given])
    return tokenizer


def cannot_load(encoder: str, error: Exception) -> ConfigError:
    """Return a one-line error for an encoder that transformers cannot load."""
    reason = " ".join(str(error).split())[:200]
    return ConfigError(
        f"encoder '{encoder}' cannot be loaded ({reason}); give a name on the Hugging Face hub, "
        "a folder, or package:NAME/FOLDER."
    )


def read_json_of(encoder: str, revision: str | None, name: str) -> Any:  # noqa: ANN401
    """Return the content of a JSON file of an encoder; None if the encoder has no such file.

    Raises:
        ConfigError: If the file is damaged, or the hub does not answer.
    """
    where = locate_encoder(encoder)
    try:
        file = Path(where) / name if Path(where).is_dir() else _fetched(where, revision, name)
        return json.loads(file.read_text()) if file is not None and file.exists() else None
    except (OSError, ValueError) as error:
        raise cannot_load(encoder, error) from error


def _fetched(where: str, revision: str | None, name: str) -> Path | None:
    try:
        return Path(hf_hub_download(where, name, revision=revision))
    except LocalEntryNotFoundError:  # the hub was not asked
        if try_to_load_from_cache(where, name, revision=revision) is None:  # nor ever before
            raise
        return None
    except EntryNotFoundError:
        return None
