"""Table cells and stages, derived from strategies and seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidrec.comparison.plan.comparison_settings import (
    BaselineSettings,
    Comparison,
    Part,
    Strategy,
    known,
    merged_settings,
)
from sidrec.comparison.plan.stages import (
    NEEDS_A_RUN,
    SYSTEM_NAMES,
    Cell,
    Input,
    Kind,
    Stage,
    read_yaml,
)
from sidrec.errors import ConfigError
from sidrec.plugins import plugin_names


def cells_of(comparison: Comparison, *, fingerprint: str) -> list[Cell]:
    """Return every cell of the table; a system that no seed affects has one.

    Raises:
        ConfigError: If a configuration file cannot be read, or a baseline is unknown.
    """
    cells: list[Cell] = []
    seeds = comparison.seeds
    tried = [*seeds, seeds[0] + 1] if len(seeds) == 1 else seeds  # shows whether the seed matters
    for system in [*comparison.strategies, *comparison.baselines]:
        found: dict[str, Cell] = {}
        for seed in tried:
            maker = _Maker(comparison, fingerprint, seed)
            cell = maker.cell(system)
            found.setdefault(cell.last.key, cell)
        own = list(found.values())[: len(seeds)]
        if len(found) == 1:
            own = [Cell(system, None, own[0].last, own[0].ids)]
        cells += own
    return cells


@dataclass(frozen=True)
class _Maker:
    """Build the stages of one seed; equal stages have an equal key and run once."""

    comparison: Comparison
    fingerprint: str
    seed: int

    def cell(self, system: str) -> Cell:
        if system in self.comparison.baselines:
            return Cell(system, self.seed, self._baseline(system), None)
        strategy = self.comparison.strategies[system]
        ids = self._ids(strategy)
        part = self.comparison.generators[strategy.generator]
        inputs = [Input("--model.semantic_ids", ids)]
        if reader := strategy.reader or next(iter(strategy.sources), None):
            inputs.append(Input("--model.encoder_run", self._embeddings(reader)))
        label = f"{system}, generator {strategy.generator}"
        generator = self._fit("generator", label, part, inputs)
        return Cell(system, self.seed, self._test(generator), ids)

    def _embeddings(self, name: str) -> Stage:
        part = self.comparison.embeddings[name]
        return self._fit("embeddings", f"embeddings {name}", part)

    def _ids(self, strategy: Strategy) -> Stage:
        part = self.comparison.ids[strategy.ids]
        if part.codes is not None:
            return self._stage(
                "ids",
                f"IDs {strategy.ids}",
                "ids",
                [],
                [("--codes", part.codes)],
                [],
                own_flag="--out",
                corpus_flag="--corpus",
                files=(part.codes,),
            )
        sources = [self._embeddings(name) for name in strategy.sources]
        flags = zip(("--from", "--and"), sources, strict=False)
        inputs = [Input(flag, stage) for flag, stage in flags]
        options = self._options(part)
        command = "ids"
        if strategy.reader not in (None, strategy.embeddings):
            inputs.append(Input("--reader", self._embeddings(str(strategy.reader))))
            command, options = "fuse", [("--fusion", strategy.fusion), *options]
            if strategy.dim is not None:
                options.append(("--dim", str(strategy.dim)))
        label = f"IDs {strategy.ids} of {' and '.join(strategy.sources)}"
        return self._stage("ids", label, command, part.configs, options, inputs, own_flag="--out")

    def _baseline(self, name: str) -> Stage:
        settings = self.comparison.baselines[name]
        if settings.system is None:
            part = Part(configs=settings.configs, set=settings.set)
            return self._test(self._fit("baseline", f"baseline {name}", part))
        if "." not in settings.system:  # a path is checked by the stage, which imports it
            systems = (*SYSTEM_NAMES, *plugin_names("baselines"))
            known(f"baselines: {name}: system", settings.system, systems)
        inputs = self._run_of(name, settings)
        options = [("--system", settings.system)]
        return self._stage(
            "baseline",
            f"baseline {name}",
            "baselines",
            [],
            options,
            inputs,
            own_flag="--run_dir",
            corpus_flag="--corpus",
        )

    def _run_of(self, name: str, settings: BaselineSettings) -> list[Input]:
        has_run = settings.embeddings is not None
        if settings.system in SYSTEM_NAMES and (settings.system in NEEDS_A_RUN) != has_run:
            raise ConfigError(f"baselines: {name}: embeddings belongs to {', '.join(NEEDS_A_RUN)}.")
        if settings.embeddings is None:
            return []
        return [Input("--from", self._embeddings(settings.embeddings))]

    def _fit(self, kind: Kind, label: str, part: Part, inputs: Sequence[Input] = ()) -> Stage:
        configs = [*part.configs, *self.comparison.machine]
        options = self._options(part)
        return self._stage(
            kind,
            label,
            "fit",
            configs,
            options,
            inputs,
            own_flag="--run_dir",
            corpus_flag="--data.corpus",
        )

    def _test(self, stage: Stage) -> Stage:
        label = f"test of {stage.label}"
        return self._stage("test", label, "test", [], [], [Input("--from", stage)])

    def _options(self, part: Part) -> list[tuple[str, str]]:
        options = [(f"--{key}", _word(value)) for key, value in part.set.items()]
        return [*options, *self._seeds(part)] if part.seeded else options

    def _seeds(self, part: Part) -> list[tuple[str, str]]:
        """Set every seed of the configurations, whether written there or a default."""
        merged: dict[str, Any] = {}
        for config in part.configs:
            merged = merged_settings(merged, read_yaml(config) or {})
        places = (
            ("--seed_everything", ("seed_everything",)),
            ("--data.seed", ("data", "init_args", "seed")),
            ("--quantizer.init_args.seed", ("quantizer", "init_args", "seed")),
            ("--prefix_share.seed", ("prefix_share", "seed")),
        )
        return [
            (flag, str(self.seed))
            for flag, path in places
            if _has(merged, path) or _is_ours(merged.get(path[0]))
        ]

    def _stage(
        self,
        kind: Kind,
        label: str,
        command: str,
        configs: Sequence[str],
        options: Sequence[tuple[str, str]],
        inputs: Sequence[Input],
        *,
        own_flag: str = "",
        corpus_flag: str = "",
        files: Sequence[str] = (),
    ) -> Stage:
        return Stage(
            kind=kind,
            label=label,
            command=command,
            configs=tuple(configs),
            options=tuple(options),
            inputs=tuple(inputs),
            own_flag=own_flag,
            corpus_flag=corpus_flag,
            corpus=self.comparison.corpus,
            fingerprint=self.fingerprint,
            files=tuple(files),
        )


def _is_ours(part: Any) -> bool:  # noqa: ANN401
    """Return whether the part names a sidrec class, which has a seed even if none is written."""
    named = part.get("class_path") if isinstance(part, dict) else None
    return str(named).startswith("sidrec.")


def _has(tree: dict[str, Any], path: Sequence[str]) -> bool:
    node: Any = tree
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def _word(value: Any) -> str:  # noqa: ANN401
    """Return a YAML value as one word of a command line."""
    return value if isinstance(value, str) else json.dumps(value)
