import lightning as L
import pytest
import torch

from sidrec.encoder.optimiser import adamw_with_schedule


class OneWeight(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return 1e6 * self.linear(batch[0]).square().mean()  # a gradient worth clipping

    def configure_optimizers(self):
        return adamw_with_schedule(
            self.parameters(),
            learning_rate=0.1,
            weight_decay=0.0,
            total_steps=2,
            warmup_fraction=0.0,
            decay="constant",
        )


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
