"""Write tests/generator/decoding/fixtures/diverse.json: what transformers' group beam search finds.

Runs with transformers 4.56.2, the last release that has it, in an environment of its own:

    python -m venv oracle && oracle/bin/pip install torch transformers==4.56.2
    oracle/bin/python scripts/make_diverse_fixtures.py FILE

The model is a table: raw logits of every prefix, drawn once, rounded and stored beside the answers,
so that the fixtures do not depend on how some release draws or multiplies numbers. They have five
decimals: with fewer and a round penalty candidates tie, and topk breaks ties as it likes.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

NUM_REQUESTS = 2
CASES = [  # codebook sizes, items, beams, groups, penalty
    ((5, 4, 3), 30, 6, 3, 0.5),
    ((5, 4, 3), 30, 4, 4, 2.0),
    ((6, 6), 20, 8, 4, 0.25),
    ((4, 3, 3, 2), 40, 9, 3, 0.01),
    ((12, 8, 6), 150, 60, 30, 0.25),  # the paper's: 60 beams, 30 groups, penalty 0.25
]


class TableConfig(PretrainedConfig):
    """Settings that ``generate`` asks for."""

    model_type = "table"
    num_hidden_layers = 1
    vocab_size = 0


class TableModel(PreTrainedModel, GenerationMixin):
    """A decoder that looks logits up by level and prefix; token r + 1 begins request r's target."""

    config_class = TableConfig
    _supports_cache_class = False

    def __init__(self, sizes: tuple[int, ...], logits: list[torch.Tensor]) -> None:
        first = [1 + NUM_REQUESTS + sum(sizes[:level]) for level in range(len(sizes))]
        super().__init__(TableConfig(vocab_size=1 + NUM_REQUESTS + sum(sizes), pad_token_id=0))
        self.sizes, self.first, self.table = sizes, first, logits
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **_: object) -> dict:
        """Read the whole prefix at every step."""
        return {"input_ids": input_ids}

    def forward(self, input_ids: torch.Tensor, **_: object) -> CausalLMOutput:
        """Return -inf but for the tokens of the level."""
        level = input_ids.shape[1] - 1
        prefix = torch.zeros_like(input_ids[:, 0])
        for place in range(level):
            code = input_ids[:, place + 1] - self.first[place]
            prefix = prefix * self.sizes[place] + code
        logits = torch.full((len(input_ids), 1, self.config.vocab_size), float("-inf"))
        own = slice(self.first[level], self.first[level] + self.sizes[level])
        logits[:, 0, own] = self.table[level][input_ids[:, 0] - 1, prefix]
        return CausalLMOutput(logits=logits)


def answer(case: tuple[tuple[int, ...], int, int, int, float]) -> dict:
    """Draw a catalogue and a table, and let transformers search."""
    sizes, num_items, num_beams, num_groups, penalty = case
    every = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    codes = every[torch.randperm(len(every))[:num_items]]
    logits, num_prefixes = [], 1
    for size in sizes:
        drawn = torch.randn(NUM_REQUESTS, num_prefixes, size) * 1.5
        logits.append((drawn * 100_000).round() / 100_000)
        num_prefixes *= size
    model = TableModel(sizes, logits).eval()
    rows = [[model.first[level] + code for level, code in enumerate(row)] for row in codes.tolist()]

    def allowed(_: int, prefix: torch.Tensor) -> list[int]:
        start = prefix.tolist()[1:]
        return sorted({row[len(start)] for row in rows if row[: len(start)] == start})

    found = model.generate(
        torch.arange(NUM_REQUESTS)[:, None] + 1,
        num_beams=num_beams,
        num_beam_groups=num_groups,
        diversity_penalty=penalty,
        num_return_sequences=num_beams,
        max_new_tokens=len(sizes),
        length_penalty=0.0,
        do_sample=False,
        use_cache=False,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=0,
        eos_token_id=None,
    )
    sequences = found.sequences[:, 1:] - torch.tensor(model.first)
    return {
        "codebook_sizes": sizes,
        "codes": codes.tolist(),
        "logits": [
            [[round(x, 5) for x in row] for row in level.flatten(1).tolist()] for level in logits
        ],
        "num_beams": num_beams,
        "num_groups": num_groups,
        "diversity_penalty": penalty,
        "sequences": sequences.view(NUM_REQUESTS, num_beams, -1).tolist(),
        "scores": found.sequences_scores.view(NUM_REQUESTS, num_beams).tolist(),
    }


def main() -> None:
    """Write all cases."""
    if transformers.__version__ != "4.56.2":
        raise SystemExit(f"needs transformers 4.56.2, found {transformers.__version__}")
    torch.manual_seed(0)
    cases = [answer(case) for case in CASES]
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    body = {"transformers": transformers.__version__, "cases": cases}
    target.write_text(json.dumps(body, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
