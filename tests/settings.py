"""Constructor arguments from flat names, so that a test names only the fields that it is about."""

import inspect
from dataclasses import fields, is_dataclass, replace


def grouped(cls, **flat):
    """Return the arguments of ``cls`` with every flat name put into its settings group.

    ``group__field`` names the group where two have the same field; ``group=None`` stays.
    """
    parameters = inspect.signature(cls).parameters
    arguments = {name: flat.pop(name) for name in parameters if name in flat}
    for name, parameter in parameters.items():
        default = parameter.default
        if name in arguments:
            continue
        if is_dataclass(default) and not isinstance(default, type):
            arguments[name] = _changed(default, name, flat)
    assert not flat, f"{cls.__name__} has no settings {sorted(flat)}"
    return arguments


def made(cls, **flat):
    """Return an instance of ``cls``; see ``grouped``."""
    return cls(**grouped(cls, **flat))


def _changed(group, name, flat):
    own = {
        field.name: flat.pop(key)
        for field in fields(group)
        for key in (f"{name}__{field.name}", field.name)
        if key in flat
    }
    return replace(group, **own) if own else group
