"""A user's own data module that yields ``PairBatch`` trains the bi-encoder."""

import lightning as L
import torch
from torch.utils.data import DataLoader

import sidrec
from sidrec.encoder.encoder_settings import TowerSettings
from sidrec.types import PairBatch


class OwnPairs(L.LightningDataModule):
    def __init__(self, tokenize):
        super().__init__()
        self.tokenize = tokenize

    def train_dataloader(self):
        left = self.tokenize(["a heist in paris", "rain by the sea"], max_tokens=8, kind="item")
        right = self.tokenize(["thief film", "slow drama"], max_tokens=8, kind="item")
        items = torch.tensor([0, 1])
        batch = PairBatch("search", left, right, items, items[:, None], torch.zeros(2))
        return DataLoader([batch] * 4, batch_size=None)

    def val_dataloader(self):
        return self.train_dataloader()


def test_pairs_of_another_data_module_train_and_validate(encoder, tmp_path):
    torch.manual_seed(0)
    model = sidrec.BiEncoder(tower=TowerSettings(encoder=encoder, dropout=0.0))
    model.configure_model()
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=OwnPairs(model.tower.tokenize))
    assert trainer.global_step == 8
    assert trainer.callback_metrics["val/search/loss"].isfinite()
    pairs = zip(before, model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
