"""Accumulated batches do not see each other: their pairs are no negatives of one another."""

import lightning as L
import torch

from sidrec.encoder.encoder_settings import LossSettings, TowerSettings
from sidrec.encoder.loss import contrastive_loss
from sidrec.encoder.module import BiEncoder
from sidrec.training.numbered_batches import BatchNumber
from tests.encoder.test_module import MODEL, train

EXACT = {"dropout": 0.0, "length_groups": 1, "logq_correction": ()}
QUERIES = {"item_item_share": 0.0}  # so that two batches of 12 hold the pairs of one of 24


class Gradient(L.Callback):
    """Keep the gradient of the only step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = torch.cat([weight.grad.flatten() for weight in pl_module.parameters()])


def gradient(corpus, encoder, *, batch_size, model=(), **settings):
    """Return the gradient of the first step, and where its batches came from."""
    kept = Gradient()
    trainer, _ = train(
        str(corpus.folder),
        encoder,
        model=EXACT | dict(model),
        data=QUERIES | {"batch_size": batch_size},
        more_callbacks=[kept],
        max_steps=1,
        **settings,
    )
    return kept.found, trainer.datamodule


def by_hand(encoder, batches):
    """Return the gradient of the mean loss of batches that do not see each other."""
    module = BiEncoder(
        tower=TowerSettings(encoder=encoder, dropout=0.0, length_groups=1),
        loss=LossSettings(temperature=MODEL["temperature"], logq_correction=()),
    )
    module.configure_model()
    for batch in batches:
        loss = contrastive_loss(
            module.tower(batch.left),
            module.tower(batch.right),
            temperature=MODEL["temperature"],
            right_item=batch.right_item,
            known_positives=batch.known_positives,
            right_log_frequency=None,
            symmetric=False,
        )
        (loss / len(batches)).backward()
    return torch.cat([weight.grad.flatten() for weight in module.parameters()])


def test_accumulation_does_not_widen_the_negatives_and_chunks_do(corpus, encoder):
    whole, _ = gradient(corpus, encoder, batch_size=24)
    accumulated, data = gradient(corpus, encoder, batch_size=12, accumulate_grad_batches=2)
    halves = [data.train_dataloader().dataset[BatchNumber(0, step)] for step in range(2)]
    apart = by_hand(encoder, halves)
    torch.testing.assert_close(accumulated, apart, atol=1e-5, rtol=1e-4)
    assert (accumulated - whole).norm() > 0.05 * whole.norm()
    chunked, _ = gradient(corpus, encoder, batch_size=24, model={"grad_cache_chunk": 12})
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)
