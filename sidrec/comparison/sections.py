"""A mapping of YAML as the dataclass that describes it."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from sidrec.errors import ConfigError
from sidrec.suggestion import nearest

Section = TypeVar("Section")


def known(where: str, name: str, valid: Sequence[str]) -> None:
    """Refuse a name that does not exist.

    Raises:
        ConfigError: With the nearest valid one.
    """
    if name in valid:
        return
    near = nearest(name, list(valid))
    hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(valid)}."
    raise ConfigError(f"{where} names '{name}', which does not exist; {hint}")


def section_of(section: type[Section], content: Any, where: str) -> Section:  # noqa: ANN401
    """Return a mapping's values in a dataclass, each of its field's type.

    Args:
        section: The dataclass; its fields may be dataclasses, lists and mappings of them.
        content: As YAML gives it.
        where: What the mapping is, for messages.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is of another type.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must be a mapping, got {type(content).__name__}.")
    valid = {one.name: one for one in fields(section)}  # type: ignore[arg-type]
    for key in content:
        known(where, str(key), list(valid))
    given = {}
    for name, one in valid.items():
        if name in content:
            given[name] = _value(one.type, content[name], f"{where}: {name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ConfigError(f"{where} lacks the key '{name}'.")
    return section(**given)


def _value(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """Return a value of YAML as the type that a field has."""
    if isinstance(kind, UnionType):
        return _one_of(get_args(kind), value, where)
    if hasattr(kind, "__dataclass_fields__"):
        return section_of(kind, value, where)
    if kind is Any:
        return _plain(value, where)
    origin = get_origin(kind) or kind
    if origin is float and type(value) is int:
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise ConfigError(f"{where} must be {origin.__name__}, got {value!r}.")
    return _inside(get_args(kind), value, where)


def _plain(value: Any, where: str) -> Any:  # noqa: ANN401
    """Refuse what cannot be a flag: YAML makes dates, sets and bytes of some words."""
    try:
        json.dumps(value)
    except TypeError:
        raise ConfigError(
            f"{where} must be a number, a word, or a list or mapping of them, got {value!r}; "
            "put dates in quotes."
        ) from None
    return value


def _inside(kinds: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {str(k): _value(kinds[1], v, f"{where}: {k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_value(kinds[0], v, where) for v in value]
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
    for kind in kinds:
        try:
            return _value(kind, value, where)
        except ConfigError:
            continue
    if isinstance(value, dict):  # the one that takes a mapping says what is wrong with it
        return _value(kinds[0], value, where)
    names = " or ".join(str(getattr(kind, "__name__", kind)) for kind in kinds)
    raise ConfigError(f"{where} must be {names}, got {value!r}.")
