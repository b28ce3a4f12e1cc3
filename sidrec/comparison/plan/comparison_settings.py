"""Settings of a comparison: shared parts, and strategies that refer to them by name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sidrec.configurations import find_config
from sidrec.errors import ConfigError, nearest

_STRICT = ConfigDict(strict=True, extra="forbid")


def known(where: str, name: str, valid: Sequence[str]) -> None:
    """Check that a name exists.

    Raises:
        ConfigError: If it does not; suggests the nearest valid name.
    """
    if name in valid:
        return
    near = nearest(name, list(valid))
    hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(valid)}."
    raise ConfigError(f"{where} names '{name}', which does not exist; {hint}")


_NAME = re.compile(r"[\w.+-]+")
_FUSIONS = ("none", "concat", "svd_sum", "svd_concat", "separate", "prefix_share")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Part:
    """One stage that strategies share: configuration files, where later ones override earlier ones.

    Attributes:
        configs: YAML files, as ``--config`` takes them.
        set: Settings to change by dotted key, as flags.
        seeded: Whether the seed affects the result; false for what does not train.
    """

    configs: list[str]
    set: dict[str, Any] = field(default_factory=dict)
    seeded: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class IdsPart(Part):
    """Semantic IDs: quantizer and collision policy, or codes made elsewhere.

    Attributes:
        codes: File of codes as ``sidrec ids --codes`` reads it (LETTER, GRID, a table), instead
            of ``configs``; its strategies name no embeddings.
    """

    configs: list[str] = field(default_factory=list)
    codes: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Strategy:
    """Recipe for Semantic IDs, and the generator that is trained on them.

    Attributes:
        embeddings: Embeddings to quantize: one name, or two that are fused; None where ``ids``
            names a file of codes.
        ids: Quantizer and collision policy, by name.
        generator: Generator, by name.
        fusion: ``none``, ``concat``, ``svd_sum`` or ``svd_concat``; ``separate`` or
            ``prefix_share`` for separate IDs per task (search first, then recommendation).
        dim: Number of dimensions that an SVD keeps.
        reader: Embeddings through which the generator reads queries and items, by name; None
            takes the quantized ones.
    """

    ids: str
    generator: str
    embeddings: str | list[str] | None = None
    fusion: str = "none"
    dim: int | None = None
    reader: str | None = None

    @property
    def sources(self) -> list[str]:
        """Names of the embeddings to quantize."""
        embeddings = self.embeddings or []
        return [embeddings] if isinstance(embeddings, str) else embeddings


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BaselineSettings:
    """Settings of one baseline: a system of ``sidrec baselines``, or a model to train.

    Attributes:
        system: One of ``stages.SYSTEM_NAMES``, or a plug-in; None trains a model.
        embeddings: Run that ``dense``, ``hybrid`` and ``enmf`` use, by name.
        configs: YAML files of the model to train.
        set: Settings of these files to change.
    """

    system: str | None = None
    embeddings: str | None = None
    configs: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ReportSettings:
    """Settings of the report: tests, intervals and files.

    Attributes:
        reference: System against which the others are tested.
        family_error: Probability of a false star among all tests together (Holm), in (0, 1).
        interval: Coverage of the confidence intervals, in (0, 1).
        num_bootstrap: Draws of requests and seeds that estimate membership of the Pareto front.
        seed: Seed of the draws.
        requests_per_task: Number of requests whose lists are shown side by side.
        publish: Path without suffix of Markdown, SVG and JSON files for a repository; None writes
            none.
        discussion: Markdown file to insert before the table.
    """

    reference: str
    family_error: float
    interval: float
    num_bootstrap: int
    seed: int
    requests_per_task: int
    publish: str | None = None
    discussion: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WandbSettings:
    """Settings of the Weights & Biases run that gets the table and the plot.

    Attributes:
        project: Name of the project.
        offline: Only write files for a later ``wandb sync``; nothing leaves the machine.
    """

    project: str
    offline: bool


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Comparison:
    """All settings of a comparison.

    Attributes:
        corpus: Corpus directory.
        out: Folder of stages and report.
        seeds: Seeds; everything that trains runs once per seed.
        report: Settings of the report.
        embeddings: Encoder runs.
        ids: Quantizers and collision policies, or files of codes.
        generators: Generators.
        strategies: Rows of the table.
        baselines: Further rows of the table.
        machine: YAML files that override every training, such as ``configs/machines/cpu.yaml``.
        runs: Runs from outside the comparison: name to run directories, one per seed.
        wandb: Weights & Biases copy of the report; None makes no copy.
    """

    corpus: str
    out: str
    seeds: list[int]
    report: ReportSettings
    embeddings: dict[str, Part]
    ids: dict[str, IdsPart]
    generators: dict[str, Part]
    strategies: dict[str, Strategy]
    baselines: dict[str, BaselineSettings] = field(default_factory=dict)
    machine: list[str] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)
    wandb: WandbSettings | None = None

    @property
    def systems(self) -> list[str]:
        """Names of all rows of the table."""
        return [*self.strategies, *self.baselines, *self.runs]

    def only(self, names: Sequence[str]) -> "Comparison":
        """Return the comparison of a subset of its systems.

        Raises:
            ConfigError: If one does not exist; suggests the nearest name.
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

    Its key ``base`` may name another comparison, as ``--config`` does, whose settings it changes.

    Raises:
        ConfigError: If it cannot be read, a key is unknown or missing, or a name does not exist.
    """
    content = json.dumps(_read(path), default=_refuse)
    try:
        comparison = TypeAdapter(Comparison).validate_json(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_mistake(error.errors())}") from None
    _check(comparison, str(path))
    return comparison


def merged_settings(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings in which the values of ``above`` win."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged_settings(merged[key], value) if both else value
    return merged


def _read(path: Path, *above: Path) -> Any:  # noqa: ANN401
    """Return the content of a comparison's YAML over that of its base."""
    if path in above:
        raise ConfigError(f"{path} is the base of itself; name another one.")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = find_config(str(content.pop("base")))
    return merged_settings(_read(base, path, *above), content)


