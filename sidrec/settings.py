"""Base of the settings dataclasses: ranges as types, with one check for Python, YAML and flags."""

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval

from sidrec.errors import ConfigError

PositiveInt: TypeAlias = Annotated[int, Interval(ge=1)]
NonNegativeInt: TypeAlias = Annotated[int, Interval(ge=0)]
PositiveFloat: TypeAlias = Annotated[float, Interval(gt=0)]
NonNegativeFloat: TypeAlias = Annotated[float, Interval(ge=0)]
Probability: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]  # 1 itself is excluded

_LIMITS = (
    ("gt", operator.gt, "above"),
    ("ge", operator.ge, "at least"),
    ("lt", operator.lt, "below"),
    ("le", operator.le, "at most"),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of a group of settings: a frozen dataclass whose fields have ranges and defaults.

    Raises:
        ConfigError: If a field lies outside the range that its type states.
    """

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(settings: Any) -> None:  # noqa: ANN401
    """Check that all fields of a dataclass are inside the range of their type.

    Raises:
        ConfigError: Names the field, its range and the value.
    """
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if (expected := _missed(kind, value)) is not None:
            raise ConfigError(f"{name} is {value!r}, expected {expected}.")


def as_plain(value: Any) -> Any:  # noqa: ANN401
    """Return settings as dicts, lists and scalars, for checkpoints and JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: as_plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(one) for one in value]
    return value


def _missed(kind: Any, value: Any) -> str | None:  # noqa: ANN401
    """Return the range that a value violates, or None where it is inside."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return None if value in arguments else f"one of {', '.join(map(str, arguments))}"
    if origin is Annotated:
        limits = [one for one in arguments[1:] if isinstance(one, Interval)]
        bounds = [
            (holds, word, bound)
            for one in limits
            for side, holds, word in _LIMITS
            if (bound := getattr(one, side)) is not None
        ]
        if all(holds(value, bound) for holds, _, bound in bounds):
            return None
        return " and ".join(f"{word} {bound}" for _, word, bound in bounds)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        missed = [_missed(one, value) for one in arguments if one is not NoneType]
        return None if None in missed else missed[0]
    if origin is tuple and arguments[-1] is Ellipsis:
        return next((found for one in value if (found := _missed(arguments[0], one))), None)
    return None
