"""At the end of a quantizer's training: its Semantic IDs, as the encoder's callback makes them."""

from pathlib import Path

import lightning as L

from sidrec.console import say
from sidrec.distributed import on_rank_zero
from sidrec.run_directory import RunDirectory
from sidrec.semantic_ids.collisions import CollisionPolicy
from sidrec.semantic_ids.learned.module import QuantizerModule
from sidrec.semantic_ids.learned.quantizer import Trained
from sidrec.semantic_ids.maker import make_semantic_ids
from sidrec.semantic_ids.report import quality_table


class LearnedIdsCallback(L.Callback):
    """Write ``semantic_ids/`` into the run directory of a quantizer when training has finished.

    Works on all ranks. The bundle has the vectors of the one that the quantizer was trained on.

    Args:
        policy: What happens where items share codes.
    """

    def __init__(self, policy: CollisionPolicy) -> None:
        self.policy = policy

    def on_fit_end(self, trainer: L.Trainer, pl_module: QuantizerModule) -> None:
        """Encode, resolve, write, log."""
        run = RunDirectory(Path(trainer.default_root_dir))
        if trainer.fast_dev_run or on_rank_zero(lambda: run.state() == "preempted"):
            return
        before = pl_module.bundle
        data = trainer.datamodule
        training = {"num_steps": trainer.global_step, "seed": data.seed}
        training |= {"batch_size": data.batch_size, "world_size": trainer.world_size}
        bundle = make_semantic_ids(
            before.embeddings,
            quantizer=Trained(pl_module.settings() | training, pl_module.fitted()),
            policy=self.policy,
            item_ids=before.item_ids,
            titles=before.titles,
            source=before.source,
            device=pl_module.device,
        )
        on_rank_zero(lambda: bundle.save(run.semantic_ids))
        for logger in trainer.loggers:
            logger.log_metrics(bundle.quality, step=trainer.global_step)
        if trainer.is_global_zero:
            say(quality_table(bundle))
