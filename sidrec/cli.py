"""The composition root of training: LightningCLI with run directories in place of checkpoint paths."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from sidrec.console import say
from sidrec.errors import ConfigError
from sidrec.files import atomic_file
from sidrec.run_callback import LastCheckpoint, LineProgress, RunManifest
from sidrec.run_directory import RunDirectory
from sidrec.run_source import arguments_from_run, refuse_contradictions, with_suggestion

CHECKPOINT_EVERY_S = 60.0
MONITOR = "val/recall_harmonic_mean"


class SidrecParser(LightningArgumentParser):
    """LightningCLI's parser whose error on a misspelt key names the nearest valid one."""

    def error(self, message: str, *unused: Any) -> NoReturn:
        """Print one line and exit with code 2."""
        del unused
        sys.stderr.write(f"sidrec: {with_suggestion(message, self.known_keys())}\n")
        sys.exit(ConfigError.exit_code)

    def known_keys(self) -> list[str]:
        """Return the names of all options, nested ones with dots."""
        return [action.dest for action in self._actions]


class SidrecCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict`` on a run directory."""

    run: RunDirectory

    def __init__(self, args: list[str]) -> None:
        self.only = args[0]
        super().__init__(
            args=args,
            save_config_callback=None,
            seed_everything_default=1234,
            auto_configure_optimizers=False,
            parser_class=SidrecParser,
            trainer_defaults={"use_distributed_sampler": False},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one subcommand asked for: parsers of the others would cost seconds."""
        return {self.only: super().subcommands()[self.only]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where the run lives."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Folder of this run; resumes if begun."
        )

    def before_instantiate_classes(self) -> None:
        """Point trainer, checkpoints and logs at the run directory."""
        config = self.config[self.subcommand]
        if config.run_dir is None:
            raise ConfigError(
                f"`sidrec {self.subcommand}` needs --run_dir FOLDER or --from FOLDER."
            )
        self.run = RunDirectory(Path(config.run_dir))
        config.trainer.default_root_dir = str(self.run.root)
        if config.trainer.logger in (None, True):
            config.trainer.logger = False
            self.default_logger = True
        else:
            self.default_logger = False
        if self.subcommand == "fit":
            refuse_contradictions(self.run, self._resolved())

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add checkpoints, progress and the run's manifest to what the configuration lists."""
        if self.default_logger and self.subcommand == "fit":
            kwargs["logger"] = CSVLogger(self.run.root, name="logs", version="")
        trainer = super().instantiate_trainer(**kwargs)
        return trainer

    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[L.Callback]
    ) -> L.Trainer:
        wanted = config.get("enable_progress_bar") is not False
        if wanted:
            terminal = sys.stderr.isatty()
            callbacks = [*callbacks, RichProgressBar() if terminal else LineProgress()]
            config["enable_progress_bar"] = terminal
        if self.subcommand == "fit":
            callbacks = [*callbacks, RunManifest(self.run), *self._checkpoints(config)]
        return super()._instantiate_trainer(config, callbacks)

    def _checkpoints(self, config: dict[str, Any]) -> list[L.Callback]:
        if config.get("enable_checkpointing") is False:
            return []
        best = ModelCheckpoint(
            dirpath=self.run.best_checkpoint.parent,
            filename="best",
            monitor=MONITOR,
            mode="max",
            enable_version_counter=False,
        )
        return [best, LastCheckpoint(self.run, every_s=CHECKPOINT_EVERY_S)]

    def _resolved(self) -> dict[str, Any]:
        """Return the configuration as plain types, without what only concerns this command."""
        parser = self._parser(self.subcommand)
        text = parser.dump(self.config[self.subcommand], skip_none=False)
        resolved: dict[str, Any] = yaml.safe_load(text)
        return {key: resolved[key] for key in ("seed_everything", "trainer", "model", "data")}

    def before_fit(self) -> None:
        """Write the resolved configuration; resume from the newest checkpoint."""
        if os.environ.get("LOCAL_RANK", "0") == "0" and not self.trainer.fast_dev_run:
            with atomic_file(self.run.config) as temporary:
                temporary.write_text(yaml.safe_dump(self._resolved(), sort_keys=False))
        chosen = self.config_init["fit"]
        if chosen.ckpt_path is None and self.run.last_checkpoint.exists():
            say(f"resuming from {self.run.last_checkpoint}")
            chosen.ckpt_path = str(self.run.last_checkpoint)

    def after_fit(self) -> None:
        """Mark the run as finished, so that later stages may read it."""
        if self.trainer.interrupted:
            return
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            self.run.write_manifest(state="finished")
            say(f"finished: {self.run.root}")

    def before_validate(self) -> None:
        """Read the run's own checkpoint."""
        self._use_finished_checkpoint()

    def before_test(self) -> None:
        """Read the run's own checkpoint."""
        self._use_finished_checkpoint()

    def before_predict(self) -> None:
        """Read the run's own checkpoint."""
        self._use_finished_checkpoint()

    def _use_finished_checkpoint(self) -> None:
        chosen = self.config_init[self.subcommand]
        if chosen.ckpt_path is None:
            chosen.ckpt_path = str(self.run.finished_checkpoint())


def _quieten() -> None:
    """Keep the libraries' advertising and loading bars off the terminal; warnings stay."""
    import logging
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (".*does not have many workers", ".*isinstance.treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message=text)


def main(arguments: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, the first of ``arguments``."""
    _quieten()
    command, rest = arguments[0], arguments[1:]
    sys.argv[1:] = []  # LightningCLI reads what it is given, and warns about both
    SidrecCLI([command, *arguments_from_run(command, rest)])
