from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.bundle.append import append_items
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import ExtraLevel, KeepCollisions, ReassignLastLevel
from sidrec.semantic_ids.collisions.sinkhorn import SinkhornLastLevel
from sidrec.semantic_ids.pipeline import append_ids, fit_ids
from tests.semantic_ids.made import small_settings

POLICIES = [
    KeepCollisions(),
    ExtraLevel(num_codes=100),
    ReassignLastLevel(),
    ReassignLastLevel(capacity=3),
    SinkhornLastLevel(epsilon=0.05, num_iterations=10),
]


def old_bundle(policy, *, sizes=(4, 8, 16), num_items=120):
    vectors = torch.randn(num_items, 6, generator=torch.Generator().manual_seed(3))
    ids = [f"m{row}" for row in range(num_items)]
    return fit_ids(vectors, quantizer=small_settings(*sizes), policy=policy, item_ids=ids)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy.settings()))
def test_old_items_keep_ids_vectors_and_rows(policy, tmp_path):
    old = old_bundle(policy)
    old.save(tmp_path / "old")
    old = SemanticIdBundle.load(tmp_path / "old")
    extra = torch.cat([old.embeddings.vectors[:30], torch.randn(20, 6)])  # 30 are twins of old ones
    new = append_ids(old, extra, item_ids=[f"n{row}" for row in range(50)], titles=["T"] * 50)
    new.save(tmp_path / "new")
    new = SemanticIdBundle.load(tmp_path / "new")
    assert torch.equal(new.table.codes[:120], old.table.codes)
    assert torch.equal(new.embeddings.vectors[:120], old.embeddings.vectors)
    assert new.item_ids[:120] == old.item_ids
    assert new.semantic_id_of("m7") == old.semantic_id_of("m7")
    assert "n49" in new.items_of(new.semantic_id_of("n49"))
    for name, tensor in old.codebooks.items():
        assert torch.equal(new.codebooks[name], tensor)
    assert (new.quantizer, new.policy) == (old.quantizer, old.policy)
    assert new.table.codebook_sizes == old.table.codebook_sizes
    assert new.hash != old.hash
    assert new.corpus_fingerprint != old.corpus_fingerprint
    assert new.source["appended"] == [{"file": None, "num_items": 50}]
    capacity = {"none": 200, "extra_level": 1}.get(policy.settings()["name"])
    largest = capacity or policy.capacity
    assert new.quality["ids/largest_group"] <= largest


def test_appending_twice_goes_on_counting():
    bundle = fit_ids(
        torch.randn(20, 6), quantizer=small_settings(4, 8), policy=ExtraLevel(num_codes=9)
    )
    for _ in range(2):
        bundle = append_ids(bundle, torch.randn(5, 6))
    assert bundle.item_ids == [str(row) for row in range(30)]
    assert len(bundle.source["appended"]) == 2
    assert bundle.quality["ids/collision_rate"] == 0


def test_a_known_or_repeated_id_is_refused_by_row():
    bundle = old_bundle(KeepCollisions())
    with pytest.raises(DataError, match=r"'m3' \(row 1 of the new items.* in the bundle already"):
        append_ids(bundle, torch.randn(2, 6), item_ids=["x", "m3"])
    with pytest.raises(DataError, match=r"'x' \(row 1 of"):
        append_ids(bundle, torch.randn(2, 6), item_ids=["x", "x"])


def test_nothing_to_append_is_refused():
    with pytest.raises(DataError, match="no new items to append"):
        append_items(
            old_bundle(KeepCollisions()),
            torch.zeros(0, 6),
            item_ids=[],
            titles=[],
            source={},
            device=torch.device("cpu"),
        )


def test_what_does_not_fit_is_refused():
    bundle = old_bundle(ReassignLastLevel(), sizes=(4, 8, 4))
    with pytest.raises(DataError, match="have 5 dimensions, those of the bundle 6"):
        append_ids(bundle, torch.randn(2, 5))
    with pytest.raises(ConfigError, match=r"9 items do not fit .*128 distinct IDs, 120 places are"):
        append_ids(bundle, torch.randn(9, 6))
    assert append_ids(bundle, torch.randn(8, 6)).quality["ids/collision_rate"] == 0
    with pytest.raises(DataError, match="vectors row 1, counted from 0: the vector holds NaN"):
        append_ids(bundle, torch.tensor([[0.0] * 6, [float("nan")] * 6]))


