"""A trained bi-encoder from its checkpoint file alone, by Lightning's own call."""

import pytest
import torch
import yaml

import sidrec
from sidrec.encoder.encoder_settings import LossSettings
from sidrec.errors import RunError
from tests.encoder import test_module as bi_encoder


def saved(trainer, path):
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    yaml.safe_dump(dict(stored))  # plain types only
    return path


def test_bi_encoder_loads_and_predicts_without_a_run(corpus, encoder, tmp_path):
    trainer, model = bi_encoder.train(str(corpus.folder), encoder, max_steps=1)
    file = saved(trainer, tmp_path / "model.ckpt")
    loaded = sidrec.BiEncoder.load_from_checkpoint(file)
    assert bi_encoder.equal(loaded, model)
    assert loaded.loss_settings == model.loss_settings
    changed = sidrec.BiEncoder.load_from_checkpoint(file, loss=LossSettings(temperature=0.2))
    assert changed.loss_settings.temperature == 0.2
    embeddings = torch.cat(trainer.predict(loaded, datamodule=trainer.datamodule))
    assert embeddings.shape == (corpus.num_items, loaded.tower.dim)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(corpus.num_items))
    with pytest.raises(RunError, match="settings do not fit SasRec"):
        sidrec.SasRec.load_from_checkpoint(file)
