from dataclasses import replace

import pytest
import torch

from sidrec.distributed import on_rank_zero
from sidrec.errors import ConfigError
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import ExtraLevel, ReassignLastLevel
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS
from sidrec.semantic_ids.pipeline import build_semantic_ids, fit_ids
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans
from sidrec.types import ItemEmbeddings
from tests.ranks import run_on_ranks

NUM_ITEMS = CHUNK_ROWS + 300
QUANTIZER = RqKMeans(
    num_refit_rounds=0,
    train_rows_per_code=None,
    codebook_sizes=(16, 16, 64),
    num_iterations=3,
    tolerance=0.0,
    num_redo=1,
    init="progressive",
    sample_rows_per_code=64,
    normalize_residuals=False,
    seed=1,
)


def make(policy):
    vectors = torch.randn(NUM_ITEMS, 8, generator=torch.Generator().manual_seed(2))
    return build_semantic_ids(
        ItemEmbeddings(vectors, "external", "f" * 64),
        quantizer=QUANTIZER,
        policy=policy,
        item_ids=[f"m{row}" for row in range(NUM_ITEMS)],
        titles=["title"] * NUM_ITEMS,
        source={},
        device=torch.device("cpu"),
    )


def test_items_keep_their_rows():
    bundle = make(ReassignLastLevel())
    assert bundle.items_of(bundle.semantic_id_of("m77")) == ["m77"]
    assert bundle.quality["ids/collision_rate"] == 0
    assert bundle.quality["ids/collision_rate_before"] > 0
    assert bundle.policy == {"name": "reassign_last_level", "capacity": 1}


def _fail():
    raise OSError(28, "No space left on device")


def _make_on_rank(rank, world_size, tmp_path):
    del world_size
    make(ReassignLastLevel()).save(tmp_path / f"rank-{rank}")
    with pytest.raises(ConfigError, match="share the same codes"):  # found on rank 0 alone
        make(ExtraLevel(num_codes=1))
    with pytest.raises(OSError, match="No space left"):
        on_rank_zero(_fail)


def test_two_ranks_make_the_bundle_of_one_and_share_errors(tmp_path):
    run_on_ranks(_make_on_rank, tmp_path)
    hashes = {SemanticIdBundle.load(tmp_path / f"rank-{rank}").hash for rank in range(2)}
    assert hashes == {make(ReassignLastLevel()).hash}


def test_embeddings_keep_their_encoder_and_corpus():
    vectors = torch.randn(40, 8)
    small = replace(QUANTIZER, codebook_sizes=(8, 8))
    how = {"quantizer": small, "policy": ReassignLastLevel()}
    bundle = fit_ids(ItemEmbeddings(vectors, "encoder", "corpus"), **how)
    assert (bundle.embeddings.encoder_hash, bundle.corpus_fingerprint) == ("encoder", "corpus")
    foreign = fit_ids(vectors, **how)
    assert foreign.embeddings.encoder_hash == "external"
    assert torch.equal(foreign.table.codes, bundle.table.codes)
