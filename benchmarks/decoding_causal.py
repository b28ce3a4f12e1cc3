"""Processor time of a causal model's beam search beside transformers' generate, same weights.

    python benchmarks/decoding_causal.py --out benchmarks/results/decoding_causal.json

The peer is `generate` with `prefix_allowed_tokens_fn` over a Python trie; it copies the prompt for
every beam. Both read the same prompts, and that is timed with both. Weights are random. The two
take turns; the lists are compared before anything is timed. `--rounds 1` is a quick look.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from decoding_speed import FIRST_CODE, python_trie, random_table

from sidrec.files import write_json
from sidrec.generator.decoding.beam_search import Decoded, beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.causal.causal_decoder import CausalSteps, read_prompts
from sidrec.generator.model.causal.causal_lm import causal_lm_from_config
from sidrec.generator.model.causal.causal_settings import CausalShape
from sidrec.generator.model.code_space import CodeVocabulary
from sidrec.generator.model.t5_decoder import NormalizeOver


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check that both systems agree, then let them take turns."""
    torch.manual_seed(0)
    sizes = tuple(arguments.codebook_sizes)
    table = random_table(arguments.items, sizes)
    vocabulary = CodeVocabulary(FIRST_CODE, sizes)
    shape = CausalShape(model_type=arguments.model_type).arguments()
    model = causal_lm_from_config(shape, vocabulary=vocabulary).eval()
    trie = SemanticIdTrie.from_table(table, None)
    rows = vocabulary.tokens_of(table.codes.long()).tolist()
    prompts = torch.randint(2, FIRST_CODE, (arguments.batch, arguments.prompt_tokens))
    following = python_trie(rows)  # called with the whole row, of which it skips one token
    excluded = torch.zeros((arguments.batch, 0), dtype=torch.long)
    ids = vocabulary.level_token_ids()

    def sidrec(over: NormalizeOver) -> Decoded:
        read = read_prompts(
            model, model.get_input_embeddings()(prompts), torch.ones_like(prompts).bool()
        )
        step = CausalSteps(model, read, ids, normalize_over=over)
        width = arguments.beams
        return beam_search(step, trie, num_beams=width, top_k=width, excluded=excluded)

    def generate() -> torch.Tensor:
        made: torch.Tensor = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=arguments.beams,
            num_return_sequences=arguments.beams,
            max_new_tokens=len(sizes),
            length_penalty=0.0,
            prefix_allowed_tokens_fn=lambda row, line: following(
                row, line[arguments.prompt_tokens - 1 :]
            ),
            do_sample=False,
            eos_token_id=None,
        )
        return made

    ours = [[rows[item] for item in line] for line in sidrec("vocabulary").ranked.items.tolist()]
    theirs = generate()[:, arguments.prompt_tokens :].view(arguments.batch, arguments.beams, -1)
    same = sum(a == b for a, b in zip(ours, theirs.tolist(), strict=True)) / arguments.batch
    systems = {"sidrec": lambda: sidrec("level"), "transformers_python_trie": generate}
    spent: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(arguments.rounds):
        for name, work in systems.items():
            used = time.process_time()
            work()
            spent[name].append((time.process_time() - used) / arguments.batch * 1000)
    cost = {name: statistics.median(taken) for name, taken in spent.items()}
    keys = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads
    per_token = keys * model.config.head_dim * 4  # bytes, float32
    kept = arguments.prompt_tokens + (len(sizes) - 1) * arguments.beams
    copied = arguments.beams * (arguments.prompt_tokens + len(sizes) - 1)
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "same_lists_fraction": same,
        "processor_ms_per_request": cost,
        "processor_ratio": cost["transformers_python_trie"] / cost["sidrec"],
        "cache_bytes_per_request": {
            "sidrec": kept * per_token,
            "transformers_python_trie": copied * per_token,
        },
    }


def main() -> None:
    """Read the settings, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model_type", default="qwen3", help="qwen3, llama, ...")
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--codebook_sizes", type=int, nargs="+", default=[256, 256, 256])
    parser.add_argument("--beams", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt_tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments)
    write_json(arguments.out, result)
    for name, cost in result["processor_ms_per_request"].items():
        print(f"{name:28s} {cost:8.1f} processor ms a request")
    print(
        f"same lists: {result['same_lists_fraction']:.3f}; ratio {result['processor_ratio']:.1f}; "
        f"bytes of the cache {result['cache_bytes_per_request']}"
    )


if __name__ == "__main__":
    main()
