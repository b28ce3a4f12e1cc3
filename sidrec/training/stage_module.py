"""Base of the Lightning modules that ``sidrec fit`` trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import lightning as L
import torch
from jaxtyping import Float, Int
from jsonargparse import ArgumentParser
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from sidrec.errors import ConfigError, RunError
from sidrec.runs.checkpoints import load_file
from sidrec.settings import as_plain
from sidrec.training.counter_rng import key_of
from sidrec.training.nan_guard import LossGuard
from sidrec.training.optimizer import OptimizerSettings, configure_adamw, total_steps_of
from sidrec.training.sharding import ShardedStrategy

Data = TypeVar("Data", bound=L.LightningDataModule)
Module = TypeVar("Module", bound="StageModule[Any]")


class StageModule(L.LightningModule, Generic[Data]):
    """Base module: optimizer, random numbers, bad losses, and loading from a checkpoint alone.

    The random numbers of a training step depend only on seed, epoch, step and rank, so a resumed
    run repeats them. Settings are stored as plain types, so checkpoints load with ``weights_only``.

    Args:
        optimizer: Settings of AdamW, its schedule, and the bad losses that it may skip.
        settings: All constructor arguments of the module by name, for checkpoints.

    Attributes:
        stage: Name of the stage in the run directory's manifest.
        data_class: Data module that the module needs (for its catalogue and requests).
        draws: Purpose of a step's random numbers, part of their seed.
    """

    stage: ClassVar[str]
    data_class: ClassVar[type[L.LightningDataModule]]
    draws: ClassVar[str] = "dropout"

    def __init__(self, optimizer: OptimizerSettings, **settings: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.optimizer_settings = optimizer
        self.guard = LossGuard(optimizer.skip_bad_losses)
        self.save_hyperparameters(as_plain({"optimizer": optimizer, **settings}))

    @classmethod
    def from_checkpoint(
        cls: type[Module],
        checkpoint: dict[str, Any],
        **changes: Any,  # noqa: ANN401
    ) -> Module:
        """Return a module in evaluation mode, on the CPU, from the content of its checkpoint.

        Args:
            checkpoint: Content of a checkpoint file.
            changes: Constructor arguments that replace the stored ones.

        Raises:
            RunError: If settings or weights do not fit this class.
        """
        stored = {k: v for k, v in checkpoint["hyper_parameters"].items() if not k.startswith("_")}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, "module")
        try:
            arguments = parser.parse_object({"module": stored | as_plain(changes)})
        except Exception as error:  # argparse's, jsonargparse's, and what a type raises
            raise RunError(
                f"The checkpoint's settings do not fit {cls.__name__}; it was written by another "
                f"version of sidrec, or by another class: train again ({error})."
            ) from None
        module: Module = parser.instantiate(arguments).module
        module.on_load_checkpoint(checkpoint)
        try:
            module.load_state_dict(checkpoint["state_dict"])
        except RuntimeError:  # torch lists every tensor
            raise RunError(
                f"The checkpoint's weights do not fit the {cls.__name__} that its settings "
                "describe; it was written by another version of sidrec: train again."
            ) from None
        module.eval()
        return module

    @classmethod
    def load_from_checkpoint(
        cls: type[Module],
        checkpoint_path: str | Path,
        map_location: Any = "cpu",  # noqa: ANN401 (torch's)
        **changes: Any,  # noqa: ANN401
    ) -> Module:
        """Return a module in evaluation mode from a checkpoint file, without a Trainer.

        Args:
            checkpoint_path: File from ``ModelCheckpoint`` or a run directory.
            map_location: Device of the weights.
            changes: Constructor arguments that replace the stored ones.
        """
        checkpoint = load_file(Path(checkpoint_path), map_location="cpu")
        module = cls.from_checkpoint(checkpoint, **changes)
        module.to(torch.device(map_location))
        return module

    def setup(self, stage: str) -> None:
        """Refuse weights of 16 bits, and those that Lightning's own FSDP would shard.

        Raises:
            ConfigError: If the Trainer's precision keeps the weights themselves in 16 bits, or its
                strategy is ``fsdp``.
        """
        del stage
        precision = str(self.trainer.precision)
        if precision in ("16-true", "bf16-true"):
            raise ConfigError(
                f"trainer.precision {precision} keeps the weights in 16 bits, which lose small "
                "updates; use bf16-mixed, or 32-true."
            )
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy) and not isinstance(strategy, ShardedStrategy):
            raise ConfigError(
                "Trainer(strategy='fsdp') does not store and decode sharded weights as sidrec "
                "does; give strategy=sidrec.ShardedStrategy()."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Seed the random numbers of this step."""
        del batch
        seed, rank = getattr(self._any_data(), "seed", 0), self.trainer.global_rank
        torch.manual_seed(key_of(seed, self.current_epoch, batch_idx, rank, self.draws))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a NaN or infinite loss, or end the run."""
        del optimizer
        self.guard.check(self.parameters())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients; the norm is that over all shards."""
        strategy, by_norm = self.trainer.strategy, (gradient_clip_algorithm or "norm") == "norm"
        if isinstance(strategy, ShardedStrategy) and gradient_clip_val and by_norm:
            strategy.clip_gradient_norm(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over all trainable weights, and its schedule by optimizer step."""
        batches = getattr(self._any_data(), "steps_per_epoch", None)
        if batches is not None:
            steps = total_steps_of(self.trainer, batches_per_epoch=batches)
        else:
            estimated = self.trainer.estimated_stepping_batches
            steps = int(estimated) if estimated != float("inf") else None
        return configure_adamw(
            self.parameters(),
            self.optimizer_settings,
            total_steps=steps,
            groups=self._weight_groups(),
        )

    def _weight_groups(self) -> list[dict[str, Any]]:
        """Return the weights with optimizer settings of their own, as AdamW takes them."""
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the number of skipped losses."""
        checkpoint["num_skipped_losses"] = self.guard.num_skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number of skipped losses."""
        self.guard.num_skipped = checkpoint.get("num_skipped_losses", 0)

    def _mean_loss(
        self,
        loss: Tensor,
        batch_idx: int,
        *,
        task: str = "",
        items: Int[Tensor, " row"] | None = None,
        item_ids: Callable[[], list[str]] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean over ranks of a loss; the loss guard checks it before the next step."""
        where = f"epoch {self.current_epoch}, step {batch_idx}" + (f" ({task})" if task else "")
        return self.guard.mean(loss.detach(), where=where, items=items, item_ids=item_ids)

    def _any_data(self) -> Any:  # noqa: ANN401
        return getattr(self.trainer, "datamodule", None)

    def _data(self) -> Data:
        """Return the Trainer's data module, after a check of its class."""
        data = self._any_data()
        if not isinstance(data, self.data_class):
            raise ConfigError(
                f"{type(self).__name__} needs the data module sidrec.{self.data_class.__name__} "
                f"here; give it as data.class_path, got {type(data).__name__}."
            )
        return cast(Data, data)
