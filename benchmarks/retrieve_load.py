"""Requests per second and memory of `sidrec retrieve` on a mixed load with bad lines.

    python benchmarks/retrieve_load.py --out benchmarks/results/retrieve_load.json

Makes a synthetic catalogue, trains both stages for a few steps with tiny models (speed does not
depend on how well they learned), then answers the same kind of requests, first few, then many, each
in a process of its own: half searches, half recommendations, 1 % of the lines broken. Memory is the
peak of the whole process. The run in the middle is also killed half way and gone on with: the bytes
must be those of the undisturbed run. Run it from the repository's root.
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sidrec.corpus.store import Corpus
from sidrec.files import write_json
from tests.pairs.made import make_encoder
from tests.tiny import encoder_settings, generator_settings, write_yaml

BAD_SHARE = 0.01
BAD = ['{"id": "bad", "task": ', '{"id": "bad", "task": "rank"}', '{"id": 1}', "[]"]


def sidrec(*words: object) -> None:
    """Run a command to its end."""
    command = [sys.executable, "-m", "sidrec", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def trained(folder: Path, num_items: int) -> Path:
    """Return a finished generator run on a synthetic catalogue."""
    sizes = ("--items", num_items, "--users", num_items // 5, "--interactions", num_items * 10)
    sidrec("prepare", "synthetic", "--out", folder / "corpus", *sizes)
    encoder = make_encoder(folder / "encoder", Corpus.load(folder / "corpus"), dropout=0.0)
    first = encoder_settings(folder / "corpus", encoder)
    made = first["trainer"]["callbacks"][0]["init_args"]
    made["quantizer"]["init_args"]["codebook_sizes"] = [256, 256]
    made["policy"]["init_args"]["num_codes"] = 256
    second = generator_settings()
    second["model"]["init_args"]["search"] = {"num_beams": 30, "top_k": 30}
    runs = folder / "runs"
    configs = [
        write_yaml(folder / f"{name}.yaml", one) for name, one in (("enc", first), ("gen", second))
    ]
    sidrec("fit", "--config", configs[0], "--run_dir", runs / "enc")
    sidrec("fit", "--config", configs[1], "--from", runs / "enc", "--run_dir", runs / "gen")
    return runs / "gen"


def write_requests(target: Path, corpus: Corpus, num_requests: int) -> int:
    """Write mixed requests; return how many of them are bad."""
    draw, item_ids = random.Random(num_requests), corpus.item_ids()  # noqa: S311
    texts, num_bad = list(corpus.queries["text"]), 0
    with target.open("w") as stream:
        for row in range(num_requests):
            if draw.random() < BAD_SHARE:
                num_bad += 1
                stream.write(draw.choice(BAD) + "\n")
                continue
            request: dict[str, Any] = {"id": str(row)}
            if row % 2:
                request |= {"task": "search", "query": draw.choice(texts)}
            else:
                history = draw.choices(item_ids, k=draw.randint(1, 50))
                request |= {"task": "recommendation", "history": history}
            stream.write(json.dumps(request) + "\n")
    return num_bad


def words_of(run: Path, source: Path, target: Path) -> list[str]:
    """Return the command."""
    places = ["--from", run, "--input", source, "--output", target, "--device", "cpu"]
    return [sys.executable, "-m", "sidrec", "retrieve", *map(str, places)]


def answered(run: Path, source: Path, target: Path, num_bad: int) -> dict[str, object]:
    """Answer in a process of its own; return its figures."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words_of(run, source, target), stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        said = errors.read()
    found = re.search(r"answered ([\d,]+), errors ([\d,]+).*?([\d.]+) s:", said)
    if status or found is None:
        raise SystemExit(said)
    num_answered, num_errors = (int(text.replace(",", "")) for text in found.groups()[:2])
    if num_errors != num_bad:
        raise SystemExit(f"{num_errors} errors, expected {num_bad}")
    return {
        "answered": num_answered,
        "errors": num_errors,
        "answering_s": float(found[3]),
        "process_s": time.perf_counter() - started,
        "requests_per_s": (num_answered + num_errors) / float(found[3]),
        "peak_mib": usage.ru_maxrss / 1024,
    }


def killed_and_gone_on(run: Path, source: Path, target: Path) -> int:
    """Kill the process once half of the requests are answered, go on; return the lines kept."""
    part, half = target.with_name(f"{target.name}.part"), sum(1 for _ in source.open()) // 2
    process = subprocess.Popen(words_of(run, source, target), stderr=subprocess.DEVNULL)
    note = part.with_name(f"{part.name}.json")
    while process.poll() is None:
        time.sleep(0.05)
        counts = json.loads(note.read_text())["counts"] if note.exists() else {}
        if counts.get("answered", 0) + counts.get("errors", 0) >= half:
            process.send_signal(signal.SIGKILL)
            process.wait()
    done = subprocess.run(
        words_of(run, source, target), check=True, capture_output=True, text=True
    ).stderr
    kept = re.search(r"going on with .* after ([\d,]+) requests", done)
    return int(kept[1].replace(",", "")) if kept else 0


def main() -> None:
    """Read the settings, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--requests", type=int, nargs=3, default=[1_000, 2_500, 10_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = trained(folder, arguments.items)
        corpus = Corpus.load(folder / "corpus")
        results: dict[str, Any] = {}
        for num_requests in arguments.requests:
            source = folder / f"{num_requests}.jsonl"
            num_bad = write_requests(source, corpus, num_requests)
            target = folder / f"{num_requests}.out"
            results[str(num_requests)] = answered(run, source, target, num_bad)
            print(num_requests, results[str(num_requests)])
        middle = folder / f"{arguments.requests[1]}.jsonl"
        kept = killed_and_gone_on(run, middle, folder / "again.out")
        same = (folder / "again.out").read_bytes() == middle.with_suffix(".out").read_bytes()
    few, _, many = (results[str(count)]["peak_mib"] for count in arguments.requests)
    result = {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, cpu",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "requests": results,
        "peak_ratio": many / few,
        "killed": {"requests_kept": kept, "same_bytes": same},
    }
    write_json(arguments.out, result)
    print(f"peak ratio {many / few:.3f}; killed at {kept} requests, same bytes: {same}")


if __name__ == "__main__":
    main()
