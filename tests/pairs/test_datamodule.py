import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.pairs.datamodule import PairDataModule
from sidrec.pairs.encoder_files import load_tokenizer
from sidrec.training.numbered_batches import BatchNumber, BatchNumberSampler
from tests.settings import made

SETTINGS = {
    "batch_size": 4,
    "max_query_tokens": 12,
    "max_item_tokens": 20,
    "query_item_share": 1.0,
    "item_item_share": 1.0,
    "query_rows": "query",
    "window_size": 3,
    "max_anchors_per_user": 50,
    "weighting": "uniform",
    "seed": 11,
}


@pytest.fixture
def make(corpus, encoder):
    def build(**changes):
        flat = {"corpus": str(corpus.folder), "encoder": encoder, **SETTINGS, **changes}
        return made(PairDataModule, **flat)

    return build


def same(one, other):
    flat = [[*b[:1], *b.left, *b.right, *b[3:]] for b in (one, other)]
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(*flat, strict=True)
    )


def test_batches_hold_the_texts_of_their_pairs(make, corpus):
    module = make()
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(batches) == module.steps_per_epoch
    assert {batch.task for batch in batches} == {"search", "recommendation"}
    texts, queries = corpus.item_texts(), corpus.queries[:]
    cut = load_tokenizer(module.tokens.encoder, revision=None)
    items_of = dict(zip(queries["text"], queries["item_index"], strict=True))
    decoded = {cut.decode(cut(q)["input_ids"][:12]): items for q, items in items_of.items()}
    batch = next(b for b in batches if b.task == "search")
    for row, item in enumerate(batch.right_item.tolist()):
        ids = cut(texts[item], truncation=True, max_length=20)["input_ids"]
        assert batch.right.ids[row][batch.right.mask[row]].tolist() == ids
        asked = cut.decode(batch.left.ids[row][batch.left.mask[row]])
        assert item in decoded[asked]
        assert item in batch.known_positives[row].tolist()


def test_only_train_pairs_appear(make, corpus):
    train = corpus.train_interactions()
    near = set()
    for user in range(corpus.num_users):
        items = train.item_index[train.user_starts[user] : train.user_starts[user + 1]].tolist()
        for place, item in enumerate(items):
            near |= {(item, other) for other in items[max(0, place - 3) : place + 4]}
    module = make(query_item_share=0.0)
    module.setup("fit")
    pairs = module.batches.item_item.draw(np.arange(300), seed=1, epoch=0)
    assert set(zip(pairs.left.tolist(), pairs.right_item.tolist(), strict=True)) <= near


def test_workers_change_nothing(make):
    alone, helped = make(), make(num_workers=2)
    alone.setup("fit")
    helped.setup("fit")
    for one, other in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert same(one, other)


def test_a_task_can_be_switched_off(make):
    for off, task in (("item_item_share", "search"), ("query_item_share", "recommendation")):
        module = make(**{off: 0.0})
        module.setup("fit")
        assert {batch.task for batch in module.train_dataloader()} == {task}


def test_sampler_begins_where_it_was_told_and_only_in_that_epoch():
    sampler = BatchNumberSampler(5, BatchNumber(2, 3))
    assert [number for [number] in sampler] == [(2, 3), (2, 4)]
    assert len(sampler) == 5
    sampler.sampler.set_epoch(3)
    assert [number for [number] in sampler] == [(3, step) for step in range(5)]


def test_refusals(make, tmp_path):
    with pytest.raises(ConfigError, match=r"max_item_tokens is 65, .* reads at most 64"):
        make(max_item_tokens=65).setup("fit")
    with pytest.raises(ConfigError, match=r"query_item_share is -1\.0, expected at least 0"):
        make(query_item_share=-1.0)
    with pytest.raises(ConfigError, match="both tasks are switched off"):
        make(query_item_share=0.0, item_item_share=0.0).setup("fit")
    with pytest.raises(DataError, match=r"corpus\.json"):
        make(corpus=str(tmp_path)).setup("fit")


def test_resume_refuses_other_batches(make):
    module = make()
    module.setup("fit")
    state = {"epoch": 1, "step": 5, **module.fixed_settings()}
    other = make(batch_size=2)
    other.setup("fit")
    with pytest.raises(ConfigError, match=r"keep batch_size 4 \(now 2\)"):
        other.load_state_dict(state)
    other.load_state_dict(state | {"step": 0})  # at the end of an epoch it may change
    with pytest.raises(DataError, match="not the corpus"):
        module.load_state_dict(state | {"corpus": "another"})


def test_batches_travel_to_a_loader_process_without_their_files(make):
    """Memory maps are opened anew there."""
    batches = make().batches
    received = pickle.loads(bytes(ForkingPickler.dumps(batches)))  # noqa: S301
    assert isinstance(received.item_item.interactions.item_index, np.memmap)
    for step in range(len(batches)):
        assert same(batches[BatchNumber(0, step)], received[BatchNumber(0, step)])
