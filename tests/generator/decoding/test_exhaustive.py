"""The oracle scores everything, in blocks of any size, and wide beams agree with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import beam_search
from sidrec.generator.decoding.exhaustive import catalogue_scores, exact_search
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.trie import SemanticIdTrie, unpack
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import (
    TableSteps,
    catalogues,
    level_token_ids,
    table_of,
    tiny_t5,
    unhurried,
)


@unhurried
@given(catalogue=catalogues(), seed=st.integers(0, 99), block=st.integers(1, 5), data=st.data())
def test_wide_beams_equal_the_oracle(catalogue, seed, block, data):
    table = table_of(catalogue)
    width = len(table.codes)
    trie = SemanticIdTrie.from_table(table, torch.arange(width) % 3)
    item = st.integers(-1, width - 1)
    rows = data.draw(st.lists(st.lists(item, min_size=2, max_size=2), min_size=1, max_size=3))
    excluded = torch.tensor(rows)
    mass = None
    if data.draw(st.booleans()):
        generator = torch.Generator().manual_seed(seed)
        mass = torch.rand(len(rows), width + 1, generator=generator).double().cumsum(dim=1)

    def start():
        return TableSteps(table.codebook_sizes, len(rows), seed=seed)

    oracle = exact_search(
        start,
        trie,
        AllItemsBut.of(trie, excluded),
        num_requests=len(rows),
        top_k=width,
        prefixes_at_once=block,
        mass_before=mass,
    )
    beams = beam_search(
        start(), trie, num_beams=width, top_k=width, excluded=excluded, mass_before=mass
    )
    assert torch.equal(oracle.ranked.items, beams.ranked.items)
    torch.testing.assert_close(oracle.ranked.scores, beams.ranked.scores)


@unhurried
@given(catalogue=catalogues(), block=st.integers(1, 5))
def test_every_semantic_id_has_its_score(catalogue, block):
    table = table_of(catalogue)
    trie = SemanticIdTrie.from_table(table, None)
    steps = TableSteps(table.codebook_sizes, 2)
    scores, starts = catalogue_scores(
        lambda: TableSteps(table.codebook_sizes, 2), trie, num_requests=2, prefixes_at_once=block
    )
    ids = unpack(trie.keys[starts[:-1]], table.codebook_sizes).tolist()
    assert sorted(map(tuple, ids)) == sorted(set(map(tuple, table.codes.tolist())))
    for row in range(2):
        for place, semantic_id in enumerate(ids):
            own = steps.score(row, semantic_id)
            assert scores[row, place].item() == pytest.approx(own, abs=1e-5)


@torch.no_grad()
def test_a_t5_is_scored_as_wide_beams_score_it():
    sizes = (5, 4, 3)
    model = tiny_t5(sizes=sizes, gated=True, scaled=False)
    codes = torch.cartesian_prod(*(torch.arange(n) for n in sizes))[torch.randperm(60)[:33]]
    trie = SemanticIdTrie.from_table(SemanticIdTable(codes, sizes), None)
    source, mask = torch.randn(3, 4, 16), torch.ones(3, 4, dtype=torch.bool)
    decoder = T5Decoder(model, level_token_ids(sizes), normalize_over="level")
    nothing = torch.zeros((3, 0), dtype=torch.long)
    oracle = exact_search(
        lambda: decoder.start(source, mask),
        trie,
        AllItemsBut.of(trie, nothing),
        num_requests=3,
        top_k=40,
        prefixes_at_once=4,
    )
    step = decoder.start(source, mask)
    beams = beam_search(step, trie, num_beams=40, top_k=40, excluded=nothing)
    assert torch.equal(oracle.ranked.items, beams.ranked.items)
    torch.testing.assert_close(oracle.ranked.scores, beams.ranked.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0, "prefixes_at_once": 1}, "top_k must be at least 1, got 0"),
        ({"top_k": 1, "prefixes_at_once": 0}, "prefixes_at_once must be at least 1, got 0"),
    ],
)
def test_empty_lists_and_blocks_are_refused(settings, message):
    trie = SemanticIdTrie.from_table(SemanticIdTable(torch.tensor([[0]]), (2,)), None)
    nothing = torch.zeros((1, 0), dtype=torch.long)
    allowed = AllItemsBut.of(trie, nothing)
    with pytest.raises(ConfigError, match=message):
        exact_search(lambda: TableSteps((2,), 1), trie, allowed, num_requests=1, **settings)
