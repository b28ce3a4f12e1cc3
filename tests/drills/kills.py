"""Kill every stage with SIGKILL at random moments; afterwards the figures must be the same.

python -m tests.drills.kills --folder DIR --kills 50 [--seed 0]

Runs the pipeline undisturbed first, then again and again with kills until there were enough. Each
command is a fork of a process that has imported everything, so that kills hit work and not
imports. Prints a JSON line after each stage: kills tried and survived, by stage, and what went
wrong; the last one goes to benchmarks/results/kills.json.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sidrec.runs.callbacks
from sidrec.cli.main import main
from sidrec.encoder.enmf.module import Enmf
from sidrec.runs.checkpoints import damage_of
from sidrec.runs.directory import RunDirectory
from sidrec.settings import as_plain
from tests.encoder.test_enmf import MODEL as ENMF
from tests.pairs.made import make_corpus, make_encoder
from tests.semantic_ids.learned.test_run import tiny_settings as rq_vae_settings
from tests.settings import grouped
from tests.tiny import encoder_settings, generator_settings, write_yaml

KILLS_PER_STAGE = 3
RUNS = ("enc", "enmf", "rq_vae", "gen")
LENGTH = {"max_steps": 24, "val_check_interval": 6, "check_val_every_n_epoch": None}
REQUESTS = [
    {"id": "a", "task": "search", "query": "red film"},
    {"id": "b", "task": "recommendation", "history": ["i1", "i2"]},
]


@dataclass(frozen=True)
class Stage:
    """A command, and the file whose content must not depend on kills."""

    name: str
    arguments: tuple[str, ...]
    result: str


def stages(folder: Path, given: Path) -> list[Stage]:
    enc, gen, ids = (str(folder / name) for name in ("enc", "gen", "ids"))
    encoder, generator, wanted, enmf, rq_vae = (
        str(given / f"{name}.yaml") for name in ("enc", "gen", "ids", "enmf", "rq_vae")
    )
    synthetic = ("prepare", "synthetic", "--out", str(folder / "made"), "--items", "300")
    requests = ("--input", str(given / "requests.jsonl"), "--output", str(folder / "answers.jsonl"))
    return [
        Stage("prepare", (*synthetic, "--users", "60"), "made/corpus.json"),
        Stage("fit encoder", ("fit", "--config", encoder, "--run_dir", enc), "enc/weights"),
        Stage(
            "fit ENMF",
            ("fit", "--config", enmf, "--run_dir", str(folder / "enmf")),
            "enmf/weights",
        ),
        Stage(
            "fit RQ-VAE",
            ("fit", "--config", rq_vae, "--from", enc, "--run_dir", str(folder / "rq_vae")),
            "rq_vae/weights",
        ),
        Stage(
            "fit generator",
            ("fit", "--config", generator, "--from", enc, "--run_dir", gen),
            "gen/weights",
        ),
        Stage("ids", ("ids", "--config", wanted, "--from", enc, "--out", ids), "ids/codes"),
        Stage("test", ("test", "--from", gen), "gen/metrics.json"),
        Stage("retrieve", ("retrieve", "--from", gen, *requests), "answers.jsonl"),
    ]


def in_a_fork(work: Callable[[], object]) -> str:
    """Do it in a child: this process must use no library that starts threads, or forks hang.

    Returns:
        sha256 of what ``work`` returned, as JSON.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, hashlib.sha256(json.dumps(work()).encode()).hexdigest().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        digest = stream.read()
    os.waitpid(child, 0)
    return digest


def start(arguments: tuple[str, ...], log: Path) -> int:
    """Fork, run the command in the child; return its pid."""
    child = os.fork()
    os.setpgid(child, child)  # in both, so that a kill may come before the child's first step
    if child:
        return child
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv[1:] = arguments
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_to_end(stage: Stage, log: Path) -> tuple[int, float]:
    started = time.monotonic()
    status = os.waitpid(start(stage.arguments, log), 0)[1]
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def result_of(stage: Stage, folder: Path) -> object:
    """Return what a stage is for, to compare."""
    import torch

    if stage.result.endswith("/weights"):
        run = RunDirectory(folder / stage.result.split("/")[0])
        weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
        return {name: value.tolist() for name, value in weights.items()}
    if stage.result == "ids/codes":
        from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle

        return SemanticIdBundle.load(folder / "ids").table.codes.tolist()
    content = (folder / stage.result).read_text()
    if stage.result.endswith("corpus.json"):
        return json.loads(content)["fingerprint"]
    return content


