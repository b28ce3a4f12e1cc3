"""Any encoder-decoder of transformers steps through the engine as its own generate does."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5EncoderModel
from transformers.modeling_outputs import BaseModelOutput

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.seq2seq import Seq2SeqDecoder
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import END, FIRST_CODE, PAD, level_token_ids, tiny_t5

SIZES = (5, 4, 3)


def tiny_bart():
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=FIRST_CODE + sum(SIZES) + 1,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        init_std=0.5,
        pad_token_id=PAD,
        bos_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config).eval()


def sources(num_requests, *, num_tokens=6):
    states = torch.randn(num_requests, num_tokens, 16)
    mask = torch.arange(num_tokens) < torch.randint(1, num_tokens + 1, (num_requests, 1))
    mask[0] = True
    return states, mask


def random_codes(num_items):
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    return every[torch.randperm(len(every))[:num_items]]


@pytest.mark.parametrize("num_beams", [2, 6])
@pytest.mark.parametrize(
    "make", [tiny_bart, lambda: tiny_t5(sizes=SIZES, gated=True, scaled=False)]
)
@torch.no_grad()
def test_beams_equal_generate_with_a_prefix_function(make, num_beams):
    model, codes, ids = make(), random_codes(25), level_token_ids(SIZES)
    states, mask = sources(4)
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
    step = Seq2SeqDecoder(model, ids, normalize_over="vocabulary").start(states, mask)
    nothing = torch.zeros((4, 0), dtype=torch.long)
    found = beam_search(step, trie, num_beams=num_beams, top_k=num_beams, excluded=nothing)
    theirs = made.sequences[:, 1:].view(4, num_beams, -1).tolist()
    assert [[rows[item] for item in row] for row in found.ranked.items.tolist()] == theirs
    torch.testing.assert_close(
        found.ranked.scores, made.sequences_scores.view(4, num_beams), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("over", ["level", "vocabulary"])
@torch.no_grad()
def test_a_t5_gives_the_numbers_of_its_own_decoder(over):
    model, codes = tiny_t5(sizes=SIZES, gated=False, scaled=True), random_codes(30)
    states, mask = sources(3)
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, SIZES), None)
    nothing = torch.zeros((3, 0), dtype=torch.long)
    found = []
    for kind in (T5Decoder, Seq2SeqDecoder):
        step = kind(model, level_token_ids(SIZES), normalize_over=over).start(states, mask)
        found.append(beam_search(step, trie, num_beams=7, top_k=7, excluded=nothing))
    assert torch.equal(found[0].ranked.items, found[1].ranked.items)
    torch.testing.assert_close(found[0].ranked.scores, found[1].ranked.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [T5Decoder, Seq2SeqDecoder])
@torch.no_grad()
def test_a_task_has_codes_of_its_own(kind):
    """One vocabulary, two code spaces: search writes the first codes, recommendation the last."""
    both = (5, 4, 5, 4)
    model = tiny_t5(sizes=both, gated=True, scaled=False)
    tokens = level_token_ids(both)
    spaces = {"search": tokens[:2], "recommendation": tokens[2:]}
    decoder = kind(model, spaces["search"], normalize_over="level")
    states, mask = sources(2)
    nothing = torch.zeros((2, 0), dtype=torch.long)
    for task, own in spaces.items():
        codes = torch.cartesian_prod(torch.arange(5), torch.arange(4))[torch.randperm(20)[:9]]
        trie = SemanticIdTrie.from_table(SemanticIdTable(codes, (5, 4)), None)
        step = decoder.start(states, mask, level_token_ids=own)
        found = beam_search(step, trie, num_beams=9, top_k=9, excluded=nothing)
        alone = kind(model, own, normalize_over="level").start(states, mask)
        expected = beam_search(alone, trie, num_beams=9, top_k=9, excluded=nothing)
        assert torch.equal(found.ranked.scores, expected.ranked.scores), task
        assert (found.ranked.items >= 0).all()
    first = decoder.start(states, mask)(0, nothing.new_zeros(2, 1), nothing.new_zeros(2, 1))
    second = decoder.start(states, mask, level_token_ids=spaces["recommendation"])(
        0, nothing.new_zeros(2, 1), nothing.new_zeros(2, 1)
    )
    assert not torch.allclose(first, second)


@torch.no_grad()
def test_padding_and_neighbors_do_not_matter():
    codes, ids = random_codes(30), level_token_ids(SIZES)
    decoder = Seq2SeqDecoder(tiny_bart(), ids, normalize_over="level")
    states, mask = sources(3)
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, SIZES), None)
    nothing = torch.zeros((3, 0), dtype=torch.long)
    step = decoder.start(states, mask)
    together = beam_search(step, trie, num_beams=5, top_k=5, excluded=nothing)
    for row in range(3):
        length = int(mask[row].sum())
        step = decoder.start(states[row : row + 1, :length], mask[row : row + 1, :length])
        alone = beam_search(step, trie, num_beams=5, top_k=5, excluded=nothing[:1])
        assert torch.equal(alone.ranked.items[0], together.ranked.items[row])
        torch.testing.assert_close(
            alone.ranked.scores[0], together.ranked.scores[row], atol=1e-5, rtol=0
        )


def test_training_mode_is_refused():
    decoder = Seq2SeqDecoder(tiny_bart().train(), level_token_ids(SIZES), normalize_over="level")
    with pytest.raises(RuntimeError, match=r"needs model.eval\(\)"):
        decoder.start(*sources(2))


def test_missing_start_token_is_refused():
    model = tiny_bart()
    model.config.decoder_start_token_id = None
    with pytest.raises(ConfigError, match="no decoder_start_token_id"):
        Seq2SeqDecoder(model, level_token_ids(SIZES), normalize_over="level")


def test_a_model_without_decoder_is_refused():
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    config.is_encoder_decoder = False
    with pytest.raises(ConfigError, match="T5EncoderModel is not an encoder-decoder"):
        Seq2SeqDecoder(T5EncoderModel(config), level_token_ids(SIZES), normalize_over="level")
