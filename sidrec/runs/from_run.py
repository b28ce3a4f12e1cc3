"""Arguments of a stage, derived from the run directory that the user names."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

import sidrec
from sidrec.errors import ConfigError, ContradictionError, RunError
from sidrec.plugins import allowed_packages
from sidrec.runs.directory import RunDirectory

_FLAG = "--from"
_ID_CALLBACKS = ("SemanticIdCallback", "LearnedIdsCallback")
_FOLDERS = ("corpus", "encoder", "encoder_run", "semantic_ids", "pretrained")  # may name a folder
_SHARDING = ("fsdp", "deepspeed", "modelparallel", "shardedstrategy")
_GROUPS = ("tower", "tokens", "t5", "causal_lm")  # settings that hold such a name


def take_from(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Split ``--from FOLDER`` (or ``--from=FOLDER``) off a command line.

    Returns:
        Folder, or None without the flag, and the other arguments in their order.

    Raises:
        ConfigError: If the flag has no value.
    """
    rest = list(arguments)
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{_FLAG}="):
            del rest[place]
            return Path(argument.removeprefix(f"{_FLAG}=")), rest
        if argument == _FLAG:
            if place + 1 == len(arguments):
                raise ConfigError("--from needs the folder of a run, e.g. --from runs/enc.")
            del rest[place : place + 2]
            return Path(arguments[place + 1]), rest
    return None, rest


def arguments_from_run(command: str, arguments: list[str]) -> list[str]:
    """Replace ``--from RUN`` by the arguments that the stage reads from it; explicit flags win.

    ``fit`` (generator, quantizer) takes the run's corpus, its Semantic IDs and its encoder; from a
    quantizer's run it takes the encoder that the quantizer was trained on. The other commands take
    the run's own resolved configuration.

    Raises:
        RunError: If the run is missing, unfinished, or made by the wrong stage.
    """
    source, rest = take_from(arguments)
    if source is None:
        return rest
    run = RunDirectory(source)
    run.finished_checkpoint()
    if command != "fit":
        return ["--config", str(run.config), "--run_dir", str(source), *rest]
    stage = run.stage()
    if stage not in ("encoder", "quantizer"):
        raise RunError(
            f"{source} was made by stage '{stage}'; `sidrec fit --from` needs an encoder run, or "
            "a quantizer's."
        )
    config = read_config(run.config)
    encoder = source if stage == "encoder" else config["model"]["init_args"]["encoder_run"]
    wanted = {
        "--data.corpus": config["data"]["init_args"]["corpus"],
        "--model.semantic_ids": run.semantic_ids,
        "--model.encoder_run": encoder,
    }
    given = {argument.split("=")[0].replace(".init_args.", ".") for argument in rest}
    missing = [flag for flag, value in wanted.items() if value is not None and flag not in given]
    extra = [word for flag in missing for word in (flag, str(wanted[flag]))]
    return [*rest, *extra]


