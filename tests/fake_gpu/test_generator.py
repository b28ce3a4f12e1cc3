"""Training step, searches and prior of the generator on a pretended GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sidrec.encoder.tower import TextTower
from sidrec.generator.decoding.item_filters import Restriction, SharedSet, allowed_items
from sidrec.generator.decoding.search_strategy import Decoding
from sidrec.generator.model.calibrate import calibrate, gain_over_prior
from sidrec.generator.model.generator_settings import GeneratorLossSettings
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.generator.scorers.next_item import Linear, NextItemScorer
from sidrec.generator.scorers.scorer import ScorerQuery
from sidrec.generator.training.load_generator import TrainedGenerator
from sidrec.generator.training.module import JointGenerator
from sidrec.pairs.sentence_embedding import SentenceEmbedding
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import Request
from tests.fake_gpu.device import GPU, move, pretended_gpu, to_gpu
from tests.generator.causal.models import causal_generator
from tests.generator.made import (
    DIM,
    generator_of_own_ids,
    histories,
    make_bundle,
    searches,
    tiny_generator,
)
from tests.generator.model.test_generator_model import with_prior

SEARCH = searches("a heist film in paris", "rain", "space opera", answers=[3, 0, 7])
HISTORY = histories([1, 2], [4], [5, 6, 7], answers=[9, 11, 3])._replace(
    user_index=torch.tensor([0, 3, 4])
)
BATCHES = {"search": SEARCH, "recommendation": HISTORY}


class StoredStates:
    """Token states that the host looks up; their rows must not have to be fetched."""

    def gather(self, rows):
        assert rows.device.type == "cpu"
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(len(rows), 4, DIM, generator=generator).bfloat16()
        return states, torch.arange(4) < torch.tensor([4, 2, 3])[:, None]


def with_states():
    tower = TextTower.__new__(TextTower)
    nn.Module.__init__(tower)
    tower.model = SimpleNamespace(config=SimpleNamespace(hidden_size=DIM))
    tower.embedding = SentenceEmbedding()
    model = tiny_generator(text_input="encoder_states", tower=tower, history_input="items")
    model.embedder.states = StoredStates()
    return model


MODELS = {
    "codes": tiny_generator,
    "own ids": generator_of_own_ids,
    "items, states": with_states,
    "prior": lambda: with_prior(tiny_generator(history_input="items"), dropout=0.5),
    "causal": lambda: causal_generator(history_input="items"),
    "causal, all positions": lambda: causal_generator(all_positions=True),
}
NUM_READS = {("causal, all positions", "recommendation"): 1}  # which places hold items, at first


def stepper(model, monkeypatch):
    """Return the Lightning module around a model, without a trainer."""
    module = JointGenerator(
        "never loaded", "no encoder", loss=GeneratorLossSettings(label_smoothing=0.1)
    )
    module.model = model
    data = SimpleNamespace(seed=1, corpus=SimpleNamespace(item_ids=list))
    module._trainer = SimpleNamespace(datamodule=data, current_epoch=0, global_rank=0)
    monkeypatch.setattr(module, "_data", lambda: data)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    return module


def one_step(module, batch):
    """Take a step as Lightning does; return the loss and the gradients."""
    module.zero_grad()
    module.on_train_batch_start(batch, 0)
    loss = module.training_step(batch, 0)
    loss.backward()
    module.guard.check(module.parameters())  # before the optimizer's step
    gradients = [one.grad.detach().clone() for one in module.parameters()]
    return loss.detach(), gradients


@pytest.mark.parametrize("task", list(BATCHES))
@pytest.mark.parametrize("kind", list(MODELS))
def test_a_training_step_waits_for_nothing_and_learns_what_the_cpu_learns(kind, task, monkeypatch):
    module = stepper(MODELS[kind]().train(), monkeypatch)
    batch = BATCHES[task]
    expected, gradients = one_step(module, batch)
    with pretended_gpu() as gpu:
        move(module)
        moved = to_gpu(batch)._replace(text_rows=batch.text_rows)
        one_step(module, moved)  # the first one builds the prefixes of the catalogue
        gpu.reset()
        loss, found = one_step(module, moved)
        assert gpu.num_reads == NUM_READS.get((kind, task), 0), gpu.places
        assert set(gpu.any_order) <= {"scatter_add", "index_put"}  # gradients, see deterministic
        torch.testing.assert_close(loss.cpu(), expected)
        for ours, theirs in zip(found, gradients, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-4)


def test_the_optimizer_waits_for_nothing(monkeypatch):
    with pretended_gpu() as gpu:
        module = move(stepper(tiny_generator().train(), monkeypatch))
        optimizer = torch.optim.AdamW(module.parameters())
        one_step(module, to_gpu(HISTORY))
        optimizer.step()
        gpu.reset()
        optimizer.step()
        assert not gpu.reads, gpu.places


DECODINGS = {"beam": Decoding(), "diverse": Decoding("diverse", 5, 0.5), "exact": Decoding("exact")}


@pytest.mark.parametrize("has_prior", [False, True])
@pytest.mark.parametrize("mode", list(DECODINGS))
def test_answers_are_the_cpus_and_the_loop_over_levels_reads_nothing(mode, has_prior):
    model = tiny_generator(history_input="items")
    model = with_prior(model) if has_prior else model
    model.decoding = DECODINGS[mode]
    expected = [model.answer(batch, num_beams=10, top_k=5) for batch in BATCHES.values()]
    with pretended_gpu() as gpu:
        move(model)
        moved = [to_gpu(batch) for batch in BATCHES.values()]
        model.answer(moved[0], num_beams=10, top_k=5)
        gpu.reset()
        found = [model.answer(batch, num_beams=10, top_k=5) for batch in moved]
        in_loops = [p for p in gpu.places if p.split(".")[0] in ("beam_search", "t5_decoder")]
        assert not in_loops
        if mode == "beam":  # a batch: whether lists are full; the prior's weights and its scores
            assert gpu.num_reads == (10 if has_prior else 2), gpu.places
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.ranked.items.tolist() == theirs.ranked.items.tolist()
            torch.testing.assert_close(ours.ranked.scores.cpu(), theirs.ranked.scores)


def test_prior_alone_reranking_and_calibration_run_on_the_device():
    expected = with_prior(tiny_generator(), max_exact_items=5)
    theirs = expected.answer(HISTORY, num_beams=10, top_k=5)
    with pretended_gpu():
        model = move(with_prior(tiny_generator(), max_exact_items=5))
        ours = model.answer(to_gpu(HISTORY), num_beams=10, top_k=5)
        assert ours.ranked.items.tolist() == theirs.ranked.items.tolist()
        model.prior.max_exact_items = 100
        calibrate(model, [to_gpu(batch) for batch in BATCHES.values()])
        assert all(model.prior.is_calibrated(task) for task in BATCHES)
        model.answer(to_gpu(HISTORY), num_beams=10, top_k=5, by="prior")
        assert torch.isfinite(gain_over_prior(model, to_gpu(HISTORY))).any()


@pytest.mark.parametrize("kind", ["listed", "shared"])
def test_filters_on_the_device(kind):
    model, found = tiny_generator(), []
    only = [(3, 5, 8), (1, 2, 9, 11), (0, 4)] if kind == "listed" else [None] * 3
    restrictions = [Restriction(one, (3,)) for one in only]
    stock = torch.arange(20) % 3 > 0

    def answer(batch):
        trie = model.space("search").trie
        shared = None if kind == "listed" else SharedSet.of(trie, stock)
        allowed = allowed_items(trie, restrictions, shared)
        ranked = model.answer(batch, num_beams=5, top_k=2, allowed=allowed).ranked
        found.append(ranked.items.tolist())

    answer(SEARCH)
    with pretended_gpu():
        move(model)
        answer(to_gpu(SEARCH))
    assert found[0] == found[1]


@pytest.mark.parametrize("rank", [None, 3])
def test_cross_fitted_maps_score_on_the_device_what_they_score_on_the_cpu(rank):
    generator = torch.Generator().manual_seed(0)
    width = rank or 12

    def linear():
        rows = torch.randn(12, width, generator=generator)
        return Linear(rows, rank and torch.randn(rank, 12, generator=generator))

    scorer = NextItemScorer(linear(), half_life_items=2.0, folds=(linear(), linear()))
    query = ScorerQuery([], None, torch.tensor([[1, 2], [3, -1], [4, 5]]), torch.tensor([0, 5, -1]))
    expected = scorer(query)
    with pretended_gpu() as gpu:
        found = move(scorer)(to_gpu(query))
        assert not gpu.reads
        torch.testing.assert_close(found.cpu(), expected)


def answers_of(retriever):
    stock = torch.arange(20) % 3 > 0
    found = [
        *retriever.search(["a heist film", "rain"], top_k=4, allowed=stock),
        *retriever.recommend([["1", "2"], ["4"]], top_k=25),
        *retriever.answer(
            [Request("", "search", "rain", (), ())], top_k=2, restrictions=[Restriction((3, 5, 8))]
        ),
    ]
    ids = [[(item.item_id, item.semantic_id) for item in answer] for answer in found]
    return ids, torch.tensor([item.score for answer in found for item in answer if item.score])


def test_a_retriever_answers_as_on_the_cpu(monkeypatch):
    names = [str(item) for item in range(20)]
    corpus = SimpleNamespace(
        num_items=20, fingerprint="made", item_ids=lambda: names, item_titles=lambda: names
    )
    model = with_prior(tiny_generator())
    trained = TrainedGenerator(model, TaskBundles.common(make_bundle(corpus)), num_beams=10)
    options = {"bf16": False, "max_history_items": 4, "exclude_history": True}
    expected, scores = answers_of(Retriever(trained, device=torch.device("cpu"), **options))
    with pretended_gpu() as gpu:
        monkeypatch.setattr(model, "to", lambda device: move(model))
        retriever = Retriever(trained, device=GPU, **options)
        gpu.reset()
        ours, our_scores = answers_of(retriever)
        places = {place.split()[0]: count for place, count in gpu.places.items()}
        assert places["retriever._items_of"] == 6, places  # a batch: its items and its scores
        assert not {"beam_search", "t5_decoder"} & {place.split(".")[0] for place in places}
        assert ours == expected
        torch.testing.assert_close(our_scores, scores)