def _refuse(value: object) -> NoReturn:
    """Refuse a value that cannot be a flag: YAML also makes dates, sets and bytes."""
    raise ConfigError(
        f"{value!r} is neither a number, a word, nor a list or mapping of them; quote dates."
    )


def _first_mistake(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return one line on the first mistake: unknown keys first, then the deepest place."""
    unknown = [one for one in errors if one["type"] == "unexpected_keyword_argument"]
    one = unknown[0] if unknown else max(errors, key=lambda error: len(error["loc"]))
    where = "".join(f"{part}: " for part in one["loc"])
    if one["type"] == "missing":
        return f"{where}this key is missing."
    if unknown:
        key = str(one["loc"][-1])
        sections = (Part, Strategy, BaselineSettings, ReportSettings, WandbSettings, Comparison)
        near = nearest(key, [each.name for section in sections for each in fields(section)])
        return f"{where}unknown key" + (f"; did you mean '{near}'?" if near else ".")
    return f"{where}{one['msg']}, got {one['input']!r}."


def _check(comparison: Comparison, where: str) -> None:
    if not comparison.seeds:
        raise ConfigError(f"{where}: seeds is empty; give at least one, better three.")
    if len(set(comparison.seeds)) < len(comparison.seeds):
        raise ConfigError(f"{where}: seeds holds {comparison.seeds}; give each seed once.")
    _check_names(comparison, where)
    embeddings = list(comparison.embeddings)
    _check_ids(comparison, where)
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
        raise ConfigError(f"{where}: two systems are called '{twice[0]}'; rename one.")
    known(f"{where}: report: reference", comparison.report.reference, comparison.systems)


def _check_ids(comparison: Comparison, where: str) -> None:
    for name, ids in comparison.ids.items():
        if (ids.codes is None) != bool(ids.configs):
            raise ConfigError(f"{where}: ids: {name}: give either configs or codes.")


def _check_strategy(strategy: Strategy, comparison: Comparison, where: str) -> None:
    for source in strategy.sources:
        known(f"{where}: embeddings", source, list(comparison.embeddings))
    known(f"{where}: ids", strategy.ids, list(comparison.ids))
    known(f"{where}: generator", strategy.generator, list(comparison.generators))
    known(f"{where}: fusion", strategy.fusion, _FUSIONS)
    if strategy.reader is not None:
        known(f"{where}: reader", strategy.reader, list(comparison.embeddings))
    if comparison.ids[strategy.ids].codes is not None:
        if strategy.sources or strategy.fusion != "none":
            raise ConfigError(
                f"{where}: the codes of ids {strategy.ids} are given; leave embeddings and fusion "
                "out. `reader` names an encoder for the generator."
            )
        return
    if len(strategy.sources) != (1 if strategy.fusion == "none" else 2):
        raise ConfigError(
            f"{where}: fusion {strategy.fusion} with {len(strategy.sources)} spaces; give two to "
            "fuse, one for none."
        )
    if strategy.fusion != "none" and strategy.reader is None:
        raise ConfigError(f"{where}: no encoder reads queries in the fused space; give reader.")
    if strategy.fusion.startswith("svd") == (strategy.dim is None):
        raise ConfigError(f"{where}: dim belongs to fusion svd_sum and svd_concat.")
