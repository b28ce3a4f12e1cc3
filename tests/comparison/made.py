"""A tiny comparison: every kind of stage, seconds to run in this process."""

from pathlib import Path

import yaml

from sidrec.cli.compare import main
from sidrec.comparison.plan.stages import Stage
from sidrec.files import read_json
from tests.pairs.made import make_corpus, make_encoder
from tests.tiny import OPTIMIZER, TRAINER, encoder_settings, generator_settings, sidrec, write_yaml

IDS = {
    "quantizer": {
        "class_path": "sidrec.RqKMeans",
        "init_args": {
            "codebook_sizes": [8, 8],
            "num_iterations": 5,
            "tolerance": 1e-4,
            "num_redo": 1,
            "init": "progressive",
            "sample_rows_per_code": 256,
            "seed": 1,
            "num_refit_rounds": 0,
            "train_rows_per_code": None,
        },
    },
    "policy": {
        "class_path": "sidrec.ExtraLevel",
        "init_args": {"num_codes": 60},
    },
}
KEEP = IDS | {"policy": {"class_path": "sidrec.KeepCollisions"}}
REPORT = {
    "reference": "multitask",
    "family_error": 0.05,
    "interval": 0.95,
    "num_bootstrap": 200,
    "seed": 0,
    "requests_per_task": 2,
}


def enmf_settings(corpus: Path) -> dict:
    return {
        "seed_everything": 1,
        "model": {
            "class_path": "sidrec.Enmf",
            "init_args": {
                "dim": 12,
                "dropout": 0.1,
                "negative_weight": 0.2,
                "optimizer": OPTIMIZER | {"learning_rate": 0.05},
            },
        },
        "data": {
            "class_path": "sidrec.UserDataModule",
            "init_args": {"corpus": str(corpus), "batch_size": 10, "seed": 1},
        },
        "trainer": TRAINER
        | {"callbacks": encoder_settings(corpus, corpus)["trainer"]["callbacks"]},
    }


def sasrec_settings(corpus: Path) -> dict:
    return {
        "seed_everything": 1,
        "model": {
            "class_path": "sidrec.SasRec",
            "init_args": {
                "dim": 8,
                "num_blocks": 1,
                "num_heads": 2,
                "max_history_items": 8,
                "dropout": 0.1,
                "optimizer": OPTIMIZER | {"learning_rate": 0.01},
            },
        },
        "data": {
            "class_path": "sidrec.WindowDataModule",
            "init_args": {
                "corpus": str(corpus),
                "batch_size": 16,
                "max_history_items": 8,
                "seed": 1,
            },
        },
        "trainer": dict(TRAINER),
    }


def make_comparison(folder: Path, **changed: object) -> Path:
    """Write corpus, encoder and configurations; return the comparison's YAML."""
    corpus = make_corpus(folder / "corpus")
    encoder = make_encoder(folder / "encoder", corpus, dropout=0.0)
    files = {
        name: str(write_yaml(folder / f"{name}.yaml", settings))
        for name, settings in {
            "encoder": encoder_settings(folder / "corpus", encoder),
            "enmf": enmf_settings(folder / "corpus"),
            "generator": generator_settings(),
            "sasrec": sasrec_settings(folder / "corpus"),
            "ids": IDS,
            "keep": KEEP,
        }.items()
    }
    one_task = {"data.tasks.item_item_share": 0.0}
    settings = {
        "corpus": str(folder / "corpus"),
        "out": str(folder / "out"),
        "seeds": [1, 2],
        "report": REPORT,
        "embeddings": {
            "multitask": {"configs": [files["encoder"]]},
            "search": {"configs": [files["encoder"]], "set": one_task},
            "content": {
                "configs": [files["encoder"]],
                "set": {"trainer.max_steps": 0},
                "seeded": False,
            },
            "enmf": {"configs": [files["enmf"]]},
        },
        "ids": {"default": {"configs": [files["ids"]]}, "keep": {"configs": [files["keep"]]}},
        "generators": {"joint": {"configs": [files["generator"]]}},
        "strategies": {
            "multitask": _strategy("multitask"),
            "multitask-kept": _strategy("multitask", ids="keep"),
            "content": _strategy("content"),
            "rec": _strategy("enmf", reader="multitask"),
            "fused_svd": _strategy(["search", "enmf"], fusion="svd_sum", dim=6, reader="multitask"),
        },
        "baselines": {
            "popularity": {"system": "popularity"},
            "BM25": {"system": "bm25"},
            "dense-multitask": {"system": "dense", "embeddings": "multitask"},
            "ENMF": {"system": "enmf", "embeddings": "enmf"},
            "SASRec": {"configs": [files["sasrec"]]},
        },
    }
    return write_yaml(folder / "tiny.yaml", settings | changed)


def _strategy(embeddings: str | list[str], *, ids: str = "default", **more: object) -> dict:
    return {"embeddings": embeddings, "ids": ids, "generator": "joint", **more}


def launch_in_process(
    stage: Stage, arguments: list[str], log: Path, *, num_threads: int | None
) -> int:
    """Run a stage here: seconds of imports are saved; what it prints goes where pytest looks."""
    del stage, num_threads
    log.write_text(" ".join(arguments))
    return sidrec(*arguments)


def edit(path: Path, **changed: object) -> None:
    """Change keys of a YAML file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))


def compare(config, *more):
    """Run ``sidrec compare`` in this process and return ``report.json``."""
    main(["--config", str(config), *more])
    return read_json(config.parent / "out" / "report.json")
