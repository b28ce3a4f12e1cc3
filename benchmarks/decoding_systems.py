"""What `decoding_grid.py` times: sidrec's decoder and three others over one catalogue and model."""

from collections.abc import Callable
from typing import Any

import torch
from decoding_speed import END, FIRST_CODE, PAD, python_trie
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from sidrec.generator.decoding.beam_search import Step, search_allowed
from sidrec.generator.decoding.diverse_beam_search import diverse_search
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.types import SemanticIdTable

SOURCE_TOKENS, PAPER_BEAMS = 60, 60
PEER = "transformers_python_trie"
SHAPES: dict[str, dict[str, Any]] = {
    "tiger": {"d_model": 128, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 6},
    "flan-t5-base": {
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}


class Cell:
    """One catalogue and one model, with everything that the systems need."""

    def __init__(self, table: SemanticIdTable, shape: str, batch: int) -> None:
        torch.manual_seed(0)
        sizes = table.codebook_sizes
        starts = [FIRST_CODE + sum(sizes[:level]) for level in range(len(sizes))]
        self.table, self.sizes, self.batch = table, sizes, batch
        self.ids = [torch.arange(n) + start for n, start in zip(sizes, starts, strict=True)]
        config = T5Config(vocab_size=FIRST_CODE + sum(sizes), **SHAPES[shape])
        config.decoder_start_token_id = PAD
        self.model = T5ForConditionalGeneration(config).eval()
        self.halved = T5ForConditionalGeneration(config).eval().bfloat16()
        self.halved.load_state_dict(self.model.state_dict())
        self.trie = SemanticIdTrie.from_table(table, None)
        self.rows = (table.codes.long() + torch.tensor(starts)).tolist()
        self.source = torch.randn(batch, SOURCE_TOKENS, config.d_model)
        self.mask = torch.ones(batch, SOURCE_TOKENS, dtype=torch.bool)
        self.allowed = AllItemsBut(torch.zeros((batch, 0), dtype=torch.int32))
        self.even = torch.arange(len(table.codes) + 1).double().expand(batch, -1)

    def step(self, *, over: str = "level", bf16: bool = False) -> Step:
        """Start a step of sidrec's decoder."""
        model = self.halved if bf16 else self.model
        decoder = T5Decoder(model, self.ids, normalize_over=over)  # type: ignore[arg-type]
        return decoder.start(self.source.to(model.dtype), self.mask)

    def search(self, step: Callable[..., Any], beams: int, *, weighed: bool = False) -> Any:  # noqa: ANN401
        """Run sidrec's beam search."""
        return search_allowed(
            step,
            self.trie,
            self.allowed,
            num_requests=self.batch,
            num_beams=beams,
            top_k=beams,
            mass_before=self.even if weighed else None,
        )

    def generate(self, beams: int, prefix_function: Any, *, bf16: bool = False) -> torch.Tensor:  # noqa: ANN401
        """Run transformers' beam search."""
        model = self.halved if bf16 else self.model
        return model.generate(
            encoder_outputs=BaseModelOutput(self.source.to(model.dtype)),
            attention_mask=self.mask.long(),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=len(self.sizes),
            length_penalty=0.0,
            prefix_allowed_tokens_fn=prefix_function,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=END if prefix_function else None,
        )


def cornac_beam(cell: Cell, beams: int) -> Callable[[], object] | None:
    """Return cornac's search over the batch, or None where cornac is missing."""
    try:
        from cornac.models.tiger.tiger import TIGERSeq2Seq
    except ImportError:
        return None
    model = TIGERSeq2Seq(cell.sizes).eval()
    children: list[dict[tuple[int, ...], list[int]]] = [{} for _ in cell.sizes]
    for row in cell.table.codes.tolist():
        for level, code in enumerate(row):
            children[level].setdefault(tuple(row[:level]), []).append(code)
    unique = [{key: sorted(set(codes)) for key, codes in of.items()} for of in children]
    mask = cell.mask[:1].float()
    state = {"row": 0}
    model.encode_history = lambda *_: cell.source[state["row"], None]

    def search() -> None:
        for row in range(cell.batch):
            state["row"] = row
            model.generate_beam(None, mask, beams, unique)

    return search


def own_systems(cell: Cell, beams: int) -> dict[str, Callable[[], object]]:
    """Return sidrec's ways to answer the cell's requests."""
    systems: dict[str, Callable[[], object]] = {
        "sidrec": lambda: cell.search(cell.step(), beams),
        "sidrec_bf16": lambda: cell.search(cell.step(bf16=True), beams),
        "sidrec_weighed": lambda: cell.search(cell.step(), beams, weighed=True),
    }
    if beams == PAPER_BEAMS:
        systems["sidrec_diverse"] = lambda: diverse_search(
            cell.step(),
            cell.trie,
            cell.allowed,
            num_requests=cell.batch,
            num_beams=beams,
            num_groups=beams // 2,
            diversity_penalty=0.25,
            top_k=beams,
        )
    return systems


def peer_systems(cell: Cell, beams: int) -> tuple[dict[str, Callable[[], object]], float]:
    """Return the others' ways, and the share of requests with the same lists as sidrec's."""
    function = python_trie(cell.rows)
    theirs = cell.generate(beams, function)[:, 1:].view(cell.batch, beams, -1).tolist()
    found = cell.search(cell.step(over="vocabulary"), beams).ranked.items.tolist()
    ours = [[cell.rows[item] for item in line] for line in found]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / cell.batch
    systems: dict[str, Callable[[], object]] = {PEER: lambda: cell.generate(beams, function)}
    if beams == 30:
        systems["transformers_unconstrained"] = lambda: cell.generate(beams, None)
    tiger = cell.model.config.num_layers == SHAPES["tiger"]["num_layers"]
    cornac = cornac_beam(cell, beams) if tiger and cell.batch == 1 else None
    return systems | ({"cornac_beam": cornac} if cornac else {}), same
