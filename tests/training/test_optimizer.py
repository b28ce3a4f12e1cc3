from types import SimpleNamespace

import lightning as L
import pytest
import torch

from sidrec.training.optimizer import (
    OptimizerSettings,
    configure_adamw,
    learning_rate_factor,
    total_steps_of,
)


class OneWeight(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return 1e6 * self.linear(batch[0]).square().mean()  # a gradient worth clipping

    def configure_optimizers(self):
        constant = OptimizerSettings(
            learning_rate=0.1, weight_decay=0.0, warmup_fraction=0.0, decay="constant"
        )
        return configure_adamw(self.parameters(), constant, total_steps=2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_can_be_clipped(tmp_path, precision):
    module, rows = OneWeight(), torch.utils.data.TensorDataset(torch.ones(8, 2))
    before = module.linear.weight.detach().clone()
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        precision=precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4))
    assert not torch.equal(module.linear.weight, before)


def test_a_module_gets_the_schedule_of_its_whole_training():
    module = OneWeight()
    module.trainer = SimpleNamespace(  # 3 epochs of 4 batches, two of them a step
        max_steps=-1, max_epochs=3, limit_train_batches=None, accumulate_grad_batches=2
    )
    settings = OptimizerSettings(learning_rate=0.6, weight_decay=0.1, warmup_fraction=0.0)
    steps = total_steps_of(module.trainer, batches_per_epoch=4)
    found = configure_adamw(module.parameters(), settings, total_steps=steps)
    weights, biases = found["optimizer"].param_groups
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.1, 0.0)
    rates = []
    for _ in range(7):
        rates += found["lr_scheduler"]["scheduler"].get_last_lr()[:1]
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_inverse_square_root_by_hand():
    """A warm-up of 4 of 100 steps, then 1 / sqrt(step), whatever the length of the training."""
    given = {"total_steps": 100, "warmup_fraction": 0.04, "decay": "inverse_sqrt"}
    factors = [learning_rate_factor(step, **given) for step in (0, 3, 4, 16, 64, 100)]
    assert factors == pytest.approx([0.25, 1, 1, 0.5, 0.25, 0.2])
