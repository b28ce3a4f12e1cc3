"""Plug-ins: classes and functions of other packages, by entry point or by allowed path.

A package registers a class for bundles and YAML files in its ``pyproject.toml``, e.g.
``[project.entry-points."sidrec.quantizers"] mine = "mypackage.quantizers:MyQuantizer"``.
"""

import os
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from sidrec.errors import ConfigError, DataError

GROUPS = ("quantizers", "collision_policies", "fusions", "baselines")
_ALLOWED = "SIDREC_ALLOW_IMPORTS"

Base = TypeVar("Base")


def allowed_packages() -> list[str]:
    """Return the packages that SIDREC_ALLOW_IMPORTS names, and those of installed plug-ins."""
    named = os.environ.get(_ALLOWED, "").replace(",", " ").split()
    return [*named, *(point.module.partition(".")[0] for point in _all_points())]


def plugin_names(group: str) -> list[str]:
    """Return the names of the entry points of a group, sorted; imports none of them."""
    return sorted(point.name for point in entry_points(group=f"sidrec.{group}"))


def load_plugins() -> None:
    """Import every installed plug-in, so that flags and configurations can name its classes.

    Raises:
        ConfigError: If one cannot be imported.
    """
    for point in _all_points():
        _loaded(point)


def find_class(group: str, name: str, base: type[Base], *, known: Iterable[str]) -> type[Base]:
    """Return the subclass of ``base`` for an entry point, a class name or a class path.

    Args:
        group: One of ``GROUPS``.
        name: Entry point, or class path. A path imports its module only if its package is
            allowed (see ``allowed_packages``), since a bundle may come from anywhere.
        base: Required base class.
        known: Names of sidrec's own classes, for the message.

    Raises:
        DataError: If nothing has that name.
        ConfigError: If the plug-in cannot be imported, or is not a subclass.
    """
    found = _by_entry_point(group, name) or _by_class(base, name) or _by_path(name)
    if found is None:
        package = f", or set {_ALLOWED}={name.partition('.')[0]}" if "." in name else ""
        raise DataError(
            f"No {base.__name__} is named '{name}', expected one of "
            f"{', '.join([*sorted(known), 'an installed plug-in'])}; import its package{package}."
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{group} '{name}' is {found!r}, expected a subclass of {base.__name__}.")
    return found


def find_function(group: str, name: str, *, known: Iterable[str]) -> Callable[..., Any]:
    """Return the function for an entry point or an allowed path.

    Raises:
        ConfigError: If nothing has that name, or it cannot be imported or called.
    """
    found = _by_entry_point(group, name) or _by_path(name)
    if not callable(found):
        raise ConfigError(
            f"{group} '{name}' is unknown, expected one of {', '.join(known)}, an entry point of "
            f"sidrec.{group}, or the path of a function whose package {_ALLOWED} names."
        )
    function: Callable[..., Any] = found
    return function


def broken_import(error: BaseException | None) -> ConfigError | None:
    """Return an error that names the foreign module whose import raised an error, if one did."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            module = str(frame.f_globals.get("__name__"))
            if frame.f_code.co_name == "<module>" and module.partition(".")[0] != "sidrec":
                return _broken(module, error)
        error = error.__cause__ or error.__context__
    return None


def _all_points() -> list[EntryPoint]:
    return [point for group in GROUPS for point in entry_points(group=f"sidrec.{group}")]


def _by_entry_point(group: str, name: str) -> Any:  # noqa: ANN401
    points = list(entry_points(group=f"sidrec.{group}", name=name))
    return _loaded(points[0]) if points else None


def _by_class(base: type, name: str) -> type | None:
    """Return an already imported subclass of this name; imports nothing new."""
    one: type
    for one in base.__subclasses__():
        is_it = name in (getattr(one, "name", None), f"{one.__module__}.{one.__qualname__}")
        found = one if is_it else _by_class(one, name)
        if found is not None:
            return found
    return None


def _by_path(name: str) -> Any:  # noqa: ANN401
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] not in allowed_packages():
        return None
    try:
        return getattr(import_module(module), attribute, None)
    except Exception as error:
        raise _broken(name, error) from None


def _loaded(point: EntryPoint) -> Any:  # noqa: ANN401
    try:
        return point.load()
    except Exception as error:
        raise _broken(f"{point.name} ({point.value})", error) from None


def _broken(name: str, error: BaseException) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(
        f"The plug-in {name} cannot be imported: {type(error).__name__}: {reason}; "
        "fix or uninstall it."
    )
