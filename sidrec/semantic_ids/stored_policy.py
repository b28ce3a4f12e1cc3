"""Collision policies by the settings that a bundle stores."""

from typing import Any

from sidrec.errors import DataError
from sidrec.semantic_ids.collisions import (
    CollisionPolicy,
    ExtraLevel,
    KeepCollisions,
    ReassignLastLevel,
)
from sidrec.semantic_ids.sinkhorn import SinkhornLastLevel

_CLASSES: dict[str, type[CollisionPolicy]] = {
    "none": KeepCollisions,
    "extra_level": ExtraLevel,
    "reassign_last_level": ReassignLastLevel,
    "sinkhorn": SinkhornLastLevel,
}


def load_policy(settings: dict[str, Any]) -> CollisionPolicy:
    """Build the policy whose ``settings()`` are given.

    Raises:
        DataError: If this sidrec knows no policy of that name, or not these settings of it.
    """
    name, values = settings.get("name"), {k: v for k, v in settings.items() if k != "name"}
    if name not in _CLASSES:
        raise DataError(
            f"The bundle's collision policy is '{name}', expected one of "
            f"{', '.join(sorted(_CLASSES))}; make the bundle again with `sidrec ids`."
        )
    try:
        return _CLASSES[name](**values)
    except TypeError:
        raise DataError(
            f"The collision policy '{name}' does not take the stored settings {values}; "
            "make the bundle again with `sidrec ids`."
        ) from None
