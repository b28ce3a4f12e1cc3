"""Training commands: LightningCLI on run directories."""
# ruff: noqa: ANN401 (signatures are those of Lightning and jsonargparse)

import shutil
import signal
import sys
from argparse import SUPPRESS
from contextlib import nullcontext
from inspect import isclass
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from huggingface_hub.errors import StrictDataclassError
from jsonargparse.typing import NonNegativeFloat
from lightning import pytorch
from lightning.pytorch import (
    accelerators,
    callbacks,
    loggers,
    plugins,
    profilers,
    strategies,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import ClusterEnvironment

from sidrec.cli.parser import CommandParser, options_of, with_suggestion
from sidrec.console import say
from sidrec.distributed import leave_after_other_ranks
from sidrec.errors import ConfigError
from sidrec.figures import cold_start_line
from sidrec.files import read_json, write_json
from sidrec.plugins import broken_import
from sidrec.runs.callbacks import (
    LastCheckpoint,
    LineProgress,
    RunManifest,
    TerminalProgress,
    csv_logger,
    name_curve,
)
from sidrec.runs.checkpoints import (
    BestSettings,
    checked,
    newest_whole_checkpoint,
    set_aside_damaged,
    step_of,
)
from sidrec.runs.config_secrets import refuse_secrets, refuse_traversal
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import (
    absolute_paths,
    allow_known_classes_only,
    is_finished_with,
    refuse_contradictions,
    refuse_lists_of_settings,
    refuse_missed_validation,
    refuse_missing,
    refuse_missing_ids,
    refuse_sharded_weights,
    shards_weights,
)
from sidrec.runs.lock import has_lost_run, locked, refuse_if_lost
from sidrec.runs.preemption import Preempted
from sidrec.runs.rank_failures import end_launched_ranks, explained, take_charge_of
from sidrec.runs.tracking import Tracking
from sidrec.training.sharding import ShardedStrategy

MONITOR = "val/recall_harmonic_mean"
_FROM = {
    "fit": "Run of an encoder, or of a quantizer: gives data.corpus, model.semantic_ids and "
    "model.encoder_run.",
    **dict.fromkeys(("validate", "test", "predict"), "Finished run: configuration and weights."),
}
_OTHERS_EXIT_S = 30.0  # for the other ranks of a preempted run to exit before rank 0
_AT_REST = ("new", "preempted", "finished")


class SidrecParser(CommandParser, LightningArgumentParser):
    """Parser of LightningCLI whose error names the class and the nearest valid key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.place = ""  # class whose arguments alone this parser reads, if any

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Remember the class for error messages, since keys inside it come without their path."""
        if nested_key is None:
            self.place = f"{theclass.__name__}: "
        added: list[str] = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with code 2.

        Raises:
            ConfigError: If a module that the command names cannot be imported.
        """
        if broken := broken_import(ex):
            raise broken
        sys.stderr.write(f"sidrec: {self.place}{with_suggestion(message, options_of(self))}\n")
        sys.exit(ConfigError.exit_code)


def lightning_classes() -> list[str]:
    """Return the import paths of Lightning's classes that a configuration may name."""
    rooms = [pytorch, callbacks, loggers, plugins, profilers, strategies, accelerators]
    bases = (
        *(L.Callback, loggers.Logger, strategies.Strategy, profilers.Profiler),
        *(accelerators.Accelerator, plugins.Precision, plugins.CheckpointIO, plugins.LayerSync),
        ClusterEnvironment,
    )
    found: set[str] = set()
    for room in rooms:
        for name, one in vars(room).items():
            if isclass(one) and issubclass(one, bases):
                found |= {f"{room.__name__}.{name}", f"{one.__module__}.{one.__qualname__}"}
    return sorted(found)


class SidrecCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict`` on a run directory."""

    run: RunDirectory
    resolved: dict[str, Any]

    def __init__(self, args: list[str]) -> None:
        self.only = args[0]
        super().__init__(
            args=args,
            save_config_callback=None,
            seed_everything_default=1234,
            auto_configure_optimizers=False,
            parser_class=SidrecParser,
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments; ``sys.argv`` stays, since other ranks start with it."""
        self.config = parser.parse_args(args)

    def subcommands(self) -> dict[str, set[str]]:
        """Return only the requested subcommand, since parsers of the others cost seconds."""
        return {self.only: super().subcommands()[self.only]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run_dir`` and the run that a stage reads."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of this run, resumed if begun; default of fit: runs/CONFIG-TIME.",
        )
        parser.add_argument(  # only for --help: sidrec.cli.front replaces it
            "--from", type=str, default=SUPPRESS, help=_FROM[self.only]
        )
        parser.add_argument(
            "--checkpoint_every_s",
            type=NonNegativeFloat | None,
            default=None,
            help="Seconds between checkpoints; by default 60 or more, so that saving takes at most "
            "5 % of the time.",
        )
        parser.add_argument("--best", type=BestSettings, default=BestSettings())
        parser.add_argument(
            "--upload",
            type=bool,
            default=False,
            help="Give W&B's logger config.yaml and the Semantic-ID bundle as artifacts.",
        )

    def before_instantiate_classes(self) -> None:
        """Point trainer, checkpoints and logs at the run directory."""
        config = self.config[self.subcommand]
        refuse_missing(config, self.subcommand)
        self.run = RunDirectory(Path(config.run_dir))
        absolute_paths(config)
        self.resolved = self._resolved()  # before the run's own paths enter it
        refuse_secrets(self.resolved)
        refuse_traversal(self.resolved)
        refuse_missed_validation(self.resolved["trainer"])
        if self.subcommand == "fit":
            refuse_sharded_weights(self.resolved)
            refuse_contradictions(self.run, self.resolved)
            if is_finished_with(self.run, self.resolved):
                say(f"already finished: {self.run.root}")
                sys.exit(0)
        config.trainer.default_root_dir = str(self.run.root)
        if self.subcommand != "fit":  # the logger may not be installed where a run is read
            config.trainer.logger = False
            if shards_weights(self.resolved["trainer"]):
                config.trainer.strategy = "auto"  # evaluation holds whole weights on every device
        elif config.trainer.logger in (None, True):
            config.trainer.logger = csv_logger(self.run)
        self.log_id = self.run.log_id()
        name_curve(config.trainer.logger, self.log_id)

    def instantiate_classes(self) -> None:
        """Create model, data and trainer; errors in settings become one line.

        Raises:
            ConfigError: If a value is out of range; jsonargparse hides ours in a ValueError.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, StrictDataclassError) as error:
            if "must be a mapping" in str(error):
                refuse_lists_of_settings(self.resolved)
            raise ConfigError(with_suggestion(str(error), ())) from error

    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[L.Callback]
    ) -> L.Trainer:
        wanted = config.get("enable_progress_bar") is not False
        if wanted:
            terminal = sys.stderr.isatty()
            callbacks = [*callbacks, TerminalProgress() if terminal else LineProgress()]
            config["enable_progress_bar"] = terminal
        if self.subcommand == "fit":
            tracking = Tracking(self.run, self.resolved, upload=self.config.fit.upload)
            callbacks = [*callbacks, self._manifest(), tracking, *self._checkpoints(config)]
        if config.get("strategy") in ("fsdp", "sidrec.ShardedStrategy"):
            config["strategy"] = ShardedStrategy()
        trainer = super()._instantiate_trainer(config, callbacks)
        take_charge_of(trainer)
        return trainer

    def _manifest(self) -> L.Callback:
        text = yaml.safe_dump(self.resolved, sort_keys=False)
        return RunManifest(self.run, text, log_id=self.log_id)

    def _checkpoints(self, config: dict[str, Any]) -> list[L.Callback]:
        if config.get("enable_checkpointing") is False:
            return []
        chosen = BestSettings(**self.resolved["best"])
        monitor = chosen.monitor or getattr(self.model, "monitor", MONITOR)
        last = LastCheckpoint(self.run, every_s=self.config.fit.checkpoint_every_s)
        if monitor is None:
            return [last]
        best = ModelCheckpoint(
            dirpath=self.run.best_checkpoint.parent,
            filename="best",
            monitor=monitor,
            mode=chosen.mode,
            enable_version_counter=False,
        )
        return [best, last]

    def _resolved(self) -> dict[str, Any]:
        """Return the configuration as plain types, without settings of this command only."""
        parser = self._parser(self.subcommand)
        text = parser.dump(self.config[self.subcommand], skip_none=False)
        resolved: dict[str, Any] = yaml.safe_load(text)
        kept = ("seed_everything", "trainer", "model", "data", "best")
        return {key: resolved[key] for key in kept}

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand; restore exit code and Ctrl-C handling, which Lightning changes."""
        self.owns = subcommand == "fit" and self.trainer.is_global_zero
        self.owns = self.owns and not self.trainer.fast_dev_run
        is_new = not self.run.root.exists()
        with locked(self.run) if self.owns else nullcontext():
            try:
                super()._run_subcommand(subcommand)
            except SystemExit:
                if not self.trainer.interrupted:
                    raise
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from None
            except (Exception, Preempted) as error:
                self._leave(error, is_new=is_new)
                raise

    def _leave(self, error: BaseException, *, is_new: bool) -> None:
        """Clean up run directory and launched ranks; raise the error to report."""
        has_launched_ranks = end_launched_ranks(self.trainer)
        self.owns = self.owns and not has_lost_run()
        if self.owns and is_new and not self.run.manifest.exists():  # before the first step
            shutil.rmtree(self.run.root, ignore_errors=True)
        told = explained(error)
        if isinstance(told, Preempted) and self.owns and self.run.state() not in _AT_REST:
            self.run.write_manifest(state="preempted")
        if isinstance(told, Preempted) and not has_launched_ranks:
            leave_after_other_ranks(wait_s=_OTHERS_EXIT_S)
        if isinstance(told, Preempted) and not self.trainer.is_global_zero:
            sys.exit(0)  # launchers end all ranks when one fails: only rank 0 reports, at its end
        if told is not error:
            raise told from error

    def before_fit(self) -> None:
        """Resume from the newest intact checkpoint."""
        chosen = self.config_init["fit"]
        if chosen.ckpt_path is not None:
            checked(Path(chosen.ckpt_path))
            return
        newest = newest_whole_checkpoint(self.run)
        if newest is None and self.trainer.is_global_zero:
            say(f"run directory: {self.run.root} (the same --run_dir resumes)")
        if newest is not None:
            if self.trainer.is_global_zero:
                set_aside_damaged(self.run, newest)
            say(f"resuming from {newest} (step {step_of(newest)})")
            chosen.ckpt_path = str(newest)

    def after_fit(self) -> None:
        """Mark the run as finished, so that later stages may read it."""
        if self.trainer.interrupted:
            return
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            refuse_missing_ids(self.run, self.resolved["trainer"])
            refuse_if_lost()
            self.run.write_manifest(state="finished")
            say(f"finished: {self.run.root}")

    def before_validate(self) -> None:
        """Read the run's own checkpoint."""
        self._use_finished_checkpoint()

    def before_test(self) -> None:
        """Read the run's own checkpoint; print figures here with whole names."""
        self._use_finished_checkpoint()
        self.config_init["test"].verbose = False

    def before_predict(self) -> None:
        """Read the run's own checkpoint.

        Raises:
            ConfigError: If the run is no generator's, since nothing would be written.
        """
        if self.run.stage() != "generator":
            raise ConfigError(
                f"{self.run.root} was made by stage '{self.run.stage()}'; `sidrec predict` writes "
                "the ranked items of a generator: `sidrec test` measures other runs."
            )
        self._use_finished_checkpoint()

    def after_test(self) -> None:
        """Write ``metrics.json`` from logged ``test/…`` figures, if the module wrote none."""
        logged = {
            key.removeprefix("test/"): float(value)
            for key, value in self.trainer.callback_metrics.items()
            if key.startswith("test/")
        }
        if logged and self.trainer.is_global_zero:
            write_json(self.run.metrics, logged)
        if self.trainer.is_global_zero:
            sys.stdout.write(_figures(self.run))

    def _use_finished_checkpoint(self) -> None:
        chosen = self.config_init[self.subcommand]
        if chosen.ckpt_path is None:
            chosen.ckpt_path = str(checked(self.run.finished_checkpoint()))


def _figures(run: RunDirectory) -> str:
    """Return the figures that compare runs, one per line; ``metrics.json`` holds all of them."""
    figures = read_json(run.metrics)
    known = {k: v for k, v in figures.items() if "@" in k and not k.endswith("_cold_start")}
    width = max(map(len, known), default=0)
    lines = [f"{key.ljust(width)}  {value:.4f}" for key, value in known.items()]
    cold = [line] if (line := cold_start_line(figures)) else []
    return "\n".join([*lines, *cold, f"written: {run.metrics}", ""])


def _quieten() -> None:
    """Silence the libraries' hints and loading bars on the terminal; warnings stay."""
    import logging
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers",
        ".*isinstance.treespec, LeafSpec.*",
        "Checkpoint directory .* exists and is not empty",
        "(FSDP.state_dict_type|.*_get_pg_default_device|Multiple backends)",
        ".*when using `ckpt_path`, callbacks used to create the checkpoint",
        ".*`self.log\\(.*sync_dist=True",  # figures over all ranks' answers, equal on all of them
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def main(arguments: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, the first of ``arguments``."""
    _quieten()
    allow_known_classes_only(lightning_classes())
    SidrecCLI(arguments)
