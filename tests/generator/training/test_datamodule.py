from collections.abc import Sequence
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.generator.training.datamodule import GeneratorDataModule, RequestBatches
from sidrec.training.numbered_batches import BatchNumber
from sidrec.types import Request
from tests.settings import made

SETTINGS = {
    "batch_size": 8,
    "evaluation__batch_size": 7,
    "search_share": 1.0,
    "recommendation_share": 1.0,
    "indexing_share": 0.25,
    "max_history_items": 5,
    "target_window": 1,
    "history_dropout": 0.0,
    "targets_per_user": None,
    "bucket_batches": 3,
    "valid_requests": None,
    "seed": 5,
}


@pytest.fixture
def make(corpus):
    return lambda **changes: made(
        GeneratorDataModule, **{"corpus": str(corpus.folder), **SETTINGS, **changes}
    )


def test_training_batches_hold_train_queries_and_their_items(make, corpus):
    module = make()
    batches = list(module.train_dataloader())
    assert len(batches) == module.steps_per_epoch
    queries = corpus.queries[:]
    rows = zip(queries["text"], queries["item_index"], queries["split"], strict=True)
    answers = {text: items for text, items, split in rows if split == "train"}
    texts, num_indexing, num_rows = corpus.item_texts(), 0, 0
    for batch in batches:
        for place, text in enumerate(batch.texts):
            target, indexed = batch.target[place].item(), batch.indexed_item[place].item()
            num_rows, num_indexing = num_rows + 1, num_indexing + (indexed >= 0)
            if indexed >= 0:
                assert (text, target) == (texts[indexed], indexed)
            else:
                assert target in answers[text]
                assert module.train_queries()[batch.text_rows[place]] == text
    assert num_indexing / num_rows == pytest.approx(0.25, abs=0.05)


def test_rows_of_texts_stay_on_the_host(make):
    module = make()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.target.device.type == "meta"
    assert moved.text_rows is batch.text_rows


def test_workers_change_nothing(make):
    pairs = zip(make().train_dataloader(), make(num_workers=2).train_dataloader(), strict=True)
    for alone, helped in pairs:
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
            for a, b in zip(alone, helped, strict=True)
        )


def test_a_task_can_be_switched_off(make):
    for off, task in (("recommendation_share", "search"), ("search_share", "recommendation")):
        module = make(**{off: 0.0})
        assert {batch.task for batch in module.train_dataloader()} == {task}
        assert module.trained_tasks == (task,)
    assert make().trained_tasks == ("search", "recommendation")


def test_batches_that_lightning_would_share_out_again_are_refused(make, monkeypatch):
    module, path = make(), "sidrec.generator.training.datamodule.rank_and_world_size"
    how = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    module.trainer = L.Trainer(**how)
    module.setup("fit")  # nobody to share with
    monkeypatch.setattr(path, lambda: (0, 2))
    with pytest.raises(ConfigError, match=r"Set trainer\.use_distributed_sampler to false"):
        module.setup("fit")
    module.trainer = L.Trainer(**how, use_distributed_sampler=False)
    module.setup("fit")


def test_every_request_is_asked_once_in_order(make):
    module = make()
    for loader, requests in zip(module.test_dataloader(), module.requests("test"), strict=True):
        rows = torch.cat([batch.request_rows for batch in loader])
        assert rows.tolist() == list(range(len(requests)))
    search, recommendation = (next(iter(loader)) for loader in module.test_dataloader())
    asked = module.requests("test")
    assert search.texts == [asked[0][row].query for row in range(7)]
    for row in range(7):
        history = asked[1][row].history
        assert recommendation.history[row][recommendation.history[row] >= 0].tolist() == list(
            history[-5:]
        )
        kept_out = recommendation.excluded[row]
        assert kept_out[kept_out >= 0].tolist() == list(history)


def test_validation_takes_so_many_spread_over_all(make):
    module = make(valid_requests=4)
    for loader, requests in zip(module.val_dataloader(), module.requests("valid"), strict=True):
        rows = torch.cat([batch.request_rows for batch in loader]).tolist()
        assert len(rows) == min(4, len(requests))
        assert rows[0] == 0
        assert rows[-1] == len(requests) - 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_whole_batches(make, monkeypatch, world_size):
    whole = [batch.request_rows.tolist() for batch in make().test_dataloader()[0]]
    shared = []
    for rank in range(world_size):
        monkeypatch.setattr(
            "sidrec.generator.training.datamodule.rank_and_world_size",
            lambda rank=rank: (rank, world_size),
        )
        shared += [batch.request_rows.tolist() for batch in make().test_dataloader()[0]]
    assert [rows for rows in shared if rows] == whole


