"""Steps give the numbers of the model's own forward and the lists of its generate."""

import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import beam_search
from sidrec.generator.decoding.exhaustive import exact_search
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.causal.causal_decoder import (
    CausalSteps,
    read_prompts,
    states_before_codes,
    states_of_branches,
)
from sidrec.generator.model.causal.causal_lm import checked
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import FIRST_CODE, PAD, level_token_ids
from tests.generator.causal.models import FAMILIES, tiny_lm

SIZES = (5, 4, 3)
LENGTHS = (6, 1, 4, 3)
ALL = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))
NOTHING = torch.zeros((len(LENGTHS), 0), dtype=torch.long)


def prompts():
    """Return token ids of four prompts, padded at the end, and their mask."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(2, FIRST_CODE, mask.shape, generator=torch.Generator().manual_seed(3))
    return tokens * mask, mask


def new_steps(model, tokens, mask, *, over):
    read = read_prompts(model, model.get_input_embeddings()(tokens), mask)
    return CausalSteps(model, read, level_token_ids(SIZES), normalize_over=over)


def forward_scores(model, tokens, mask, codes, *, over):
    """Log-probability of each item after each prompt, by one forward a prompt, unpadded."""
    ids, total = level_token_ids(SIZES), []
    targets = torch.stack([ids[level][codes[:, level]] for level in range(len(SIZES))], dim=1)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        prompt = tokens[row, :length].expand(len(codes), -1)
        logits = model(input_ids=torch.cat([prompt, targets], dim=1)).logits[:, length - 1 :]
        score = torch.zeros(len(codes))
        for level, own in enumerate(ids):
            here = logits[:, level]
            normalizer = here if over == "vocabulary" else here[:, own]
            chosen = here.gather(1, targets[:, level : level + 1])[:, 0]
            score = score + chosen - normalizer.logsumexp(dim=1)
        total.append(score)
    return torch.stack(total)


@pytest.mark.parametrize("over", ["level", "vocabulary"])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
@torch.no_grad()
def test_wide_beam_and_exact_search_equal_scoring_every_item(family, over):
    model = tiny_lm(family, sizes=SIZES)
    tokens, mask = prompts()
    codes = ALL[torch.randperm(60)[:17]]
    expected = forward_scores(model, tokens, mask, codes, over=over).sort(descending=True)
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, SIZES), None)
    wide = beam_search(
        new_steps(model, tokens, mask, over=over),
        trie,
        num_beams=17,
        top_k=17,
        excluded=NOTHING,
    )
    exact = exact_search(
        lambda: new_steps(model, tokens, mask, over=over),
        trie,
        AllItemsBut.of(trie, NOTHING),
        num_requests=4,
        top_k=17,
        prefixes_at_once=5,
    )
    for found in (wide, exact):
        torch.testing.assert_close(found.ranked.scores, expected.values, atol=1e-4, rtol=0)
        assert torch.equal(found.ranked.items, expected.indices)


@pytest.mark.parametrize("num_beams", [2, 6])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_beams_equal_generate_with_a_prefix_function(family, num_beams):
    model = tiny_lm(family, sizes=SIZES)
    tokens, mask = prompts()
    codes = ALL[torch.randperm(60)[:25]]
    rows = [
        [int(level_token_ids(SIZES)[i][c]) for i, c in enumerate(row)] for row in codes.tolist()
    ]
    width = tokens.shape[1]

    def allowed(_, prefix):
        start = prefix.tolist()[width:]
        return sorted({row[len(start)] for row in rows if row[: len(start)] == start})

    order = torch.argsort(mask.byte(), dim=1, stable=True)  # generate wants its padding before
    made = model.generate(
        input_ids=tokens.gather(1, order),
        attention_mask=mask.gather(1, order).long(),
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
    step = new_steps(model, tokens, mask, over="vocabulary")
    found = beam_search(step, trie, num_beams=num_beams, top_k=num_beams, excluded=NOTHING)
    theirs = made.sequences[:, width:].view(4, num_beams, -1).tolist()
    ours = [[rows[item] for item in row] for row in found.ranked.items.tolist()]
    assert ours == theirs
    torch.testing.assert_close(
        found.ranked.scores, made.sequences_scores.view(4, num_beams), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_keys_of_a_prompt_are_kept_once_for_all_beams(family):
    model = tiny_lm(family, sizes=SIZES)
    tokens, mask = prompts()
    step = new_steps(model, tokens, mask, over="level")
    zeros = torch.zeros((4, 1), dtype=torch.long)
    step(0, zeros, zeros)
    step(1, zeros.expand(4, 5), torch.arange(5).expand(4, 5))
    shape = step._cache.layers[0].keys.shape
    assert shape == (4, 2, max(LENGTHS) + 5, 6)  # [request, key head, prompt + beams, head dim]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_and_neighbors_do_not_matter(family):
    model = tiny_lm(family, sizes=SIZES)
    tokens, mask = prompts()

    def second(tokens, mask):
        step = new_steps(model, tokens, mask, over="level")
        zeros = torch.zeros((len(tokens), 1), dtype=torch.long)
        step(0, zeros, zeros)
        return step(1, zeros.expand(-1, 5), torch.arange(5).expand(len(tokens), 5))

    together = second(tokens, mask)
    for row, length in enumerate(LENGTHS):
        alone = second(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_training_states_equal_those_of_the_plain_forward(family):
    model = tiny_lm(family, sizes=SIZES)
    tokens, mask = prompts()
    embed = model.get_input_embeddings()
    codes = torch.tensor([[7, 12], [8, 15], [9, 13], [11, 14]])
    found = states_before_codes(model, embed(tokens), mask, embed(codes))
    for row, length in enumerate(LENGTHS):
        line = torch.cat([tokens[row, :length], codes[row]])[None]
        expected = model.model(input_ids=line).last_hidden_state[0, length - 1 :]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_branches_equal_prompts_of_their_own(family):
    model = tiny_lm(family, sizes=SIZES)
    tokens, _ = prompts()
    embed = model.get_input_embeddings()
    branches = torch.randint(2, 19, (4, 3, 2))
    num_seen = torch.tensor([0, 3, 5])
    found = states_of_branches(model, embed(tokens), num_seen, embed(branches))
    for row in range(4):
        for branch, seen in enumerate(num_seen.tolist()):
            line = torch.cat([tokens[row, :seen], branches[row, branch]])[None]
            expected = model.model(input_ids=line).last_hidden_state[0, seen:]
            torch.testing.assert_close(found[row, branch], expected, atol=1e-5, rtol=0)


def test_training_mode_is_refused():
    model = tiny_lm("llama", sizes=SIZES).train()
    with pytest.raises(RuntimeError, match=r"needs model.eval\(\)"):
        new_steps(model, *prompts(), over="level")


def test_recurrent_models_are_refused():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, eos_token_id=1)
    with pytest.raises(ConfigError, match="MambaForCausalLM cannot generate Semantic IDs"):
        checked(MambaForCausalLM(config))


def test_heads_that_do_more_than_multiply_are_refused():
    model = tiny_lm("llama", sizes=SIZES)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(19.0))
    with pytest.raises(ConfigError, match="change its probabilities"):
        checked(model)
