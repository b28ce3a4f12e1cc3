"""Searches have static shapes and read nothing back: what compilers and CUDA graphs need."""

import functools

import pytest
import torch
from jaxtyping import config
from torch._subclasses.fake_tensor import FakeTensorMode

from sidrec.generator.decoding.beam_search import Beams, advance, search_allowed
from sidrec.generator.decoding.diverse_beam_search import diverse_search
from sidrec.generator.decoding.item_filters import AllItemsBut
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.t5_decoder import T5Decoder
from sidrec.types import SemanticIdTable
from tests.generator.catalogues import OnlyItems, level_token_ids, tiny_t5

SIZES = (5, 4, 3)
NUM_REQUESTS, NUM_ITEMS = 2, 40


def made(device="cpu", *, max_dense_entries=1 << 20):
    """Return a trie whose lower levels may lack a table, a decoder, its source and its mask."""
    torch.manual_seed(0)
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    table = SemanticIdTable(every[torch.randperm(60)[:NUM_ITEMS]], SIZES)
    trie = SemanticIdTrie.from_table(table, None, max_dense_entries=max_dense_entries).to(device)
    model = tiny_t5(sizes=SIZES, gated=True, scaled=False).to(device)
    ids = [tokens.to(device) for tokens in level_token_ids(SIZES)]
    decoder = T5Decoder(model, ids, normalize_over="level")
    source = torch.randn(NUM_REQUESTS, 6, 16).to(device)
    return trie, decoder, source, torch.ones(NUM_REQUESTS, 6, dtype=torch.bool, device=device)


def allowed_sets(trie):
    gone = torch.tensor([[3, 5, -1], [0, 0, 7]]).to(trie.items.device)
    stock = (torch.arange(NUM_ITEMS) % 3 > 0).expand(NUM_REQUESTS, -1).to(trie.items.device)
    return {
        "all_but": AllItemsBut.of(trie, gone),
        "only": OnlyItems.of(trie, stock),
    }


SEARCHES = {
    "beam": functools.partial(search_allowed, num_requests=NUM_REQUESTS, num_beams=6, top_k=5),
    "diverse": functools.partial(
        diverse_search,
        num_requests=NUM_REQUESTS,
        num_beams=6,
        num_groups=3,
        diversity_penalty=0.5,
        top_k=5,
    ),
}


@pytest.mark.parametrize("kind", ["all_but", "only"])
@pytest.mark.parametrize("mode", list(SEARCHES))
def test_nothing_is_read_back_and_shapes_are_static(mode, kind):
    """A fake tensor has a shape and no numbers: whoever asks for a number is told so."""
    trie, decoder, source, mask = made(max_dense_entries=12)
    allowed = allowed_sets(trie)[kind]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        step = decoder.start(fake.from_tensor(source), fake.from_tensor(mask))
        found = SEARCHES[mode](step, trie, allowed)
    assert found.ranked.items.shape == (NUM_REQUESTS, 5)


@pytest.fixture
def _no_shape_checks():
    """The compiler cannot see through the checks that every test runs with."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_no_shape_checks")
@pytest.mark.parametrize("kind", ["all_but", "only"])
def test_the_catalogues_part_of_a_step_is_one_graph(kind):
    trie, _, _, _ = made()
    allowed = allowed_sets(trie)[kind]
    logits = torch.randn(NUM_REQUESTS, 1, SIZES[0]).log_softmax(dim=-1)
    mass = torch.rand(NUM_REQUESTS, NUM_ITEMS + 1).double().cumsum(dim=1)

    def one_step(scores, log_probabilities):
        beams = Beams.at_root(trie, NUM_REQUESTS)._replace(scores=scores)
        return advance(beams, log_probabilities, trie, allowed, level=0, width=4, mass_before=mass)

    compiled = torch.compile(one_step, backend="aot_eager", fullgraph=True, dynamic=False)
    expected = one_step(torch.zeros(NUM_REQUESTS, 1), logits)
    found = compiled(torch.zeros(NUM_REQUESTS, 1), logits)
    for ours, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(found[2], expected[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", list(SEARCHES))
def test_a_gpu_finds_what_the_cpu_finds(mode):
    found = {}
    for device in ("cpu", "cuda"):
        trie, decoder, source, mask = made(device)
        settings = {"seeds": torch.arange(NUM_REQUESTS).to(device)} if mode == "sampled" else {}
        allowed = allowed_sets(trie)["all_but"]
        found[device] = SEARCHES[mode](decoder.start(source, mask), trie, allowed, **settings)
    assert torch.equal(found["cpu"].ranked.items, found["cuda"].ranked.items.cpu())
    torch.testing.assert_close(
        found["cpu"].ranked.scores, found["cuda"].ranked.scores.cpu(), atol=1e-4, rtol=0
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_whole_search_is_one_cuda_graph():
    trie, decoder, source, mask = made("cuda")
    allowed = allowed_sets(trie)["all_but"]

    def search():
        return SEARCHES["beam"](decoder.start(source, mask), trie, allowed)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm-up outside of the capture
        search()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = search()
    source.copy_(torch.randn_like(source))  # other requests, same graph
    graph.replay()
    expected = search()
    assert torch.equal(captured.ranked.items, expected.ranked.items)
    torch.testing.assert_close(captured.ranked.scores, expected.ranked.scores)
