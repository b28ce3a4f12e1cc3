"""Tasks with Semantic IDs of their own: neither's tokens or items reach the other."""

import json
from dataclasses import replace

import pytest
import torch

from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.t5 import t5_from_config
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.generator.training.load_generator import TrainedGenerator
from sidrec.generator.training.module import JointGenerator
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import SemanticIdTable
from tests.generator.made import (
    SIZES,
    T5,
    generator_of_own_ids,
    histories,
    make_bundle,
    searches,
    tiny_generator,
)
from tests.generator.trained import train

TEXTS, HISTORIES = ("a heist film in paris", "rain"), ([1, 2], [4])
ASKED = {
    "search": searches(*TEXTS, answers=[3, 7]),
    "recommendation": histories(*HISTORIES, answers=[9, 11]),
}
OTHER = {"search": "recommendation", "recommendation": "search"}


def own_tokens(model, task):
    return {int(token) for ids in model.space(task).vocabulary.level_token_ids() for token in ids}


@pytest.mark.parametrize("num_shared", [0, 1])
def test_only_shared_levels_have_the_same_tokens(num_shared):
    model = generator_of_own_ids(num_shared_levels=num_shared)
    both = own_tokens(model, "search") & own_tokens(model, "recommendation")
    assert len(both) == sum(SIZES[:num_shared])
    everything = own_tokens(model, "search") | own_tokens(model, "recommendation")
    assert max(everything) == model.t5.config.vocab_size - 1


@pytest.mark.parametrize("task", ["search", "recommendation"])
def test_no_weight_of_the_other_tasks_tokens_counts(task):
    model = generator_of_own_ids()
    batch = ASKED[task]
    loss = model(batch, label_smoothing=0.0)
    answers = model.answer(batch, num_beams=10, top_k=5).ranked
    foreign = sorted(own_tokens(model, OTHER[task]))
    with torch.no_grad():
        model.t5.lm_head.weight[foreign] += 50 * torch.randn(len(foreign), 12)
        if task == "search":  # a history is read in the tokens of recommendation, as it should
            model.t5.shared.weight[foreign] += 50 * torch.randn(len(foreign), 12)
    torch.testing.assert_close(model(batch, label_smoothing=0.0), loss)
    changed = model.answer(batch, num_beams=10, top_k=5).ranked
    assert torch.equal(changed.items, answers.items)
    torch.testing.assert_close(changed.scores, answers.scores)


def alone(task, item, text, history):
    return (
        searches(text, answers=[item]) if task == "search" else histories(history, answers=[item])
    )


@pytest.mark.parametrize("task", ["search", "recommendation"])
def test_every_answer_is_an_item_under_the_tasks_own_id(task):
    model = generator_of_own_ids()
    ranked = model.answer(ASKED[task], num_beams=20, top_k=10).ranked
    rows = zip(TEXTS, HISTORIES, ranked.items, ranked.scores, strict=True)
    for text, history, items, scores in rows:
        assert len(set(items.tolist())) == 10
        for item, score in zip(items.tolist(), scores, strict=True):
            loss = model(alone(task, item, text, history), label_smoothing=0.0).sum()
            torch.testing.assert_close(score, -loss, atol=1e-4, rtol=1e-4)


def test_histories_are_read_in_the_codes_of_recommendation():
    model = generator_of_own_ids()
    positions, _, _ = model.embedder(ASKED["recommendation"])
    tokens = model.space("recommendation").tokens_of(torch.tensor([1, 2])).flatten()
    before = len(model.embedder.tokenizer.encode("after", add_special_tokens=False).ids)
    expected = model.t5.shared(tokens)
    torch.testing.assert_close(positions[0, before : before + len(tokens)], expected)


def test_training_learns_both_tasks_in_their_own_ids():
    model = generator_of_own_ids().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = sum(model(batch, label_smoothing=0.0).sum() for batch in ASKED.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for batch in ASKED.values():
        found = model.answer(batch, num_beams=5, top_k=1).ranked.items[:, 0]
        assert torch.equal(found, batch.target)


def test_one_space_for_both_has_its_weights_once():
    model = tiny_generator()
    assert model.space("search") is model.space("recommendation")


def test_trained_stored_loaded_and_asked(corpus, tmp_path):
    first = make_bundle(corpus)
    table = SemanticIdTable(first.table.codes.roll(1, dims=0), first.table.codebook_sizes)
    bundles = {"search": first, "recommendation": replace(first, table=table)}
    TaskBundles(bundles, num_shared_levels=0).save(tmp_path / "ids")
    run = tmp_path / "run"
    trainer, model = train(str(corpus.folder), str(tmp_path / "ids"), run, every=2, max_steps=2)
    trainer.test(model, datamodule=trainer.datamodule, verbose=False)
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["decoding/valid_fraction"] == 1.0
    assert figures["ids/recommendation/collision_rate"] == figures["ids/collision_rate"] == 0.0
    assert figures["recommendation/sid_recall@30"] == figures["recommendation/recall@30"]

    newest = next(iter(run.glob("*.ckpt")))
    checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
    loaded = JointGenerator.from_checkpoint(checkpoint)
    assert loaded.model.space("search") is not loaded.model.space("recommendation")
    trained = TrainedGenerator(
        loaded.model, loaded.ids, loaded.search.num_beams, exclude_history=True
    )
    retriever = Retriever(
        trained, device=torch.device("cpu"), bf16=False, max_history_items=5, exclude_history=True
    )
    ids = first.item_ids
    answers = {
        "search": retriever.search(["rain"], top_k=5, allowed=ids[:20])[0],
        "recommendation": retriever.recommend([ids[:2]], top_k=5, allowed=ids[:20])[0],
    }
    for task, found in answers.items():
        assert len(found) == 5
        for item in found:
            assert item.item_id in ids[:20]
            assert item.semantic_id == bundles[task].semantic_id_of(item.item_id)


def test_ids_of_one_code_are_scored_and_found():
    model = tiny_generator()
    vocabulary = CodeVocabulary(model.space("search").vocabulary.first_token, (20,))
    table = SemanticIdTable(torch.arange(20)[:, None], (20,))
    space = CodeSpace(vocabulary, table, model.popularity)
    tokenizer, inputs = model.embedder.tokenizer, model.embedder.settings
    t5 = t5_from_config(T5, vocabulary=vocabulary)
    vectors = model.embedder.item_vectors
    model = GeneratorModel(
        t5, inputs, tokenizer, dict.fromkeys(ASKED, space), vectors, model.popularity, None
    ).eval()
    for batch in ASKED.values():
        ranked = model.answer(batch, num_beams=20, top_k=1).ranked
        best = model(batch._replace(target=ranked.items[:, 0]), label_smoothing=0.0)
        assert best.shape == (1,)
        torch.testing.assert_close(best[0], -ranked.scores[:, 0].mean())
