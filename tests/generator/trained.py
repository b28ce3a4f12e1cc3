"""A small joint generator trained by Lightning, for the tests of its loop."""

from dataclasses import fields

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sidrec.generator.model.generator_settings import T5Settings, T5Shape
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.generator.training.module import JointGenerator
from tests.generator.made import T5
from tests.generator.training.test_datamodule import SETTINGS
from tests.settings import made


def shape_of(t5, **changes):
    """T5 from scratch with arguments of ``T5Config``."""
    known = {field.name for field in fields(T5Shape)}
    flat = t5 | changes
    named = {name: value for name, value in flat.items() if name in known}
    other = {name: value for name, value in flat.items() if name not in known}
    return T5Settings(shape=T5Shape(**named, other=other), text_vocabulary_size=120)


MODEL = {
    "t5": shape_of(T5, dropout_rate=0.1),
    "text_input": "tokens",
    "history_input": "items",
    "search_prompt": "search: {query}",
    "recommendation_prompt": "recommend: {history}",
    "max_query_tokens": 8,
    "max_history_items": 5,
    "query_token_dropout": 0.1,
    "prior": None,
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "decay": "cosine",
    "label_smoothing": 0.0,
    "search_weight": 1.0,
    "recommendation_weight": 0.5,
    "num_beams": 10,
    "top_k": 10,
}
DATA = SETTINGS | {"batch_size": 48, "valid_requests": 10, "history_dropout": 0.2}


PLAIN = {
    "t5": shape_of(T5),
    "query_token_dropout": 0.0,
    "learning_rate": 1e-3,
}  # dropout differs by rank


class Stop(L.Callback):
    """Break off like a crash, before the batch that follows so many steps."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.after:
            raise KeyError("power cut")


def make(corpus, semantic_ids, *, model=(), data=()):
    torch.manual_seed(1)
    return (
        made(JointGenerator, **{"semantic_ids": semantic_ids, **MODEL, **dict(model)}),
        made(GeneratorDataModule, **{"corpus": corpus, **DATA, **dict(data)}),
    )


def trainer_for(folder, **settings):
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(folder),
            "max_epochs": 2,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


def train(corpus, semantic_ids, folder, *, every=None, stop=None, resume=None, **settings):
    """Train; return trainer and model. ``every``: checkpoint each so many steps."""
    model, data = make(
        corpus, semantic_ids, model=settings.pop("model", ()), data=settings.pop("data", ())
    )
    callbacks = [Stop(stop)] if stop else []
    if every:
        saved = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=every)
        callbacks = [saved, *callbacks]
    trainer = trainer_for(folder, callbacks=callbacks, enable_checkpointing=bool(every), **settings)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except KeyError:
        if not stop:
            raise
    return trainer, model


def equal(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