def read_config(path: Path) -> dict[str, Any]:
    """Return a resolved configuration as plain types.

    Raises:
        RunError: If it is missing or not a YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read ({type(error).__name__}); train again.") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a mapping; train again in a new run directory.")
    return content


def absolute_paths(config: Any) -> Any:  # noqa: ANN401
    """Make the folders that model and data read absolute, in place; return ``config``.

    Later stages read a run from any working directory. Hub names and ``package:`` names stay.

    Args:
        config: Mapping or namespace with ``model`` and ``data``, each with ``init_args``.
    """
    for part in ("model", "data"):
        settings = (config.get(part) or {}).get("init_args") or {}
        groups: tuple[Any, ...] = (settings, *(settings.get(name) for name in _GROUPS))
        for group in (one for one in groups if hasattr(one, "get")):  # others are refused later
            for name in _FOLDERS:
                value = group.get(name)
                if isinstance(value, str) and Path(value).is_dir():
                    group[name] = str(Path(value).absolute())
    return config


def refuse_missing(config: Any, subcommand: str) -> None:  # noqa: ANN401
    """Refuse a command without run directory or data; jsonargparse asks for the model alone.

    Raises:
        ConfigError: Names what is missing.
    """
    if config.run_dir is None:
        raise ConfigError(f"`sidrec {subcommand}` needs --run_dir FOLDER or --from FOLDER.")
    if config.data is None:
        raise ConfigError("data is missing or null; give its class_path and init_args.")


def refuse_lists_of_settings(resolved: dict[str, Any]) -> None:
    """Refuse groups of settings written as lists, which jsonargparse lets through.

    Raises:
        ConfigError: Names the group.
    """
    for part in ("model", "data"):
        for name, value in ((resolved[part] or {}).get("init_args") or {}).items():
            if isinstance(value, list) and any(isinstance(one, (list, dict)) for one in value):
                raise ConfigError(
                    f"{part}.init_args.{name} is a list; write its settings as NAME: VALUE, "
                    "without dashes."
                )


def refuse_contradictions(run: RunDirectory, resolved: dict[str, Any]) -> None:
    """Refuse to resume a run whose model, data, seed or best metric differ from its first start.

    Trainer settings (devices, steps, precision, logging) may change on resume.

    Raises:
        ContradictionError: Names every setting that differs, with given and stored value.
    """
    if not (run.last_checkpoint.exists() and run.config.exists()):
        return
    stored = _as_of_now(absolute_paths(read_config(run.config)), resolved)
    kept = ("seed_everything", "model", "data", "best")
    before = dict(_leaves({key: stored.get(key) for key in kept}))
    now = dict(_leaves({key: resolved.get(key) for key in kept}))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        table = "; ".join(f"{k}: given {now.get(k)}, in run {before.get(k)}" for k in differing)
        raise ContradictionError(
            f"{run.root} was begun with other settings ({table}); "
            "use a new --run_dir, or the settings it began with."
        )


def is_finished_with(run: RunDirectory, resolved: dict[str, Any]) -> bool:
    """Return whether the run has finished with exactly these settings."""
    if run.state() != "finished" or not run.config.exists():
        return False
    return _as_of_now(absolute_paths(read_config(run.config)), resolved) == resolved


def refuse_missed_validation(trainer: dict[str, Any]) -> None:
    """Refuse a limit of batches below the validation interval, which would prevent any validation.

    Raises:
        ConfigError: Names both keys.
    """
    interval, limit = trainer.get("val_check_interval"), trainer.get("limit_train_batches")
    if trainer.get("check_val_every_n_epoch") is None:  # the interval counts across epochs
        return
    if isinstance(interval, int) and isinstance(limit, int) and limit < interval:
        raise ConfigError(
            f"trainer.limit_train_batches ({limit}) is below trainer.val_check_interval "
            f"({interval}), so validation would never run; lower the interval."
        )


def shards_weights(trainer: dict[str, Any]) -> str | None:
    """Return the name of the strategy if it shards the weights of a model."""
    strategy = trainer.get("strategy")
    name = str(strategy.get("class_path", "") if isinstance(strategy, dict) else strategy)
    return name if any(kind in name.lower() for kind in _SHARDING) else None


def refuse_sharded_weights(resolved: dict[str, Any]) -> None:
    """Refuse to shard what cannot be sharded, or where it cannot be.

    Raises:
        ConfigError: Names the strategy and what to use instead.
    """
    name = shards_weights(resolved["trainer"])
    if name is None:
        return
    start = f"trainer.strategy {name} shards weights"
    if name != "fsdp" and not name.endswith(".ShardedStrategy"):
        raise ConfigError(f"{start} in a way that is not supported; use fsdp.")
    model = resolved["model"]
    if not model["class_path"].endswith("JointGenerator"):
        raise ConfigError(
            f"{start}, but {model['class_path']} is encoded and scored with whole ones outside of "
            "its training step; use ddp, with model.tower.lora for a large encoder."
        )
    settings = model.get("init_args") or {}
    for family in ("t5", "causal_lm"):
        for option in ("lora", "torch_compile"):
            if (settings.get(family) or {}).get(option):
                raise ConfigError(
                    f"{start}, which model.{family}.{option} does not support; use ddp."
                )
    if name == "fsdp" and not _has_gpu(resolved["trainer"]):
        raise ConfigError(
            f"{start} over GPUs, and there is none to use; use ddp, or sidrec.ShardedStrategy to "
            "try it on CPUs."
        )


def _has_gpu(trainer: dict[str, Any]) -> bool:
    from torch.cuda import is_available

    return trainer.get("accelerator") in ("auto", "gpu", "cuda") and is_available()


def refuse_missing_ids(run: RunDirectory, trainer: dict[str, Any]) -> None:
    """Refuse to mark a run as finished whose Semantic-ID callback has made no Semantic IDs.

    Raises:
        RunError: Names the callback.
    """
    for callback in trainer.get("callbacks") or ():
        makes = str(callback.get("class_path", "")).rsplit(".", 1)[-1]
        if makes in _ID_CALLBACKS and not run.semantic_ids.is_dir():
            raise RunError(
                f"{run.root}: {makes} wrote no semantic_ids/, so the run is not finished; run the "
                "same command again."
            )


def _as_of_now(stored: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of newer options to a stored configuration, in place."""
    for part in ("model", "data"):
        before, now = stored.get(part) or {}, resolved.get(part) or {}
        if "class_path" not in now or before.get("class_path") != now["class_path"]:
            continue
        module, _, name = now["class_path"].rpartition(".")
        given = now.get("init_args") or {}
        parameters = signature(getattr(import_module(module), name)).parameters
        defaults = {option: known.default for option, known in parameters.items()}
        before["init_args"] = before.get("init_args") or {}
        _fill(before["init_args"], given, defaults)
    return stored


def _fill(before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        is_group = is_dataclass(default) and not isinstance(default, type)
        plain = asdict(default) if is_group else default
        if name not in now:
            continue
        if all(isinstance(one, dict) for one in (plain, before.get(name), now[name])):
            _fill(before[name], now[name], plain)
        elif now[name] == plain:
            before.setdefault(name, plain)


def allow_known_classes_only(others: Sequence[str] = ()) -> None:
    """Restrict class paths in YAML and flags to sidrec's public classes and the given ones.

    A configuration may come from anywhere, and a ``class_path`` imports and calls what it names.
    The environment variable SIDREC_ALLOW_IMPORTS adds packages, separated by commas. Installed
    packages with an entry point of sidrec are added too. An allowed package does not admit objects
    that it imports from another package: the module that defines an object must be allowed as well.

    Args:
        others: Import paths of further classes.

    Raises:
        ConfigError: If the installed jsonargparse does not support this.
    """
    from jsonargparse import set_parsing_settings

    try:
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=[*sidrec.public_classes(), *others, *allowed_packages()],
        )
    except TypeError:
        raise ConfigError(
            "jsonargparse before 4.53 would let a configuration call anything; "
            "pip install 'jsonargparse>=4.53,<5'."
        ) from None


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:  # noqa: ANN401
    if isinstance(tree, dict):
        return [pair for k, v in tree.items() for pair in _leaves(v, f"{prefix}{k}.")]
    return [(prefix.rstrip("."), tree)]