@pytest.mark.parametrize("count", [119, 121])
def test_ids_and_titles_must_be_as_many_as_vectors(count):
    settings = {"quantizer": small_settings(4, 4), "policy": KeepCollisions()}
    with pytest.raises(DataError, match=f"{count} item_ids for 120 vectors"):
        fit_ids(torch.randn(120, 4), item_ids=["x"] * count, **settings)
    with pytest.raises(DataError, match=f"{count} titles for 120 vectors"):
        fit_ids(torch.randn(120, 4), titles=["x"] * count, **settings)


@pytest.mark.parametrize(
    "as_given",
    [
        lambda x: x.double(),
        lambda x: x.T.contiguous().T,
        lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        lambda x: x.numpy()[::-1][::-1],
        lambda x: np.asfortranarray(x.numpy()),
    ],
)
def test_any_strides_and_dtypes_give_the_same_bundle(as_given):
    vectors = torch.randn(60, 6)
    settings = {"quantizer": small_settings(8, 16), "policy": ReassignLastLevel()}
    plain = fit_ids(vectors, **settings)
    assert fit_ids(as_given(vectors), **settings).hash == plain.hash
    assert torch.equal(plain.encode(as_given(vectors)), plain.encode(vectors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_float32(dtype):
    vectors = torch.randn(60, 6).to(dtype)
    settings = {"quantizer": small_settings(8, 16), "policy": ReassignLastLevel()}
    assert fit_ids(vectors, **settings).hash == fit_ids(vectors.float(), **settings).hash
    bundle = fit_ids(vectors, **settings)
    assert bundle.embeddings.vectors.dtype == torch.float32
    assert torch.equal(bundle.encode(vectors), bundle.encode(vectors.float()))


def test_whole_numbers_and_wrong_shapes_are_refused():
    settings = {"quantizer": small_settings(4, 8), "policy": KeepCollisions()}
    with pytest.raises(DataError, match=r"vectors holds torch\.int64"):
        fit_ids(torch.ones(9, 2, dtype=torch.int64), **settings)
    with pytest.raises(DataError, match=r"vectors has shape \(9,\)"):
        fit_ids(torch.ones(9), **settings)


def test_a_read_only_mapped_array_is_taken_without_a_warning(tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(60, 4)).astype("float32"))
    array = np.load(tmp_path / "v.npy", mmap_mode="r")
    bundle = fit_ids(array, quantizer=small_settings(8, 16), policy=ReassignLastLevel())
    assert bundle.embeddings.vectors.data_ptr() == array.ctypes.data  # not a copy


def test_decode_ignores_the_level_that_only_counts():
    bundle = old_bundle(ExtraLevel(num_codes=100))
    codes = bundle.encode(bundle.embeddings.vectors)
    assert torch.equal(codes, bundle.table.codes[:, :3])
    assert torch.equal(bundle.decode(bundle.table.codes), bundle.decode(codes))
    lost = (bundle.embeddings.vectors - bundle.decode(codes)).square().sum()
    spread = (bundle.embeddings.vectors - bundle.embeddings.vectors.mean(dim=0)).square().sum()
    assert (lost / spread).item() == pytest.approx(bundle.quality["ids/relative_error"], rel=1e-4)
    assert bundle.decode(codes[:, :1]).shape == (120, 6)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy.settings()))
def test_constant_vectors_are_told_apart_or_counted(policy):
    bundle = fit_ids(torch.ones(60, 4), quantizer=small_settings(8, 16), policy=policy)
    bundle = append_ids(bundle, torch.ones(5, 4))
    largest = {"none": 65, "extra_level": 1}.get(policy.settings()["name"])
    assert bundle.quality["ids/largest_group"] == (largest or policy.capacity)
    assert bundle.quality["ids/identical_embeddings"] == 1
    assert bundle.quality["ids/relative_error_before"] == 0


def test_a_single_item_has_an_id():
    settings = {"quantizer": replace(small_settings(2, 2), shrink=True), "policy": POLICIES[2]}
    bundle = fit_ids(torch.ones(1, 4), **settings)
    assert bundle.items_of(bundle.semantic_id_of("0")) == ["0"]
