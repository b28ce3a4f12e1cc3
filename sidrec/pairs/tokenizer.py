"""Where an encoder's files lie, and its tokenizer."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sidrec.errors import ConfigError

PACKAGE_PREFIX = "package:"


def locate_encoder(encoder: str) -> str:
    """Return what transformers can load: a hub name, or a folder.

    Args:
        encoder: Name on the Hugging Face hub, a folder, or ``package:NAME/FOLDER`` for a folder
            that an installed Python package carries.

    Raises:
        ConfigError: If the package or its folder is not there.
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
    """Return the tokenizer that belongs to an encoder; code from the hub is never run.

    Raises:
        ConfigError: If it cannot be loaded; says why in one line.
    """
    from transformers import AutoTokenizer

    where = locate_encoder(encoder)
    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise cannot_load(encoder, error) from error


def cannot_load(encoder: str, error: Exception) -> ConfigError:
    """Return an error of one line for whatever transformers said about an encoder."""
    reason = " ".join(str(error).split())[:200]
    return ConfigError(
        f"encoder '{encoder}' cannot be loaded ({reason}); give a name on the Hugging Face hub, "
        "a folder, or package:NAME/FOLDER."
    )
