"""IDs of each task: what is shared is the same, what is a task's own says something about it."""

from dataclasses import replace

import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import ExtraLevel, KeepCollisions, ReassignLastLevel
from sidrec.semantic_ids.per_task.make_task_ids import prefix_share_ids, separate_ids
from sidrec.semantic_ids.per_task.prefix_share import PrefixShareSettings, fit_prefix_share
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import ItemEmbeddings
from tests.semantic_ids.test_callback import quantizer

SETTINGS = PrefixShareSettings(
    shared_codes=4,
    task_codes=4,
    latent_dim=6,
    hidden_dim=32,
    num_steps=120,
    batch_size=64,
    learning_rate=5e-3,
    commitment_weight=0.25,
    seed=0,
)
NUM_ITEMS = 120


@pytest.fixture(scope="module")
def vectors():
    """Groups: four that both tasks see, and in each task four of its own."""
    drawn = torch.Generator().manual_seed(0)

    def space(dim):
        shared, own = (3 * torch.randn(4, dim, generator=drawn) for _ in range(2))
        groups = torch.randint(4, (NUM_ITEMS,), generator=drawn)
        noise = 0.1 * torch.randn(NUM_ITEMS, dim, generator=drawn)
        return shared[torch.arange(NUM_ITEMS) % 4] + own[groups] + noise

    return {
        task: ItemEmbeddings(space(dim), f"hash of {task}", "c" * 64)
        for task, dim in (("search", 10), ("recommendation", 8))
    }


@pytest.fixture(scope="module")
def first(vectors):
    return made(vectors, KeepCollisions())


@pytest.fixture(scope="module")
def other(vectors):
    return made(vectors, KeepCollisions(), replace(SETTINGS, seed=1))


def made(vectors, policy, settings=SETTINGS):
    names = {"item_ids": [str(n) for n in range(NUM_ITEMS)], "titles": [""] * NUM_ITEMS}
    names["source"] = {}
    return prefix_share_ids(vectors, settings, policy=policy, **names)


def test_first_code_is_shared_and_second_is_not(vectors):
    ids = made(vectors, ExtraLevel(num_codes=NUM_ITEMS))
    search, recommendation = (bundle.table.codes for bundle in ids.bundles.values())
    assert torch.equal(search[:, 0], recommendation[:, 0])
    assert not torch.equal(search[:, 1], recommendation[:, 1])
    assert len(search.unique(dim=0)) == NUM_ITEMS


def test_codes_tell_more_than_none(vectors):
    fitted = fit_prefix_share(*(vectors[t].vectors for t in ("search", "recommendation")), SETTINGS)
    for task, error in fitted.errors.items():
        assert error < 0.8, task  # 1 is what a constant leaves
        codes = fitted.quantizers[task].encode(fitted.latents)
        assert len(codes[:, 0].unique()) > 1
        assert len(codes[:, 1].unique()) > 1


def test_a_seed_decides_everything(vectors, first, other):
    again = made(vectors, KeepCollisions())
    hashes = [bundles.bundles["search"].hash for bundles in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_separate_tasks_share_nothing(vectors, tmp_path):
    ids = separate_ids(
        vectors,
        quantizer=quantizer(),
        policy=ReassignLastLevel(),
        item_ids=[str(n) for n in range(NUM_ITEMS)],
        titles=[""] * NUM_ITEMS,
        source={},
        device=torch.device("cpu"),
    )
    ids.save(tmp_path / "ids")
    stored = TaskBundles.load(tmp_path / "ids")
    assert stored.num_shared_levels == 0
    for task, bundle in ids.bundles.items():
        assert stored.bundles[task].hash == bundle.hash
        assert torch.equal(bundle.embeddings.vectors, vectors[task].vectors)


def test_a_bundle_of_another_set_is_refused(first, other, tmp_path):
    first.save(tmp_path / "ids")
    other.bundles["search"].save(tmp_path / "ids" / "search")
    with pytest.raises(DataError, match="differs from the hash in"):
        TaskBundles.load(tmp_path / "ids")


def test_levels_that_should_be_shared_are_compared(first, other):
    mixed: dict[str, SemanticIdBundle] = {
        "search": first.bundles["search"],
        "recommendation": other.bundles["recommendation"],
    }
    with pytest.raises(DataError, match="first 1 levels of the two tasks differ"):
        TaskBundles(mixed, num_shared_levels=1)


def test_fewer_items_than_codes(vectors):
    with pytest.raises(ConfigError, match="120 items, fewer than the 500 codes"):
        made(vectors, KeepCollisions(), replace(SETTINGS, shared_codes=500))


def test_one_bundle_serves_both_tasks(first, tmp_path):
    first.bundles["search"].save(tmp_path / "ids")
    both = TaskBundles.load(tmp_path / "ids")
    assert both.is_common
    assert both.hash == first.bundles["search"].hash != first.hash
    assert both.quality == first.bundles["search"].quality


def test_quality_names_the_task_and_the_worse_collision_rate(first):
    bundles = {
        task: replace(bundle, quality=bundle.quality | {"ids/collision_rate": rate})
        for (task, bundle), rate in zip(first.bundles.items(), (0.2, 0.3), strict=True)
    }
    figures = TaskBundles(bundles, num_shared_levels=1).quality
    assert figures["ids/search/collision_rate"] == 0.2
    assert figures["ids/recommendation/collision_rate"] == figures["ids/collision_rate"] == 0.3


def test_a_generator_reads_items_as_one_vector_each(first, vectors):
    with pytest.raises(DataError, match=r"different item vectors.*--reader"):
        first.item_vectors  # noqa: B018
    read = first.read_as(vectors["search"])
    assert torch.equal(read.item_vectors, vectors["search"].vectors)
    for task, bundle in read.bundles.items():
        assert torch.equal(bundle.table.codes, first.bundles[task].table.codes)


def test_another_corpus_is_refused(first, tmp_path):
    first.save(tmp_path / "ids")
    with pytest.raises(DataError, match="another corpus"):
        TaskBundles.load(tmp_path / "ids", corpus_fingerprint="d" * 64)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"semantic_ids\.json"):
        TaskBundles.load(tmp_path)