@pytest.mark.parametrize("world_size", [2, 16])
def test_every_rank_has_a_batch_to_validate(make, monkeypatch, world_size):
    """Lightning leaves out the loop of a rank that has none, which leaves the others waiting."""
    answered = []
    for rank in range(world_size):
        monkeypatch.setattr(
            "sidrec.generator.training.datamodule.rank_and_world_size",
            lambda rank=rank: (rank, world_size),
        )
        for loader in make(valid_requests=3).val_dataloader():
            batches = list(loader)
            assert len(batches) == 1
            assert batches[0].target.dtype == torch.long
            answered += [(batches[0].task, row) for row in batches[0].request_rows.tolist()]
    assert len(answered) == len(set(answered)) == 6


def test_requests_are_made_when_asked_for():
    asked = []

    class Counted(Sequence):
        def __len__(self):
            return 100

        def __getitem__(self, place):
            asked.append(place)
            return Request(str(place), "search", "rain", (), (0,))

    batches = RequestBatches("search", Counted(), np.arange(100), 10, 5, exclude_history=True)
    assert len(batches) == 10
    asked.clear()  # the type checker looks at one
    assert batches[3].texts == ["rain"] * 10
    assert asked == list(range(30, 40))


def test_resume_begins_at_the_next_batch(make):
    module, expected = make(), list(make().train_dataloader())
    module.load_state_dict({"epoch": 0, "step": 6, **module.fixed_settings()})
    rest = list(module.train_dataloader())
    assert len(rest) == len(expected) - 6
    assert torch.equal(rest[0].request_rows, expected[6].request_rows)
    numbers = [number for [number] in module.train_dataloader().batch_sampler]
    assert numbers[0] == BatchNumber(0, 6)


def test_resume_refuses_other_batches(make):
    module = make()
    state = {"epoch": 1, "step": 5, **module.fixed_settings()}
    other = make(batch_size=4)
    with pytest.raises(ConfigError, match=r"keep batch_size 8 \(now 4\)"):
        other.load_state_dict(state)
    other.load_state_dict(state | {"step": 0})  # at the end of an epoch it may change
    for change in (
        {"history_dropout": 0.5},
        {"max_history_items": 3},
        {"target_window": 2},
        {"indexing_text": "words"},
    ):
        with pytest.raises(ConfigError, match=next(iter(change))):
            make(**change).load_state_dict(state)
    words = make(indexing_text="words")
    with pytest.raises(ConfigError, match=r"indexing_text words \(now None\)"):
        make().load_state_dict({"epoch": 1, "step": 5, **words.fixed_settings()})
    with pytest.raises(DataError, match="not the corpus"):
        module.load_state_dict(state | {"corpus": "another"})


def test_to_evaluate_a_run_nothing_of_its_training_has_to_match(make):
    state = {"epoch": 1, "step": 5, **make().fixed_settings()}
    other = make(batch_size=4, seed=9)
    other.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))
    other.load_state_dict(state)
    other.trainer.state.fn = "fit"
    with pytest.raises(ConfigError, match="keep batch_size"):
        other.load_state_dict(state)


def test_refusals(make, tmp_path):
    with pytest.raises(
        ConfigError, match=r"indexing_share is 1\.0, expected at least 0 and below 1"
    ):
        make(indexing_share=1.0)
    with pytest.raises(ConfigError, match="batch_size is 0, expected at least 1"):
        make(evaluation__batch_size=0)
    with pytest.raises(ConfigError, match="valid_requests is 0, expected at least 1"):
        make(valid_requests=0)
    with pytest.raises(ConfigError, match="one of them above 0"):
        make(search_share=0.0, recommendation_share=0.0).train_dataloader()
    for share in ("search_share", "indexing_share"):
        with pytest.raises(ConfigError, match="words needs search_share and indexing_share"):
            make(indexing_text="words", **{share: 0.0})
    with pytest.raises(DataError, match=r"corpus\.json"):
        make(corpus=str(tmp_path)).train_dataloader()
