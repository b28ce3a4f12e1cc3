"""Requests per second of sidrec's beam search beside transformers' generate, on the same weights.

    python benchmarks/decoding_speed.py --out benchmarks/results/decoding_speed.json

The peer is what public systems do: `generate` with `prefix_allowed_tokens_fn` over a Python trie.
Both get the same encoder states (the encoder is timed with neither), the two take turns, and the
result is the median of the rounds. Weights are random: speed does not depend on them, and the two
must return the same lists, which is checked before anything is timed.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from sidrec.files import write_json
from sidrec.generator.decoding.beam_search import Decoded, beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.t5_decoder import NormalizeOver, T5Decoder
from sidrec.types import SemanticIdTable

PAD, END, FIRST_CODE = 0, 1, 1000  # 1,000 tokens for words stand before the codes
ZIPF = 1.05  # skew of the codes: real codebooks are not used evenly


def random_table(num_items: int, sizes: tuple[int, ...]) -> SemanticIdTable:
    """Draw distinct Semantic IDs whose codes follow Zipf's law."""
    rows: torch.Tensor = torch.zeros((0, len(sizes)), dtype=torch.long)
    while len(rows) < num_items:
        columns = []
        for size in sizes:
            weights = torch.arange(1, size + 1).double() ** -ZIPF
            columns.append(torch.multinomial(weights, num_items, replacement=True))
        rows = torch.unique(torch.cat([rows, torch.stack(columns, dim=1)]), dim=0)
    return SemanticIdTable(rows[torch.randperm(len(rows))[:num_items]], sizes)


def tiger_sized(num_tokens: int) -> T5ForConditionalGeneration:
    """4 + 4 levels of attention, d_model 128, 6 heads of 64, d_ff 1024, as TIGER has."""
    config = T5Config(
        vocab_size=num_tokens,
        d_model=128,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_heads=6,
    )
    config.decoder_start_token_id = PAD
    return T5ForConditionalGeneration(config).eval()


def python_trie(rows: list[list[int]]) -> Callable[[int, torch.Tensor], list[int]]:
    """Return the prefix function that generate calls for every beam at every step."""
    following: dict[tuple[int, ...], set[int]] = {}
    for row in rows:
        for depth, token in enumerate(row):
            following.setdefault(tuple(row[:depth]), set()).add(token)
    allowed = {prefix: sorted(tokens) for prefix, tokens in following.items()}
    return lambda _, prefix: allowed.get(tuple(prefix.tolist()[1:]), [END])


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check that both systems agree, then let them take turns."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    sizes = tuple(arguments.codebook_sizes)
    table = random_table(arguments.items, sizes)
    starts = [FIRST_CODE + sum(sizes[:level]) for level in range(len(sizes))]
    ids = [
        torch.arange(size, device=device) + start for size, start in zip(sizes, starts, strict=True)
    ]
    model = tiger_sized(FIRST_CODE + sum(sizes)).to(device)  # type: ignore[arg-type]
    trie = SemanticIdTrie.from_table(table, None).to(device)
    rows = (table.codes + torch.tensor(starts)).tolist()
    prefix_function = python_trie(rows)
    source = torch.randn(arguments.batch, arguments.source_tokens, 128, device=device)
    mask = torch.ones(source.shape[:2], dtype=torch.bool, device=device)
    excluded = torch.zeros((arguments.batch, 0), dtype=torch.long, device=device)
    halved = T5ForConditionalGeneration(model.config).to(device).eval()  # type: ignore[arg-type]
    halved.load_state_dict(model.state_dict())
    halved = halved.bfloat16()

    def sidrec(over: NormalizeOver, of: T5ForConditionalGeneration = model) -> Decoded:
        step = T5Decoder(of, ids, normalize_over=over).start(source.to(of.dtype), mask)
        return beam_search(
            step, trie, num_beams=arguments.beams, top_k=arguments.beams, excluded=excluded
        )

    def generate() -> torch.Tensor:
        return model.generate(
            encoder_outputs=BaseModelOutput(source),
            attention_mask=mask.long(),
            num_beams=arguments.beams,
            num_return_sequences=arguments.beams,
            max_new_tokens=len(sizes),
            length_penalty=0.0,
            prefix_allowed_tokens_fn=prefix_function,
            do_sample=False,
        )

    ours = [[rows[item] for item in line] for line in sidrec("vocabulary").ranked.items.tolist()]
    theirs = generate()[:, 1:].view(arguments.batch, arguments.beams, -1).tolist()
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / arguments.batch
    systems: dict[str, Callable[[], object]] = {
        "sidrec": lambda: sidrec("level"),
        "sidrec_bf16": lambda: sidrec("level", halved),
        "transformers_python_trie": generate,
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(arguments.rounds):
        for name, work in systems.items():
            times[name].append(seconds(work, device))
    rate = {name: arguments.batch / statistics.median(taken) for name, taken in times.items()}
    peer = rate["transformers_python_trie"]
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}",
        "load_average": os.getloadavg()[0],  # others on the machine lower both rates
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "same_lists_fraction": same,
        "requests_per_s": rate,
        "ratio": {name: rate[name] / peer for name in ("sidrec", "sidrec_bf16")},
        "seconds": times,
    }


def main() -> None:
    """Read the settings, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--codebook_sizes", type=int, nargs="+", default=[256, 256, 256])
    parser.add_argument("--beams", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--source_tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    result = measure(arguments)
    write_json(arguments.out, result)
    for name, rate in result["requests_per_s"].items():
        print(f"{name:28s} {rate:8.1f} requests/s")
    print(f"same lists: {result['same_lists_fraction']:.3f}; ratio {result['ratio']}")


if __name__ == "__main__":
    main()
