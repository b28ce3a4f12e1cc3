"""Modes of a trained generator: each finds what its engine finds, and refuses foreign numbers."""

import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import TableSteps

SIZES = (4, 3)


def search(decoding, *, num_beams, top_k):
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    trie = SemanticIdTrie.from_table(SemanticIdTable(every, SIZES), None)
    nothing = torch.zeros((2, 0), dtype=torch.long)
    return decoding.search(
        lambda: TableSteps(SIZES, 2, seed=0),
        trie,
        AllItemsBut.of(trie, nothing),
        num_requests=2,
        num_beams=num_beams,
        top_k=top_k,
        mass_before=None,
    )


def test_exact_takes_no_notice_of_the_width():
    wide = search(Decoding(), num_beams=12, top_k=12).ranked
    narrow = search(Decoding(), num_beams=1, top_k=1).ranked
    exact = search(Decoding("exact"), num_beams=1, top_k=12).ranked
    assert torch.equal(exact.items, wide.items)
    assert not torch.equal(narrow.items, wide.items[:, :1])  # greed errs here


def test_diverse_rounds_the_width_up_to_its_groups():
    decoding = Decoding("diverse", 4, 0.5)
    assert torch.equal(
        search(decoding, num_beams=5, top_k=5).ranked.items,
        search(decoding, num_beams=8, top_k=5).ranked.items,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("beam", 30), r"num_groups \(30\) and .* need decoding: diverse, got 'beam'"),
        (("exact", 1, 0.25), r"diversity_penalty \(0.25\) need decoding: diverse"),
    ],
)
def test_numbers_of_another_mode_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(*arguments)


@pytest.mark.parametrize(
    ("decoding", "num_beams", "top_k", "message"),
    [
        (
            Decoding(),
            3,
            4,
            r"num_beams \(3\) must be at least top_k \(4\)",
        ),
        (Decoding("diverse", 30, 0.25), 50, 30, r"num_groups \(30\) must divide num_beams \(50\)"),
        (Decoding("diverse", 2, -0.5), 4, 4, "diversity_penalty must be at least 0, got -0.5"),
    ],
)
def test_widths_that_do_not_fit_are_refused(decoding, num_beams, top_k, message):
    with pytest.raises(ConfigError, match=message):
        decoding.check_width(num_beams=num_beams, top_k=top_k)
