import math

import pytest
import torch

from sidrec.semantic_ids.learned.vector_quantization import LfqCore, VqCore, assignment_entropy

SETTINGS = {
    "dim": 2,
    "decay": 0.5,
    "dead_code_share": 0.0,
    "commitment_weight": 1.0,
    "diversity_weight": 0.0,
    "diversity_temperature": 1.0,
    "synchronize": False,
}


def vq(**changes):
    return VqCore((2, 2), **(SETTINGS | changes))


def lfq(**changes):
    settings = {
        "num_levels": 2,
        "num_bits": 2,
        "entropy_weight": 0.0,
        "diversity_gamma": 1.0,
        "temperature": 1.0,
        "commitment_weight": 0.0,
    }
    return LfqCore(**(settings | changes))


def test_entropies_by_hand():
    codes = torch.tensor([[0.0], [10.0]])
    decided = assignment_entropy(torch.tensor([[0.0], [10.0]]), codes, temperature=1.0)
    assert decided.of_rows == pytest.approx(0.0, abs=1e-6)
    assert decided.of_mean == pytest.approx(math.log(2), abs=1e-6)
    torn = assignment_entropy(torch.tensor([[5.0]]), codes, temperature=1.0)
    assert torn.of_rows == pytest.approx(math.log(2), abs=1e-6)
    one_code = assignment_entropy(torch.tensor([[0.0], [1.0]]), codes, temperature=1.0)
    assert one_code.of_mean == pytest.approx(0.0, abs=1e-6)


def test_entropy_of_use_has_a_gradient_towards_even_use():
    rows = torch.tensor([[1.0], [1.5], [2.0]], requires_grad=True)
    use = assignment_entropy(rows, torch.tensor([[0.0], [10.0]]), temperature=10.0)
    (-use.of_mean).backward()
    assert (rows.grad < 0).all()  # descending, rows move up, toward the empty code


def test_signs_are_codes_by_hand():
    core = lfq()
    assert core.codebooks()[0].tolist() == [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    quantized = core(torch.tensor([[1.2, -0.7]]), batch_size=1, learn=True)
    # signs + -: code 2, leaves (.2, .3): signs + +: code 3 of half the size
    assert quantized.codes.tolist() == [[2, 3]]
    assert quantized.vectors.tolist() == [[1.5, -0.5]]


@pytest.mark.parametrize("core", [vq(), lfq()], ids=["vq", "lfq"])
def test_gradients_go_straight_through_once(core):
    latents = torch.randn(6, 2, requires_grad=True)
    quantized = core(latents, batch_size=6, learn=False)
    quantized.vectors.sum().backward()
    assert torch.equal(latents.grad, torch.ones(6, 2))


@pytest.mark.parametrize("core", [vq(), lfq()], ids=["vq", "lfq"])
def test_quantized_vectors_are_the_sum_of_their_codes(core):
    latents, books = torch.randn(20, 2), core.codebooks()
    quantized = core(latents, batch_size=20, learn=False)
    total = sum(book[quantized.codes[:, level]] for level, book in enumerate(books))
    torch.testing.assert_close(quantized.vectors, total)


def test_codebooks_start_at_k_means_and_then_follow_their_rows():
    centers = torch.tensor([[0.0, 0.0], [8.0, 0.0]])
    latents = centers.repeat_interleave(50, dim=0) + 0.01 * torch.randn(100, 2)
    core = vq().train()
    core.initialize(latents, batch_size=10, seed=0)
    first = core.codebooks()[0]
    assert sorted(first[:, 0].round().tolist()) == [0.0, 8.0]
    moved = latents + torch.tensor([1.0, 0.0])
    core(moved, batch_size=100, learn=False)
    assert torch.equal(core.codebooks()[0], first)  # not asked to learn
    for _ in range(20):
        core(moved, batch_size=100, learn=True)
    assert sorted(core.codebooks()[0][:, 0].round().tolist()) == [1.0, 9.0]


def test_a_dead_code_moves_to_a_row_and_only_if_asked_to():
    rows = torch.randn(50, 2)
    for share in (0.0, 0.5):
        core = vq(dead_code_share=share).train()
        book = core._books()[0]
        book.embed.copy_(torch.tensor([[[0.0, 0.0], [100.0, 100.0]]]))
        book.embed_avg.copy_(book.embed)
        for _ in range(4):
            core(rows, batch_size=50, learn=True)
        assert (core.codebooks()[0].abs().max() < 10) == (share > 0)


def test_commitment_and_diversity_pull_as_weighted():
    latents = torch.randn(30, 2)
    one, two = (vq(commitment_weight=weight).train() for weight in (1.0, 2.0))
    two.load_state_dict(one.state_dict())
    losses = [core(latents, batch_size=30, learn=False).loss for core in (one, two)]
    torch.testing.assert_close(losses[1], 2 * losses[0])
    even = vq(commitment_weight=0.0, diversity_weight=0.3).train()
    expected = sum(
        assignment_entropy(rows, book, temperature=1.0).of_mean
        for rows, book in [(latents, even.codebooks()[0])]
    )
    assert -even(latents, batch_size=30, learn=False).loss > 0.3 * expected - 1e-5


def test_lookup_free_loss_is_its_parts():
    latents, core = torch.randn(30, 2), lfq(entropy_weight=0.1, diversity_gamma=2.0)
    quantized, left, expected = core(latents, batch_size=30, learn=True), latents, 0.0
    for level, book in enumerate(core.codebooks()):
        both = assignment_entropy(left, book, temperature=1.0)
        expected += 0.1 * (both.of_rows - 2.0 * both.of_mean)
        left = left - book[quantized.codes[:, level]]
    torch.testing.assert_close(quantized.loss, expected)


def test_dead_codes_move_to_rows_of_their_own_and_the_rest_wait():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    core = VqCore((8,), **(SETTINGS | {"dead_code_share": 0.5, "decay": 0.0})).train()
    (book,) = core._books()
    book.embed.copy_(100.0 + torch.arange(8.0)[:, None].expand(8, 2))
    book.embed[0, 2] = rows[1]  # used by all rows
    core(rows, batch_size=8, learn=True)
    moved, counts = core.codebooks()[0], book.cluster_size[0].tolist()
    assert counts == [1.0, 1.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0]  # even: 1; three rows, seven dead
    assert sorted(moved[[0, 1, 3], 0].tolist()) == [1.0, 2.0, 3.0]
    assert torch.equal(book.embed_avg[0, [0, 1, 3]], moved[[0, 1, 3]])
