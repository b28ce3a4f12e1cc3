"""Weights sharded over ranks in training (FSDP), and whole where the model decodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from sidrec.errors import ConfigError
from sidrec.runs.checkpoints import remove, replace_folder
from sidrec.runs.lock import refuse_if_lost


class ShardedStrategy(FSDPStrategy):
    """Fully sharded data parallel training, one transformer block at a time.

    Each rank keeps a share of the weights, gradients and optimizer states, and gathers the weights
    of a block when it runs. Precision is autocast's alone, as with DDP. Unlike Lightning's class it
    also runs on CPUs. A checkpoint is a folder into which each rank writes its share. With
    Lightning's single file the optimizer's state was not the same after a resume.
    """

    def __init__(self) -> None:
        super().__init__(state_dict_type="sharded")

    def setup(self, trainer: L.Trainer) -> None:
        """Move the model to its device, shard it block by block, and make the optimizer.

        Lightning would leave the device of a CPU to FSDP, which then refuses it, and would let FSDP
        round buffers and the weights of the prior to 16 bits.
        """
        module = self.lightning_module
        if module is None:
            raise AssertionError("setup before connect")
        module.to(self.root_device)
        for weight in module.parameters():
            weight.full_ndim = weight.ndim  # shards are flat
        self.model = Fsdp(
            module,
            auto_wrap_policy=ModuleWrapPolicy(_block_classes(module)),
            device_id=self.root_device,
            use_orig_params=True,
        )
        super().setup(trainer)

    def validation_step(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (Lightning's)
        """Call the module without FSDP, which needs the same number of calls on each rank."""
        if self.lightning_module is None:
            raise AssertionError("validation before setup")
        return self.lightning_module.validation_step(*arguments, **named)

    def clip_gradient_norm(self, most: float) -> None:
        """Scale the gradients so that their norm over all shards is at most ``most``."""
        if not isinstance(self.model, Fsdp):
            raise TypeError("clipping before setup")
        self.model.clip_grad_norm_(most)

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: str | Path,
        storage_options: Any = None,  # noqa: ANN401
    ) -> None:
        """Write a folder; ``filepath`` holds the old or the new one, never a part."""
        target = Path(filepath)
        part = target.with_name(f".{target.name}.part")
        if self.is_global_zero:
            remove(part)
        super().save_checkpoint(checkpoint, part, storage_options)  # begins with rank 0's path
        if self.is_global_zero:
            refuse_if_lost()
            replace_folder(part, target)


@contextmanager
def whole_weights(module: L.LightningModule) -> Iterator[None]:
    """Gather sharded weights on every rank, and take FSDP's wrappers off, for decoding.

    The ranks may then call the model differently often. Changes of weights inside are lost. Without
    sharding it does nothing.
    """
    root = module.trainer.model
    if not isinstance(root, Fsdp):
        yield
        return
    wrapped = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, Fsdp)
    ]
    with Fsdp.summon_full_params(root, writeback=False):
        for parent, name, child in wrapped:
            setattr(parent, name, child.module)
        try:
            yield
        finally:
            for parent, name, child in wrapped:
                setattr(parent, name, child)


def _block_classes(module: nn.Module) -> set[type[nn.Module]]:
    """Return the classes of the blocks that transformers never splits, such as ``T5Block``."""
    names = {
        name for one in module.modules() for name in getattr(one, "_no_split_modules", None) or ()
    }
    found = {type(one) for one in module.modules() if type(one).__name__ in names}
    if not found:
        raise ConfigError(
            "trainer.strategy: transformers names no blocks of this model to shard it by; use ddp."
        )
    return found
