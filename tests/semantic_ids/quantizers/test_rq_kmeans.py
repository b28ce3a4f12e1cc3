from dataclasses import replace

import pytest
import torch

from sidrec.distributed import gather_rows
from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS, block_of_rank
from sidrec.semantic_ids.quality.id_metrics import level_usage, relative_error
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans, fit_rq_kmeans
from tests.ranks import run_on_ranks

SETTINGS = RqKMeans(
    num_refit_rounds=0,
    train_rows_per_code=None,
    codebook_sizes=(16, 12, 8),
    num_iterations=8,
    tolerance=0.0,
    num_redo=1,
    init="progressive",
    sample_rows_per_code=64,
    normalize_residuals=False,
    seed=1,
)


def encode_by_hand(vectors, fitted):
    """The definition, item by item, with no vectorization."""
    rows = []
    for vector in vectors:
        decoded, row = torch.zeros_like(vector), []
        for level, codebook in enumerate(fitted.codebooks):
            residual = vector - decoded
            if fitted.normalized and level > 0:
                residual = residual / residual.norm()
            row.append(min(range(len(codebook)), key=lambda c: (residual - codebook[c]).norm()))
            length = fitted.lengths[level][row[-2]] if fitted.normalized and level > 0 else 1.0
            decoded = decoded + length * codebook[row[-1]]
        rows.append(row)
    return torch.tensor(rows)


def test_each_level_quantizes_what_is_left():
    codebooks = (torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    fitted = FittedRqKMeans(codebooks, (torch.ones(1), torch.ones(2)), normalized=False)
    assert fitted.encode(torch.tensor([[0.1, 0.9], [9.8, 0.1]])).tolist() == [[0, 1], [1, 0]]
    assert fitted.decode(torch.tensor([[1, 1]])).tolist() == [[10.0, 1.0]]


def test_stored_lengths_scale_directions_by_hand():
    codebooks = (torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    fitted = FittedRqKMeans(codebooks, (torch.ones(1), torch.tensor([2.0, 3.0])), normalized=True)
    assert fitted.encode(torch.tensor([[0.1, 0.9], [10.0, 4.0]])).tolist() == [[0, 1], [1, 1]]
    assert fitted.decode(torch.tensor([[0, 1], [1, 1]])).tolist() == [[0.0, 2.0], [10.0, 3.0]]


def test_fitted_lengths_are_the_mean_norm_where_directions_are_exact():
    # around each of two far cells, residuals of lengths 1 and 3 in two opposite directions
    around = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0], [-3.0, 0.0]]).repeat(4, 1)
    vectors = torch.cat([around + torch.tensor([0.0, 90.0]), 2 * around])
    settings = replace(SETTINGS, codebook_sizes=(2, 2), normalize_residuals=True)
    fitted = fit_rq_kmeans(vectors, settings)
    assert sorted(fitted.lengths[1].tolist()) == pytest.approx([2.0, 4.0], rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("init", ["greedy-mixed", "mixed", "k-means++", "progressive"])
def test_encode_agrees_with_definition_and_decode_gets_nearer(normalize, init):
    vectors = torch.randn(300, 6)
    settings = replace(SETTINGS, normalize_residuals=normalize, init=init)
    fitted = fit_rq_kmeans(vectors, settings)
    codes = fitted.encode(vectors)
    assert codes[:60].equal(encode_by_hand(vectors[:60], fitted))
    errors = [relative_error(vectors, codes[:, :levels], fitted) for levels in (1, 2, 3)]
    assert 1 > errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("normalize", [False, True])
def test_candidate_errors_are_those_of_decoding(normalize):
    vectors = torch.randn(200, 6)
    fitted = fit_rq_kmeans(vectors, replace(SETTINGS, normalize_residuals=normalize))
    codes = fitted.encode(vectors)
    errors = fitted.next_code_errors(vectors, codes[:, :1])
    tried = torch.cat([codes[:, :1], torch.full((200, 1), 5)], dim=1)
    expected = (vectors - fitted.decode(tried)).square().sum(dim=1)
    torch.testing.assert_close(errors[:, 5], expected, rtol=1e-4, atol=1e-5)


def test_a_beam_as_wide_as_all_prefixes_finds_the_best_code():
    vectors = torch.randn(60, 4)
    few = replace(SETTINGS, codebook_sizes=(4, 3, 5), beam_width=12)
    for normalize in (False, True):
        fitted = fit_rq_kmeans(vectors, replace(few, normalize_residuals=normalize))
        every = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(5))
        errors = torch.cdist(vectors, fitted.decode(every))
        best = errors.min(dim=1).values
        codes = fitted.encode(vectors)
        torch.testing.assert_close(
            (vectors - fitted.decode(codes)).norm(dim=1), best, rtol=0, atol=3e-3
        )
        tied = fitted.encode_from_prefix(vectors, codes[:, :1].roll(1, 0))
        assert tied[:, 0].equal(codes[:, 0].roll(1))