def wrongs_after_a_kill(folder: Path) -> list[str]:
    """Return what a reader would stumble over at this moment."""
    wrong = []
    for name in RUNS:
        run = RunDirectory(folder / name)
        try:
            run.state()
        except Exception as error:
            wrong.append(f"{name}: {error}")
        files = (run.last_checkpoint, run.previous_checkpoint, run.best_checkpoint)
        damage = {file: damage_of(file) for file in files if file.exists()}
        wrong += [f"{file}: {problem}" for file, problem in damage.items() if problem]
    return wrong


def prepare(given: Path) -> None:
    given.mkdir(parents=True)
    corpus = make_corpus(given / "corpus")
    encoder = make_encoder(given / "encoder", corpus, dropout=0.0)
    settings = encoder_settings(given / "corpus", encoder)
    settings["trainer"] |= LENGTH
    write_yaml(given / "enc.yaml", settings)
    quantized = settings["trainer"]["callbacks"][0]["init_args"]
    write_yaml(given / "ids.yaml", {name: quantized[name] for name in ("quantizer", "policy")})
    generator = generator_settings()
    generator["trainer"] |= LENGTH
    write_yaml(given / "gen.yaml", generator)
    rq_vae = rq_vae_settings()
    rq_vae["trainer"]["max_steps"] = LENGTH["max_steps"]
    write_yaml(given / "rq_vae.yaml", rq_vae)
    enmf = {
        "class_path": "sidrec.Enmf",
        "init_args": as_plain(grouped(Enmf, **(ENMF | {"warmup_fraction": 0.2}))),
    }
    users = {"corpus": str(given / "corpus"), "batch_size": 9, "seed": 1}
    data = {
        "class_path": "sidrec.UserDataModule",
        "init_args": users,
    }
    whole = settings | {"model": enmf, "data": data}
    whole["trainer"] = settings["trainer"] | {"max_epochs": -1}
    write_yaml(given / "enmf.yaml", whole)
    (given / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in REQUESTS))


def drill(folder: Path, kills: int, seed: int, until: float) -> dict[str, object]:
    draw = random.Random(seed)  # noqa: S311
    given, log = folder / "given", folder / "log"
    in_a_fork(lambda: prepare(given))
    expected, seconds = {}, {}
    for stage in stages(folder / "calm", given):
        code, seconds[stage.name] = run_to_end(stage, log)
        assert code == 0, f"{stage.name} does not even run undisturbed; see {log}"
        expected[stage.name] = in_a_fork(partial(result_of, stage, folder / "calm"))
    tried, survived, wrong, rounds, facts = Counter(), Counter(), [], 0, {}
    while tried.total() < kills and time.time() < until:
        rounds += 1
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        for stage in stages(work, given):
            hits = 0
            for _ in range(KILLS_PER_STAGE):
                child = start(stage.arguments, log)
                time.sleep(draw.uniform(0.02, 0.95) * seconds[stage.name])
                if os.waitpid(child, os.WNOHANG)[0]:
                    continue  # it was faster
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                hits += 1
                wrong += wrongs_after_a_kill(work)
            tried[stage.name] += hits
            code, _ = run_to_end(stage, log)
            found = in_a_fork(partial(result_of, stage, work))
            if code == 0 and found == expected[stage.name] != "":
                survived[stage.name] += hits
            else:
                wrong.append(f"round {rounds}, {stage.name}: code {code} or another result")
            facts = {"rounds": rounds, "kills": tried.total(), "survived": survived.total()}
            facts |= {"by_stage": dict(tried), "wrong": wrong}
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
            if wrong:
                break
    return facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kills.json"))
    asked = parser.parse_args()
    sidrec.runs.callbacks._SAVE_EVERY_S = 0.2
    end = time.time() + 60 * asked.minutes
    found = {"seed": asked.seed} | drill(asked.folder, asked.kills, asked.seed, end)
    asked.out.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(0 if found["kills"] == found["survived"] and not found["wrong"] else 1)
