"""Configuration checks: no secrets, since it is stored, and no names that leave their folder."""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from sidrec.errors import ConfigError

_SECRET_KEY = re.compile(
    r"(^|_)((api|access|account|private|secret|shared|storage|signing|encryption|wandb|hf|openai)"
    r"_?key|auth_?token|access_?token|hf_?token|token|secret|passw(or)?d|passphrase|pwd"
    r"|credentials?)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{20,}"  # OpenAI and its like
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}"
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[0-9A-Za-z_-]{30,}"  # Google
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"  # JSON web token
    r"|\bBearer\s+(?=\S*\d)[\w.~+/-]{8,}"
    r"|\b(AccountKey|SharedAccessKey|password|pwd)\s*=\s*[^;\s]+"  # connection strings
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\bwandb_v\d_\w{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|://[^/\s:@]+:[^/\s:@]+@"  # user and password in an address
)
_WANDB_KEY = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)  # looks like a git commit, too
_COMMIT_KEYS = ("revision",)
_FILE_NAME_KEYS = ("name", "version", "filename", "id", "project", "group", "prefix")


def refuse_secrets(config: dict[str, Any]) -> None:
    """Refuse a configuration that contains a password or key; the message does not repeat it.

    Raises:
        ConfigError: Names the key, and where to put a secret.
    """
    for key, value in _texts(config):
        last = key.rsplit(".", 1)[-1]
        if _is_secret(last, value):
            raise ConfigError(
                f"{key} looks like a secret, and the run keeps its configuration; leave it out "
                "and put it into the environment (WANDB_API_KEY, HF_TOKEN) or into ~/.netrc."
            )


def refuse_traversal(config: dict[str, Any]) -> None:
    """Refuse names of runs and files that lead out of their folder.

    Raises:
        ConfigError: Names the key and the value.
    """
    for key, value in _texts(config):
        if key.rsplit(".", 1)[-1] not in _FILE_NAME_KEYS:
            continue
        path = PurePath(value)
        if path.is_absolute() or ".." in path.parts or "\0" in value:
            raise ConfigError(
                f"{key} is '{value}', which is outside the run's folder; give a plain name."
            )


def _is_secret(key: str, value: str) -> bool:
    if _SECRET_KEY.search(key) and value.strip():
        return True
    if _SECRET_VALUE.search(value):
        return True
    return key not in _COMMIT_KEYS and _WANDB_KEY.fullmatch(value) is not None


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield every string with its dotted key; strings in lists have the list's key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value, key)
    elif isinstance(tree, str):
        yield key, tree