def test_wider_beams_lose_less_and_are_stored():
    vectors = torch.randn(500, 6)
    lost = []
    for width in (1, 2, 8):
        fitted = fit_rq_kmeans(vectors, replace(SETTINGS, beam_width=width))
        again = FittedRqKMeans.from_tensors(fitted.tensors())
        codes = again.encode(vectors)
        assert codes.equal(fitted.encode(vectors))
        lost.append(relative_error(vectors, codes, fitted))
    assert lost[0] > lost[1] > lost[2]


@pytest.mark.parametrize("init", ["greedy-mixed", "k-means++", "central"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_large_common_offset_changes_no_code(init, normalize):
    vectors = (torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * 64).round() / 64
    settings = replace(SETTINGS, init=init, normalize_residuals=normalize, num_iterations=10)
    centered = vectors - vectors.mean(dim=0)
    plain = fit_rq_kmeans(centered, settings)
    moved = fit_rq_kmeans(vectors + 10_000, settings)  # exact in float32
    codes = plain.encode(centered)
    assert (moved.encode(vectors + 10_000) == codes).all(dim=1).float().mean() > 0.99
    again = FittedRqKMeans.from_tensors(moved.tensors())
    torch.testing.assert_close(again.decode(codes), plain.decode(codes) + moved.offset)
    errors = moved.next_code_errors(vectors + 10_000, codes[:, :1])
    assert torch.equal(
        errors.argmin(dim=1), plain.next_code_errors(centered, codes[:, :1]).argmin(1)
    )


def test_same_seed_same_codebooks_other_seed_others():
    vectors = torch.randn(300, 6)
    first, second = (fit_rq_kmeans(vectors, SETTINGS) for _ in range(2))
    other = fit_rq_kmeans(vectors, replace(SETTINGS, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(first.codebooks, second.codebooks, strict=True))
    assert not torch.equal(first.codebooks[0], other.codebooks[0])


def test_of_several_runs_the_best_is_kept():
    vectors = torch.randn(400, 6)
    gains = []
    for seed in range(4):
        one = replace(SETTINGS, codebook_sizes=(16,), init="k-means++", seed=seed)
        runs = [fit_rq_kmeans(vectors, replace(one, num_redo=n)) for n in (1, 6)]
        errors = [relative_error(vectors, fitted.encode(vectors), fitted) for fitted in runs]
        gains.append(errors[0] - errors[1])
    assert max(gains) > 0.001
    assert min(gains) > -0.002  # runs are compared before their last step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_strides_do_not_matter(dtype):
    vectors = torch.randn(6, 300).to(dtype).T  # not contiguous
    fitted = fit_rq_kmeans(vectors, SETTINGS)
    plain = fit_rq_kmeans(vectors.float().contiguous(), SETTINGS)
    assert torch.equal(fitted.encode(vectors), plain.encode(vectors.float().contiguous()))


@pytest.mark.parametrize("normalize", [False, True])
def test_constant_and_zero_vectors_have_codes_and_no_error(normalize):
    settings = replace(SETTINGS, normalize_residuals=normalize)
    for vectors in (torch.full((40, 6), 0.3), torch.zeros(40, 6)):
        fitted = fit_rq_kmeans(vectors, settings)
        codes = fitted.encode(vectors)
        assert len(codes.unique(dim=0)) == 1
        torch.testing.assert_close(fitted.decode(codes), vectors)
        assert relative_error(vectors, codes, fitted) == 0.0


def test_stored_tensors_build_the_same_quantizer():
    vectors = torch.randn(300, 6)
    fitted = fit_rq_kmeans(vectors, replace(SETTINGS, normalize_residuals=True))
    again = FittedRqKMeans.from_tensors(fitted.tensors())
    assert again.normalized
    assert again.beam_width == 1
    assert torch.equal(again.decode(fitted.encode(vectors)), fitted.decode(again.encode(vectors)))


@pytest.mark.parametrize("names", [("mixed", "central"), ("greedy-mixed", "greedy")])
def test_a_mixed_start_differs_from_its_first_one_at_the_last_level(names):
    vectors = torch.randn(300, 6)
    mixed, first = (fit_rq_kmeans(vectors, replace(SETTINGS, init=name)) for name in names)
    assert all(mixed.codebooks[level].equal(first.codebooks[level]) for level in (0, 1))
    assert not mixed.codebooks[2].equal(first.codebooks[2])


@pytest.mark.parametrize("init", ["central", "greedy", "progressive"])
def test_levels_stay_even_on_clustered_vectors(init):
    centers = torch.randn(8, 32) * 4
    vectors = centers[torch.randint(8, (3000,))] + torch.randn(3000, 32)
    fitted = fit_rq_kmeans(vectors, replace(SETTINGS, codebook_sizes=(32, 32, 32), init=init))
    codes = fitted.encode(vectors)
    perplexities = [level_usage(codes[:, n], num_codes=32)["perplexity"] for n in range(3)]
    assert min(perplexities) > 20


def test_few_items_are_refused_with_numbers_or_shrink():
    with pytest.raises(ConfigError, match=r"12 items, fewer than the 16 codes .* shrink: true"):
        fit_rq_kmeans(torch.randn(12, 6), SETTINGS)
    fitted = fit_rq_kmeans(torch.randn(10, 6), replace(SETTINGS, shrink=True))
    assert fitted.codebook_sizes == (10, 10, 8)


def test_not_finite_rows_are_named():
    vectors = torch.randn(5000, 6)
    vectors[[3, 4500]] = torch.tensor([[torch.nan], [torch.inf]])
    with pytest.raises(DataError, match=r"2 vectors .*first rows: \[3, 4500\]"):
        fit_rq_kmeans(vectors, SETTINGS)
    fitted = fit_rq_kmeans(torch.randn(50, 6), SETTINGS)
    with pytest.raises(DataError, match=r"first rows: \[4500\]"):
        fitted.encode(vectors.nan_to_num(nan=0.0, posinf=torch.inf))


def test_empty_catalogue_and_wrong_width_are_refused():
    with pytest.raises(DataError, match="no vectors"):
        fit_rq_kmeans(torch.zeros(0, 6), SETTINGS)
    with pytest.raises(DataError, match="5 dimensions but the codebooks 6"):
        fit_rq_kmeans(torch.randn(50, 6), SETTINGS).encode(torch.randn(3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_sizes": ()}, "one size per level"),
        ({"codebook_sizes": (256, 40_000)}, "from 2 to 32768"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"init": "pca"}, r"init is 'pca', expected one of greedy-mixed, greedy, mixed"),
        ({"beam_width": 0}, "beam_width is 0, expected at least 1"),
        ({"train_rows_per_code": 0}, "train_rows_per_code is 0"),
        ({"num_refit_rounds": -1}, "num_refit_rounds is -1, expected at least 0"),
        ({"backend": "jax"}, "backend is 'jax', expected auto, torch, faiss"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    known = {name: getattr(SETTINGS, name) for name in SETTINGS.__slots__}
    with pytest.raises(ConfigError, match=message):
        _unchecked(**(known | change))


def _unchecked(**settings):
    """Build without the type checker of the test run: YAML brings such values too."""
    quantizer = object.__new__(RqKMeans)
    for name, value in settings.items():
        object.__setattr__(quantizer, name, value)
    quantizer.__post_init__()


def _vectors():
    generator = torch.Generator().manual_seed(5)
    centers = torch.randn(30, 24, generator=generator) * 2
    which = torch.randint(30, (2 * CHUNK_ROWS + 500,), generator=generator)
    return centers[which] + torch.randn(len(which), 24, generator=generator)


def _fit_block(rank, world_size, tmp_path):
    vectors = _vectors()
    start, stop = block_of_rank(len(vectors))
    assert stop - start < len(vectors)
    for number, settings in enumerate(_varied()):
        fitted = fit_rq_kmeans(vectors[start:stop], settings)
        found = fitted.tensors() | {"codes": gather_rows(fitted.encode(vectors[start:stop]))}
        torch.save(found, tmp_path / f"{rank}-{number}.pt")
    with pytest.raises(ValueError, match="cut them with block_of_rank"):
        fit_rq_kmeans(vectors[rank * 100 : rank * 100 + 100], SETTINGS)
    with pytest.raises(ConfigError, match=f"backend is 'faiss', but there are {world_size} ranks"):
        fit_rq_kmeans(vectors[start:stop], replace(SETTINGS, backend="faiss"))
    vectors[CHUNK_ROWS * 2 + 7] = torch.nan
    with pytest.raises(DataError, match=rf"first rows: \[{CHUNK_ROWS * 2 + 7}\]"):
        fit_rq_kmeans(vectors[start:stop], SETTINGS)  # every rank raises, none waits


def _varied():
    few = replace(SETTINGS, num_iterations=4, init="central")
    return [
        replace(few, beam_width=2, num_refit_rounds=2),
        replace(few, init="progressive", train_rows_per_code=300),  # 4,800 of 8,692 rows
        replace(few, init="k-means++", normalize_residuals=True, num_refit_rounds=1),
        replace(few, init="greedy-mixed", num_refit_rounds=2, train_rows_per_code=300),
    ]


@pytest.mark.parametrize(
    "world_size",
    [2, pytest.param(4, marks=pytest.mark.slow)],  # of four, one holds no row
)
def test_ranks_give_the_codes_of_one(tmp_path, world_size):
    run_on_ranks(_fit_block, tmp_path, world_size=world_size)
    for number, settings in enumerate(_varied()):
        fitted = fit_rq_kmeans(_vectors(), settings)
        alone = fitted.tensors() | {"codes": fitted.encode(_vectors())}
        for rank in range(world_size):
            found = torch.load(tmp_path / f"{rank}-{number}.pt")
            assert all(torch.equal(found[name], alone[name]) for name in alone)
