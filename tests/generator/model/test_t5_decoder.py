"""The decoder gives the numbers of transformers' own forward and the lists of its generate."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.training.lora import LoraSettings, apply_lora
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import FIRST_CODE, PAD, level_token_ids, tiny_t5

SIZES = (5, 4, 3)
CONFIGS = [
    pytest.param({"gated": False, "scaled": True}, id="t5"),
    pytest.param({"gated": True, "scaled": False}, id="flan"),
]


def untie(model):
    """Give the head weights of its own, as the flan checkpoints have."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.3)
    return model


def sources(num_requests, model, *, num_tokens=6):
    states = torch.randn(num_requests, num_tokens, model.config.d_model)
    mask = torch.arange(num_tokens) < torch.randint(1, num_tokens + 1, (num_requests, 1))
    mask[0] = True
    return states, mask


def forward_scores(model, states, mask, codes, *, over):
    """Log-probability of each item for each request, by one teacher-forced forward a request."""
    ids = level_token_ids(SIZES)
    targets = torch.stack([ids[level][codes[:, level]] for level in range(len(SIZES))], dim=1)
    inputs = torch.cat([torch.full_like(targets[:, :1], PAD), targets[:, :-1]], dim=1)
    total = []
    for row in range(len(states)):
        own = BaseModelOutput(states[row : row + 1].expand(len(codes), -1, -1))
        logits = model(
            encoder_outputs=own,
            attention_mask=mask[row : row + 1].expand(len(codes), -1),
            decoder_input_ids=inputs,
        ).logits
        score = torch.zeros(len(codes))
        for level in range(len(SIZES)):
            here = logits[:, level]
            normalizer = here if over == "vocabulary" else here[:, ids[level]]
            chosen = here.gather(1, targets[:, level : level + 1])[:, 0]
            score = score + chosen - normalizer.logsumexp(dim=1)
        total.append(score)
    return torch.stack(total)


@pytest.mark.parametrize("over", ["level", "vocabulary"])
@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_steps_equal_the_models_forward(config, over):
    model = untie(tiny_t5(sizes=SIZES, **config))
    states, mask = sources(3, model)
    codes = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))
    expected = forward_scores(model, states, mask, codes, over=over)

    step = T5Decoder(model, level_token_ids(SIZES), normalize_over=over).start(states, mask)
    zeros = torch.zeros((3, 1), dtype=torch.long)
    first = step(0, zeros, zeros)  # [3, 1, 5]
    a = torch.arange(5).flip(0).expand(3, 5)  # beams change places on the way
    second = step(1, zeros.expand(3, 5), a)  # [3, 5, 4]
    parent = torch.arange(20).expand(3, 20) % 5
    b = torch.arange(20).expand(3, 20) // 5
    third = step(2, parent, b)  # [3, 20, 3]
    scores = torch.empty(3, *SIZES)
    for beam in range(20):
        x, y = int(a[0, parent[0, beam]]), int(b[0, beam])
        scores[:, x, y] = (first[:, 0, x] + second[:, parent[0, beam], y])[:, None] + third[:, beam]
    torch.testing.assert_close(scores.flatten(1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_wide_beam_equals_scoring_every_item(config):
    model = tiny_t5(sizes=SIZES, **config)
    states, mask = sources(4, model)
    codes = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))[torch.randperm(60)[:17]]
    expected = forward_scores(model, states, mask, codes, over="level").sort(descending=True)
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, SIZES), None)
    step = T5Decoder(model, level_token_ids(SIZES), normalize_over="level").start(states, mask)
    nothing = torch.zeros((4, 0), dtype=torch.long)
    found = beam_search(step, trie, num_beams=17, top_k=17, excluded=nothing)
    torch.testing.assert_close(found.ranked.scores, expected.values, atol=1e-5, rtol=0)
    assert torch.equal(found.ranked.items, expected.indices)


@pytest.mark.parametrize("num_beams", [2, 6])
@pytest.mark.parametrize("has_adapters", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_beams_equal_generate_with_a_prefix_function(config, has_adapters, num_beams):
    model = tiny_t5(sizes=SIZES, **config)
    if has_adapters:
        apply_lora(model, LoraSettings(r=2), first_new_token=FIRST_CODE)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    states, mask = sources(4, model)
    codes = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))[torch.randperm(60)[:25]]
    ids = level_token_ids(SIZES)
    rows = [[int(ids[i][c]) for i, c in enumerate(row)] for row in codes.tolist()]

    def allowed(_, prefix):
        start = prefix.tolist()[1:]
        return sorted({row[len(start)] for row in rows if row[: len(start)] == start})

    made = model.generate(
        encoder_outputs=BaseModelOutput(states),
        attention_mask=mask.long(),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=len(SIZES),
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=None,
    )
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, SIZES), None)
    step = T5Decoder(model, ids, normalize_over="vocabulary").start(states, mask)
    nothing = torch.zeros((4, 0), dtype=torch.long)
    found = beam_search(step, trie, num_beams=num_beams, top_k=num_beams, excluded=nothing)
    theirs = made.sequences[:, 1:].view(4, num_beams, -1).tolist()
    ours = [[rows[item] for item in row] for row in found.ranked.items.tolist()]
    assert ours == theirs
    torch.testing.assert_close(
        found.ranked.scores, made.sequences_scores.view(4, num_beams), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_padding_and_neighbors_do_not_matter():
    model = tiny_t5(sizes=SIZES, gated=True, scaled=False)
    states, mask = sources(3, model)
    decoder = T5Decoder(model, level_token_ids(SIZES), normalize_over="level")
    zeros = torch.zeros((3, 1), dtype=torch.long)
    together = decoder.start(states, mask)(0, zeros, zeros)
    for row in range(3):
        length = int(mask[row].sum())
        own, own_mask = states[row : row + 1, :length], mask[row : row + 1, :length]
        alone = decoder.start(own, own_mask)(0, zeros[:1], zeros[:1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_stays_close():
    model = tiny_t5(sizes=SIZES, gated=True, scaled=False)
    states, mask = sources(2, model)
    decoder = T5Decoder(model, level_token_ids(SIZES), normalize_over="level")
    exact = two_levels(decoder, states, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = two_levels(decoder, states, mask)
    model.bfloat16()
    half = two_levels(decoder, states.bfloat16(), mask)
    for rounded in (mixed, half):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, atol=0.15, rtol=0)


def two_levels(decoder, states, mask):
    step = decoder.start(states, mask)
    zeros = torch.zeros((len(states), 1), dtype=torch.long)
    step(0, zeros, zeros)
    return step(1, zeros.expand(-1, 5), torch.arange(5).expand(len(states), 5))


def test_training_mode_is_refused():
    model = tiny_t5(sizes=SIZES, gated=False, scaled=True).train()
    with pytest.raises(RuntimeError, match=r"needs model.eval\(\)"):
        T5Decoder(model, level_token_ids(SIZES), normalize_over="level").start(*sources(2, model))


def test_missing_start_token_is_refused():
    model = tiny_t5(sizes=SIZES, gated=False, scaled=True)
    model.config.decoder_start_token_id = None
    with pytest.raises(ConfigError, match="no decoder_start_token_id"):
        T5Decoder(model, level_token_ids(SIZES), normalize_over="level")
