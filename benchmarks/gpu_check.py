"""All that only a GPU can say about sidrec, in ten minutes: one JSON and one Markdown file.

    make gpu-check                       # of one GPU, or all that are visible
    python benchmarks/gpu_check.py --dry_run --out /tmp/gpu_check   # tiny sizes on the CPU

Parts: the tests marked ``gpu`` (with two GPUs those of NCCL too); equality with the CPU; residual
k-means beside the card's bound and faiss; decoding and training beside transformers, with memory
and the share of the card's peak (MFU). A part that fails is reported as failed; the others run.

The bound of k-means, for n rows of d numbers, k codes a level: distances take 2 n k d operations a
pass, and a pass reads 4 n d bytes; it takes at least the larger of the two times.
"""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from decoding_systems import Cell
from prior_speed import batch_of, model_of
from shipped import command_given, quantizer_of
from torch.utils.flop_counter import FlopCounterMode

from sidrec.files import write_json
from sidrec.types import SemanticIdTable

LEVELS, CODES, ITERATIONS, REFINEMENTS = 3, 256, 25, 3
Figures = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Attributes:
        rows: Vectors of k-means.
        dim: Their width.
        items: Catalogue of decoding and training.
        batch: Requests at once.
        beams: Width of the search.
        rounds: Repetitions; the median counts.
    """

    rows: int = 1_000_000
    dim: int = 768
    items: int = 100_000
    batch: int = 128
    beams: int = 30
    rounds: int = 5


TINY = Sizes(rows=3_000, dim=8, items=1_000, batch=2, beams=4, rounds=1)


class Check:
    """The parts on one device."""

    history = 30

    def __init__(
        self, sizes: Sizes, device: str, *, peak_tflops: float, bandwidth_gb_s: float
    ) -> None:
        self.sizes, self.device = sizes, torch.device(device)
        self.peak, self.bandwidth = peak_tflops * 1e12, bandwidth_gb_s * 1e9

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the median time of a call, after one that warms up."""
        taken = []
        for _ in range(self.sizes.rounds + 1):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - began)
        return median(taken[1:])

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tests(self) -> Figures:
        """Run the tests marked ``gpu``; those for two GPUs skip themselves where there is one."""
        if self.device.type != "cuda":
            return {"skipped": "needs a GPU"}
        words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "tests"]
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:])
        return {"num_gpus": torch.cuda.device_count(), "last_line": done.stdout.splitlines()[-1]}

    def equality(self) -> Figures:
        """Compare with the CPU what should be equal, and two runs with each other."""
        rows = torch.randn(min(self.sizes.rows, 20_000), self.sizes.dim)
        quantizer = replace(quantizer_of("default"), codebook_sizes=(64, 64, 64))
        on_device = rows.to(self.device)
        twice = [quantizer.fit(on_device) for _ in range(2)]
        codes = [fitted.encode(on_device).cpu() for fitted in twice]
        fitted = quantizer.fit(rows)
        moved = type(fitted).from_tensors(
            {k: v.to(self.device) if v.ndim else v for k, v in fitted.tensors().items()}
        )
        encoded = moved.encode(on_device).cpu()
        model, batch = model_of(self.sizes.items).eval(), self.batch()
        limits: dict[str, Any] = {"num_beams": self.sizes.beams, "top_k": self.sizes.beams}
        expected = model.answer(batch, **limits).ranked.items
        found = model.to(self.device).answer(self.moved(batch), **limits).ranked.items.cpu()
        return {
            "k_means_repeats": bool(torch.equal(*codes)),
            "codes_as_on_cpu_fraction": float((encoded == fitted.encode(rows)).double().mean()),
            "lists_as_on_cpu_fraction": float((found == expected).all(dim=1).double().mean()),
        }

    def k_means(self) -> Figures:
        """Fit on all rows and encode them, beside the bound and faiss."""
        sizes = self.sizes
        vectors = torch.randn(sizes.rows, sizes.dim, device=self.device)
        quantizer = replace(
            quantizer_of("default"),
            num_iterations=ITERATIONS,
            tolerance=0.0,
            train_rows_per_code=None,
        )
        passes = LEVELS * (ITERATIONS + REFINEMENTS + 1)
        operations = 2 * sizes.rows * CODES * sizes.dim / self.peak
        bound = passes * max(operations, 4 * sizes.rows * sizes.dim / self.bandwidth)
        self.forget_peak()
        taken = self.seconds(lambda: quantizer.fit(vectors).encode(vectors))
        found = {"taken_s": taken, "bound_s": bound, "over_bound": taken / bound}
        return found | self.memory() | self.faiss(vectors)

    def faiss(self, vectors: torch.Tensor) -> Figures:
        """Time ``faiss.Kmeans`` on one level; nothing where faiss does not see the device."""
        import faiss

        on_gpu = self.device.type == "cuda"
        if on_gpu and not getattr(faiss, "get_num_gpus", int)():
            return {"faiss": "this build sees no GPU"}
        rows = vectors.cpu().numpy()
        one = replace(
            quantizer_of("default"),
            codebook_sizes=(CODES,),
            num_iterations=ITERATIONS,
            tolerance=0.0,
            train_rows_per_code=None,
            num_refit_rounds=0,
        )

        def theirs() -> None:
            run = faiss.Kmeans(
                rows.shape[1],
                CODES,
                niter=ITERATIONS,
                gpu=on_gpu,
                max_points_per_centroid=len(rows),
            )
            run.train(rows)

        return {
            "one_level_s": self.seconds(lambda: one.fit(vectors)),
            "faiss_one_level_s": self.seconds(theirs),
        }

    def decoding(self) -> Figures:
        """Search by sidrec and by transformers' ``generate`` with a prefix function."""
        from decoding_speed import python_trie

        sizes = self.sizes
        number = torch.randperm(CODES**LEVELS)[: sizes.items]
        codes = torch.stack([number // CODES**2, number // CODES % CODES, number % CODES], dim=1)
        cell = Cell(SemanticIdTable(codes, (CODES,) * LEVELS), "tiger", sizes.batch)
        cell.model, cell.halved = cell.model.to(self.device), cell.halved.to(self.device)
        cell.trie, cell.even = cell.trie.to(self.device), cell.even.to(self.device)
        cell.source, cell.mask = cell.source.to(self.device), cell.mask.to(self.device)
        cell.allowed = type(cell.allowed)(cell.allowed.excluded.to(self.device))
        function = python_trie(cell.rows)
        ways: dict[str, Callable[[], object]] = {
            "sidrec_float32": lambda: cell.search(cell.step(), sizes.beams),
            "sidrec_bfloat16": lambda: cell.search(cell.step(bf16=True), sizes.beams),
            "transformers_float32": lambda: cell.generate(sizes.beams, function),
        }
        self.forget_peak()
        with torch.inference_mode():
            rate = {f"{k}_requests_per_s": sizes.batch / self.seconds(v) for k, v in ways.items()}
        return rate | self.memory()

    def training(self) -> Figures:
        """Take training steps of the generator, with prior and alone, and of transformers' T5."""
        model, batch = model_of(self.sizes.items).to(self.device).train(), self.moved(self.batch())
        prior = model.prior
        width = self.history * LEVELS + 4  # what a history of codes takes
        ids = torch.randint(0, 100, (self.sizes.batch, width), device=self.device)
        labels = torch.randint(0, 100, (self.sizes.batch, LEVELS), device=self.device)

        def ours(own: Any) -> Callable[[], None]:  # noqa: ANN401
            def step() -> None:
                model.prior = own
                with torch.autocast(self.device.type, torch.bfloat16):
                    loss = model(batch, label_smoothing=0.0).sum()
                loss.backward()
                model.zero_grad()

            return step

        def theirs() -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = model.t5(input_ids=ids, labels=labels).loss
            loss.backward()
            model.zero_grad()

        found: Figures = {}
        ways = {"sidrec": ours(None), "sidrec_prior": ours(prior), "transformers": theirs}
        for name, step in ways.items():
            self.forget_peak()
            taken = self.seconds(step)
            with FlopCounterMode(display=False) as counter:
                step()
            found[f"{name}_examples_per_s"] = self.sizes.batch / taken
            found[f"{name}_mfu"] = counter.get_total_flops() / taken / self.peak
            found |= {f"{name}_{key}": value for key, value in self.memory().items()}
        return found

    def batch(self) -> Any:  # noqa: ANN401
        """Return a batch of random histories."""
        settings = argparse.Namespace(batch=self.sizes.batch, history=self.history)
        return batch_of(self.sizes.items, settings)

    def moved(self, batch: Any) -> Any:  # noqa: ANN401
        """Return a batch on the device."""
        tensors = {k: v for k, v in batch._asdict().items() if isinstance(v, torch.Tensor)}
        return batch._replace(**{name: one.to(self.device) for name, one in tensors.items()})

    def forget_peak(self) -> None:
        """Measure memory from here on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> Figures:
        """Return the peak of allocated memory; nothing on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}


PARTS = ("tests", "equality", "k_means", "decoding", "training")


def markdown(result: Figures) -> str:
    """Return the result as one table for each part."""
    lines = [f"# GPU check: {result['device']}", "", f"`{result['command']}`", ""]
    for part in PARTS:
        lines += [f"## {part}", "", "| figure | value |", "|---|---|"]
        for name, value in result[part].items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")
            lines.append(f"| {name} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the parts and write the files; exit code 1 if one failed or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_check"))
    parser.add_argument(
        "--peak_tflops", type=float, default=60.0, help="of the data sheet, float32"
    )
    parser.add_argument("--bandwidth_gb_s", type=float, default=3350.0, help="of the data sheet")
    parser.add_argument("--dry_run", action="store_true", help="tiny sizes, on the CPU")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("no GPU is visible: nothing was measured; --dry_run rehearses on the CPU")
    device = "cpu" if options.dry_run else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    sizes = TINY if options.dry_run else Sizes()
    rates = {"peak_tflops": options.peak_tflops, "bandwidth_gb_s": options.bandwidth_gb_s}
    check = Check(sizes, device, **rates)
    result: Figures = {
        "command": command_given(),
        "is_rehearsal": options.dry_run,
        "device": platform.machine() if options.dry_run else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sizes": asdict(sizes) | rates,
    }
    failed = []
    for part in PARTS:
        began = time.perf_counter()
        try:
            result[part] = getattr(check, part)()
        except Exception as error:  # whatever a card does, the other parts run
            failed.append(part)
            result[part] = {"failed": f"{type(error).__name__}: {error}"}
        result[part]["whole_part_s"] = time.perf_counter() - began
        print(f"{part}: {result[part]}", file=sys.stderr)
        write_json(options.out.with_suffix(".json"), result)
    options.out.with_suffix(".md").write_text(markdown(result))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
