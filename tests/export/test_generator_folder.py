import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from sidrec.export.generate_example import example_of
from sidrec.export.generator_folder import code_names, missing_in_generate, write_generator_folder
from sidrec.export.id_table import write_id_table
from sidrec.generator.model.code_space import vocabularies_of
from sidrec.generator.training.load_generator import TrainedGenerator
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import TASKS
from tests.generator.causal.models import FAMILIES, causal_generator, store_lm
from tests.generator.made import (
    generator_of_own_ids,
    histories,
    make_bundle,
    searches,
    tiny_generator,
)


@pytest.fixture(scope="module")
def ids():
    """IDs of 23 items: some codes have many items behind them, some have none."""
    names = [f"item {row}" for row in range(23)]
    corpus = SimpleNamespace(
        num_items=23, fingerprint="f", item_ids=lambda: names, item_titles=lambda: names
    )
    return TaskBundles.common(make_bundle(corpus))


def text_of(codes):
    return "".join(f"<{level}_{code}>" for level, code in zip("abc", codes, strict=True))


def answers_of_sidrec(model, ids, batch):
    nobody = torch.full((batch.num_requests, 0), -1)
    ranked = model.answer(batch._replace(excluded=nobody), num_beams=10, top_k=10).ranked
    codes = ids.bundles["search"].table.codes[ranked.items[0]].tolist()
    return [text_of(row) for row in codes], ranked.scores[0]


@pytest.fixture(params=["t5", "tied t5", *FAMILIES, *(f"stored {name}" for name in FAMILIES)])
def model(request, ids, tmp_path):
    """A generator of each family, from scratch or with a tokenizer of the hub's kind."""
    kind = request.param
    settings = {"num_items": len(ids.item_ids), "max_query_tokens": 40}
    if kind.endswith("t5"):
        return tiny_generator(t5={"tie_word_embeddings": kind != "t5"}, **settings)
    if kind in FAMILIES:
        return causal_generator(family=kind, **settings)
    store_lm(tmp_path / "stored", kind.removeprefix("stored "))
    return causal_generator(stored=tmp_path / "stored", **settings)


def test_generate_of_the_card_answers_as_sidrec_does(ids, tmp_path, model):
    folder = tmp_path / "exported"
    folder.mkdir()
    write_generator_folder(model, folder)
    assert missing_in_generate(model, folder) == []
    write_id_table(ids, folder / "semantic_ids", card="")
    trained = TrainedGenerator(model, ids, 10, exclude_history=True)
    example = example_of(trained, name=str(folder), lacks=[])
    code = re.fullmatch(r"```python\n(.*)```", example, re.DOTALL)[1]
    history = "".join(text_of(ids.bundles["search"].table.codes[item].tolist()) for item in (3, 7))
    for batch, request in (
        (searches("heist in paris"), "search: heist in paris please"),
        (histories([3, 7]), f"after {history} comes"),
    ):
        expected, scores = answers_of_sidrec(model, ids, batch)
        shown = {}
        asked = re.sub(r"^requests = .*$", lambda _: f"requests = {[request]!r}", code, flags=re.M)  # noqa: B023
        exec(asked, shown)  # noqa: S102 (our own card)
        assert shown["answers"] == expected
        torch.testing.assert_close(shown["found"].sequences_scores, scores, atol=1e-4, rtol=0)
    assert "requests = ['search: heist in paris please']" in code


def test_tokenizer_reads_and_writes_codes(ids, tmp_path, model):
    folder = tmp_path / "exported"
    write_generator_folder(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    codes = ids.bundles["search"].table.codes
    tokens = model.space("search").vocabulary.tokens_of(codes)
    for row in (0, 5):
        text = text_of(codes[row].tolist())
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens[row].tolist()
        assert tokenizer.decode(tokens[row]).replace(" ", "") == text
    auto = AutoModelForSeq2SeqLM if model.t5.config.is_encoder_decoder else AutoModelForCausalLM
    assert auto.from_pretrained(folder).config.vocab_size == len(tokenizer)


def test_tokens_of_each_tasks_own_levels_have_names_of_their_own(tmp_path):
    model = generator_of_own_ids(num_shared_levels=1)
    write_generator_folder(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    own = model.space("recommendation").tokens_of(torch.tensor([7]))[0]
    shared = model.space("search").tokens_of(torch.tensor([7]))[0]
    assert re.fullmatch(r"<a_\d><rb_\d><rc_\d>", tokenizer.decode(own).replace(" ", ""))
    assert re.fullmatch(r"<a_\d><b_\d><c_\d>", tokenizer.decode(shared).replace(" ", ""))
    names = code_names(vocabularies_of(9, dict.fromkeys(TASKS, (2, 2)), num_shared_levels=1))
    assert list(names) == list(range(9, 15))
    assert len(set(names.values())) == 6


def test_table_of_each_tasks_ids_has_a_split_for_each(ids, tmp_path):
    both = TaskBundles(ids.bundles | {"search": replace(ids.bundles["search"])}, 0)
    write_id_table(both, tmp_path / "ids", card="text")
    table = load_dataset(str(tmp_path / "ids"), cache_dir=str(tmp_path / "cache"))
    assert set(table) == set(TASKS)
    assert table["search"]["semantic_id"][0].startswith("<a_")
    assert table["recommendation"]["semantic_id"][0].startswith("<ra_")
    assert table["search"]["item_id"] == table["recommendation"]["item_id"]


def test_table_of_another_bundle_is_not_taken_from_the_cache(ids, tmp_path):
    other = replace(
        ids.bundles["search"], titles=["other"] * 23, item_ids=list("abcdefghijklmnopqrstuvw")
    )
    for name, bundle in (("one", ids.bundles["search"]), ("two", other)):
        (tmp_path / name).mkdir()
        write_id_table(TaskBundles.common(bundle), tmp_path / name / "semantic_ids", card="")
        table = load_dataset(str(tmp_path / name / "semantic_ids"), split="items")
        assert table["item_id"][:] == bundle.item_ids


def test_what_generate_lacks_is_named(tmp_path):
    items = tiny_generator(history_input="items")
    lacks = missing_in_generate(items, tmp_path)
    assert lacks == ["items of a history are read as vectors, not as codes"]


def test_a_tokenizer_that_transformers_replaces_is_named(tmp_path):
    model = causal_generator()
    write_generator_folder(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    lacks = missing_in_generate(model, tmp_path)
    assert lacks == ["`AutoTokenizer` splits a prompt into other tokens than sidrec"]
