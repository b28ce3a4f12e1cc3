"""What a comparison's YAML says: shared parts, and strategies that name them."""

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import yaml

from sidrec.errors import ConfigError, nearest

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


_NAME = re.compile(r"[\w.+-]+")
_FUSIONS = ("none", "concat", "svd_sum", "svd_concat", "separate", "prefix_share")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage that strategies share: configuration files, later ones over earlier ones.

    Attributes:
        configs: YAML files, as ``--config`` takes them.
        set: Keys to change, with dots; as flags.
        seeded: Whether the seed changes anything; false for what does not train.
    """

    configs: list[str]
    set: dict[str, Any] = field(default_factory=dict)
    seeded: bool = True


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to make Semantic IDs, and the generator that is trained on them.

    Attributes:
        embeddings: Whose vectors are quantized: one name, or two that are fused.
        ids: Quantizer and collision policy, by name.
        generator: Generator, by name.
        fusion: ``none``, ``concat``, ``svd_sum``, ``svd_concat``, or, for IDs of which each task
            has its own, ``separate`` or ``prefix_share`` (search first, then recommendation).
        dim: Dimensions that an SVD keeps.
        reader: Embeddings through which the generator reads queries and items, by name; None
            takes those that are quantized.
    """

    embeddings: str | list[str]
    ids: str
    generator: str
    fusion: str = "none"
    dim: int | None = None
    reader: str | None = None

    @property
    def sources(self) -> list[str]:
        """Names of the embeddings that are quantized."""
        return [self.embeddings] if isinstance(self.embeddings, str) else self.embeddings


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """One baseline: a system of ``sidrec baselines``, or a model that is trained.

    Attributes:
        system: ``popularity``, ``bm25``, ``neighbors``, ``dense`` or ``enmf``; None trains.
        embeddings: Run of ``dense`` and ``enmf``, by name.
        configs: YAML files of a model that is trained.
        set: Keys to change in them.
    """

    system: str | None = None
    embeddings: str | None = None
    configs: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Tests, intervals and files of the report.

    Attributes:
        reference: System that the others are tested against.
        family_error: Probability of a false star among all tests together (Holm), in (0, 1).
        interval: Coverage of the confidence intervals, in (0, 1).
        num_bootstrap: Draws of requests and seeds, in which membership of the front is counted.
        seed: Of the draws.
        requests_per_task: Requests whose lists stand side by side.
        publish: Path, without ending, of a Markdown, SVG and JSON file for a repository; None:
            none.
        discussion: Markdown file that stands in it before the table.
    """

    reference: str
    family_error: float
    interval: float
    num_bootstrap: int
    seed: int
    requests_per_task: int
    publish: str | None = None
    discussion: str | None = None


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """Where Weights & Biases gets the table and the plot, as one run.

    Attributes:
        project: Name.
        offline: Write files that ``wandb sync`` sends; nothing leaves the machine.
    """

    project: str
    offline: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that decides a comparison.

    Attributes:
        corpus: Corpus directory.
        out: Folder of stages and report.
        seeds: One run of everything that trains for each.
        report: How figures are judged and shown.
        embeddings: Encoder runs.
        ids: Quantizers and policies.
        generators: Generators.
        strategies: Rows of the table.
        baselines: More rows.
        machine: YAML files that go over every training, such as ``configs/machines/cpu.yaml``.
        runs: Runs that were made elsewhere: name to run directories, one per seed.
        wandb: Where the report goes beside its files; None: nowhere.
    """

    corpus: str
    out: str
    seeds: list[int]
    report: ReportSettings
    embeddings: dict[str, Part]
    ids: dict[str, Part]
    generators: dict[str, Part]
    strategies: dict[str, Strategy]
    baselines: dict[str, BaselineSettings] = field(default_factory=dict)
    machine: list[str] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)
    wandb: WandbSettings | None = None

    @property
    def systems(self) -> list[str]:
        """Every row of the table."""
        return [*self.strategies, *self.baselines, *self.runs]

    def only(self, names: Sequence[str]) -> "Comparison":
        """Return the comparison of some of its systems.

        Raises:
            ConfigError: If one does not exist; names the nearest.
        """
        for name in names:
            known("--strategies", name, self.systems)
        parts = {
            key: {name: one for name, one in getattr(self, key).items() if name in names}
            for key in ("strategies", "baselines", "runs")
        }
        everything = {one.name: getattr(self, one.name) for one in fields(self)}
        return Comparison(**(everything | parts))


def read_comparison(path: Path) -> Comparison:
    """Read and check a comparison's YAML.

    Raises:
        ConfigError: If it cannot be read, a key is unknown or missing, or a name does not exist.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    comparison = section_of(Comparison, content, str(path))
    _check(comparison, str(path))
    return comparison


def _check(comparison: Comparison, where: str) -> None:
    if not comparison.seeds:
        raise ConfigError(f"{where}: seeds is empty; give at least one, better three.")
    if len(set(comparison.seeds)) < len(comparison.seeds):
        raise ConfigError(f"{where}: seeds holds {comparison.seeds}; give each seed once.")
    _check_names(comparison, where)
    embeddings = list(comparison.embeddings)
    for name, strategy in comparison.strategies.items():
        _check_strategy(strategy, comparison, f"{where}: strategies: {name}")
    for name, baseline in comparison.baselines.items():
        place = f"{where}: baselines: {name}"
        if (baseline.system is None) != bool(baseline.configs):
            raise ConfigError(f"{place}: give either system or configs.")
        if baseline.embeddings is not None:
            known(f"{place}: embeddings", baseline.embeddings, embeddings)


def _check_names(comparison: Comparison, where: str) -> None:
    parts = [*comparison.embeddings, *comparison.ids, *comparison.generators]
    for name in (*comparison.systems, *parts):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: {name!r} is not a name; use letters, digits and the signs _ . + - only."
            )
    twice = [name for name in comparison.systems if comparison.systems.count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: two systems are called '{twice[0]}'.")
    known(f"{where}: report: reference", comparison.report.reference, comparison.systems)


def _check_strategy(strategy: Strategy, comparison: Comparison, where: str) -> None:
    for source in strategy.sources:
        known(f"{where}: embeddings", source, list(comparison.embeddings))
    known(f"{where}: ids", strategy.ids, list(comparison.ids))
    known(f"{where}: generator", strategy.generator, list(comparison.generators))
    known(f"{where}: fusion", strategy.fusion, _FUSIONS)
    if strategy.reader is not None:
        known(f"{where}: reader", strategy.reader, list(comparison.embeddings))
    if len(strategy.sources) != (1 if strategy.fusion == "none" else 2):
        raise ConfigError(f"{where}: fusion {strategy.fusion} with {len(strategy.sources)} spaces.")
    if strategy.fusion != "none" and strategy.reader is None:
        raise ConfigError(
            f"{where}: fused vectors lie in no space that reads queries; give reader."
        )
    if strategy.fusion.startswith("svd") == (strategy.dim is None):
        raise ConfigError(f"{where}: dim belongs to fusion svd_sum and svd_concat.")
