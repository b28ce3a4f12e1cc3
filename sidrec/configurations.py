"""Configurations by name: a local YAML file, or one from the package."""

from pathlib import Path
from typing import Any

from sidrec.errors import ConfigError
from sidrec.files import atomic_file

_HERE = Path(__file__).parent
_MAX_NODES = 100_000  # of a configuration; packaged ones have a few hundred


def packaged_folder() -> Path:
    """Return the folder of the packaged configurations, from the wheel or the checkout."""
    inside = _HERE / "configs"
    return inside if inside.is_dir() else _HERE.parent / "configs"


def packaged_names() -> list[str]:
    """Return the names of all packaged configurations, e.g. ``ids/tiger.yaml``."""
    folder = packaged_folder()
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file that ``--config`` names; a local file wins over a packaged one.

    Args:
        name: Path of a local file, or a packaged name such as ``ids/tiger.yaml``, with or without
            the prefix ``configs/``.

    Raises:
        ConfigError: If neither exists; suggests the nearest packaged name.
    """
    return Path(name) if Path(name).is_file() else packaged_config(name.removeprefix("configs/"))


def packaged_config(name: str) -> Path:
    """Return the file of a packaged configuration.

    Raises:
        ConfigError: If the name does not exist; suggests the nearest one.
    """
    names = packaged_names()
    if name in names:
        return packaged_folder() / name
    from difflib import get_close_matches

    near = get_close_matches(name.removesuffix(".yaml"), [one[:-5] for one in names], n=1)
    hint = (
        f"did you mean '{near[0]}.yaml'?" if near else "`sidrec configs` lists the packaged ones."
    )
    raise ConfigError(f"{name}: no such file, and no packaged configuration; {hint}")


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file, with errors that name the file.

    Raises:
        ConfigError: If it is not a YAML mapping, contains itself, or unfolds to more than 100,000
            values; names file and line.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except Exception as error:  # a wrong !!bool is a KeyError, a wrong date a ValueError, …
        mark = getattr(error, "problem_mark", None)
        place = f"{file}, line {mark.line + 1}" if mark else f"{file}"
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{place}: not valid YAML ({reason}); correct it.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file}: expected keys with values, found a {type(content).__name__}; "
            "`--print_config` shows what a configuration looks like."
        )
    _count_nodes(content, file, {}, set())
    return content


def _count_nodes(node: Any, file: Path, known: dict[int, int], above: set[int]) -> int:  # noqa: ANN401
    """Count the values of a tree with its anchors unfolded; refuse an endless one."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise ConfigError(f"{file}: an anchor contains itself; take its alias out of it.")
    inside = node.values() if isinstance(node, dict) else node
    above.add(id(node))
    count = 1 + sum(_count_nodes(one, file, known, above) for one in inside)
    above.discard(id(node))
    if count > _MAX_NODES:
        raise ConfigError(
            f"{file}: its anchors unfold to more than {_MAX_NODES:,} values; write fewer aliases."
        )
    known[id(node)] = count
    return count


def copy_config(name: str, out: str | None = None) -> Path:
    """Copy a packaged configuration and return the new file.

    Args:
        name: Name from ``packaged_names``.
        out: File to write; None: the last part of the name, in the working directory.

    Raises:
        ConfigError: If there is no such configuration, or the file exists.
    """
    source = packaged_config(name)
    target = Path(out) if out is not None else Path(source.name)
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten; give another --out.")
    with atomic_file(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    return target
