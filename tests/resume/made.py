"""Models and data of the four stages that train, with dropout and draws, seven steps an epoch."""

from dataclasses import replace

from sidrec.encoder.enmf.datamodule import UserDataModule
from sidrec.encoder.enmf.module import Enmf
from sidrec.encoder.module import BiEncoder
from sidrec.generator.scorers.prior_settings import PriorSettings
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.generator.training.module import JointGenerator
from sidrec.pairs.datamodule import PairDataModule
from sidrec.semantic_ids.learned.datamodule import VectorDataModule
from sidrec.semantic_ids.learned.module import QuantizerModule
from tests.encoder import test_enmf as enmf
from tests.encoder import test_module as bi_encoder
from tests.generator import trained as generator
from tests.semantic_ids.learned import test_module as rq_vae
from tests.settings import made as build

SCHEDULES = {  # the values that a run with and one without a warm-up schedule has
    True: {"warmup_fraction": 0.4, "decay": "cosine"},
    False: {"warmup_fraction": 0.0, "decay": "constant"},
}


def made(stage, tiny, *, num_ranks, num_workers, warmup):
    """Return module and data of a stage; the global batch is the same for any number of ranks."""
    chosen = {
        "bi-encoder": _bi_encoder,
        "ENMF": _enmf,
        "RQ-VAE": _rq_vae,
        "generator": _generator,
    }[stage]
    workers = {} if stage == "RQ-VAE" else {"num_workers": num_workers}
    return chosen(tiny, SCHEDULES[warmup], num_ranks, workers)


def _bi_encoder(tiny, schedule, num_ranks, workers):
    encoder = str(tiny.encoder)
    module = build(BiEncoder, encoder=encoder, **(bi_encoder.MODEL | schedule))
    flat = bi_encoder.DATA | {"batch_size": 24 // num_ranks} | workers
    return module, build(PairDataModule, corpus=str(tiny.corpus), encoder=encoder, **flat)


def _enmf(tiny, schedule, num_ranks, workers):
    data = UserDataModule(str(tiny.corpus), batch_size=6 // num_ranks, seed=2, **workers)
    return build(Enmf, **(enmf.MODEL | schedule)), data


def _rq_vae(tiny, schedule, num_ranks, workers):
    semantic_ids = str(tiny.encoder_run / "semantic_ids")
    method = replace(rq_vae.METHOD)
    module = build(
        QuantizerModule, method=method, semantic_ids=semantic_ids, **(rq_vae.MODEL | schedule)
    )
    sizes = {"batch_size": 8 // num_ranks, "pairs_per_batch": 16 // num_ranks}
    return module, build(
        VectorDataModule, **(rq_vae.DATA | sizes), corpus=str(tiny.corpus), **workers
    )


def _generator(tiny, schedule, num_ranks, workers):
    settings = generator.MODEL | schedule
    settings |= {"text_input": "encoder_states", "prior": PriorSettings()}
    settings |= {"encoder_run": str(tiny.encoder_run)}
    module = build(JointGenerator, semantic_ids=str(tiny.encoder_run / "semantic_ids"), **settings)
    sizes = {"batch_size": 96 // num_ranks, "valid_requests": 4}
    settings = generator.DATA | sizes | workers
    return module, build(GeneratorDataModule, corpus=str(tiny.corpus), **settings)
