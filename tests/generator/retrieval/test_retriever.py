import dataclasses
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.encoder.load_encoder import load_encoder
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.generator.decoding.item_filters import Restriction
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.generator.training import load_generator
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import Request
from tests.tiny import sidrec


@pytest.fixture(scope="module")
def retriever(tiny):
    return Retriever.load(tiny.generator_run, device="cpu")


@pytest.fixture(scope="module")
def item_ids(tiny):
    return Corpus.load(tiny.corpus).item_ids()


def test_it_answers_as_sidrec_test_does(tiny, retriever, item_ids):
    assert sidrec("test", "--from", tiny.generator_run) == 0
    corpus = Corpus.load(tiny.corpus)
    stored = {
        (row["task"], row["request_id"]): row
        for row in pq.read_table(RunDirectory(tiny.generator_run).predictions).to_pylist()
    }
    requests = [*search_requests(corpus, "test"), *recommendation_requests(corpus, "test")]
    assert len(requests) == len(stored)
    for request, answer in zip(requests, retriever.answer(requests, top_k=10), strict=True):
        row = stored[request.task, request.request_id]
        assert [item.item_id for item in answer] == [item_ids[item] for item in row["items"]]
        assert [item.score for item in answer] == pytest.approx(row["scores"], abs=1e-5)


def test_a_batch_answers_as_each_request_alone(retriever, item_ids):
    texts = ["one", "a much longer query than the others are", "two words"]
    histories = [item_ids[:1], item_ids[3:11], item_ids[5:7]]
    together = retriever.search(texts) + retriever.recommend(histories)
    alone = [retriever.search([text])[0] for text in texts]
    alone += [retriever.recommend([history])[0] for history in histories]
    for one, other in zip(together, alone, strict=True):
        assert [item.item_id for item in one] == [item.item_id for item in other]


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (10, 10), (47, 47), (60, 60), (10**9, 60)])
def test_lists_are_as_long_as_the_catalogue_allows(retriever, asked, got):
    (answer,) = retriever.search(["anything"], top_k=asked)
    scores = [item.score for item in answer]
    assert len({item.item_id for item in answer}) == len(answer) == got
    assert scores == sorted(scores, reverse=True)


def test_a_history_is_not_recommended_again(retriever, item_ids):
    (answer,) = retriever.recommend([item_ids[:20]], top_k=60)
    assert {item.item_id for item in answer} == set(item_ids[20:])


def test_semantic_ids_are_those_of_the_bundle(retriever):
    (answer,) = retriever.search(["anything"])
    for item in answer:
        assert item.semantic_id == retriever.generator.ids.bundles["search"].semantic_id_of(
            item.item_id
        )


def test_unknown_items_are_skipped_and_counted(retriever, item_ids):
    assert retriever.known(["nobody", item_ids[4], "knows"]) == ((4,), 2)
    with_unknown = retriever.recommend([["nobody", *item_ids[4:6]]])
    assert with_unknown == retriever.recommend([item_ids[4:6]])


def test_nothing_to_ask_is_refused(retriever, item_ids):
    with pytest.raises(DataError, match="History 1 holds no item of the catalogue"):
        retriever.recommend([item_ids[:1], ["nobody"]])
    with pytest.raises(DataError, match="Query 0 is empty"):
        retriever.search([" \t"])
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        retriever.search(["a"], top_k=0)
    assert retriever.search([]) == []


def test_one_string_is_no_list_and_a_generator_is(retriever, item_ids):
    for ask in (retriever.search, retriever.recommend, retriever.known):
        with pytest.raises(DataError, match="must be a list of"):
            ask("glue")
    with pytest.raises(DataError, match="History 0 must be a list of strings"):
        retriever.recommend(["glue"])
    with pytest.raises(DataError, match="allowed must be a list of strings"):
        retriever.search(["glue"], allowed=item_ids[0])
    assert retriever.search(text for text in ["glue"]) == retriever.search(["glue"])


def test_other_runs_are_refused(tiny, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Retriever.load(tmp_path / "gone")
    with pytest.raises(RunError, match="is not a generator checkpoint; give --from"):
        Retriever.load(tiny.encoder_run)
    with pytest.raises(RunError, match="not a finished run"):
        Retriever.load(tmp_path)
    with pytest.raises(ConfigError, match="must be auto, cpu or cuda"):
        Retriever.load(tiny.generator_run, device="quantum")


def altered(data, how):
    if how == "flipped":
        place = data.find(b"state_dict") + 40_000  # somewhere in the weights
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    return {"truncated": data[: len(data) // 2], "empty": b"", "text": b"PK a checkpoint"}[how]


@pytest.mark.parametrize("stage", ["generator", "encoder"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_one_short_line(tiny, tmp_path, stage, how):
    run = tiny.generator_run if stage == "generator" else tiny.encoder_run
    data = RunDirectory(run).finished_checkpoint().read_bytes()
    damaged = RunDirectory(tmp_path)
    damaged.write_manifest(state="finished")
    damaged.last_checkpoint.parent.mkdir()
    damaged.last_checkpoint.write_bytes(altered(data, how))
    load = Retriever.load if stage == "generator" else lambda _: load_encoder(damaged)
    with pytest.raises(RunError, match=r"last\.ckpt cannot be read \(") as got:
        load(tmp_path)
    assert len(str(got.value)) < 200 + len(str(tmp_path))


def copied_with(tiny, folder, **changes):
    """Copy the generator run, with other hyperparameters in its checkpoint."""
    shutil.copytree(tiny.generator_run, folder)
    file = RunDirectory(folder).finished_checkpoint()
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"] |= changes
    torch.save(checkpoint, file)
    return folder


def test_semantic_ids_of_another_bundle_are_refused(tiny, tmp_path):
    bundle = SemanticIdBundle.load(tiny.encoder_run / "semantic_ids")
    table = dataclasses.replace(bundle.table, codes=bundle.table.codes.flip(0))
    dataclasses.replace(bundle, table=table).save(tmp_path / "other")
    run = copied_with(tiny, tmp_path / "run", semantic_ids=str(tmp_path / "other"))
    with pytest.raises(
        DataError, match=r"other holds Semantic IDs .* was trained on .* give those"
    ):
        Retriever.load(run)
    gone = copied_with(tiny, tmp_path / "gone", semantic_ids=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        Retriever.load(gone)


def test_a_search_narrower_than_the_list_is_widened(tiny, tmp_path, retriever):
    run = copied_with(tiny, tmp_path / "run", search={"num_beams": 2, "top_k": 2})
    (answer,) = Retriever.load(run, device="cpu").search(["anything"], top_k=60)
    assert answer == retriever.search(["anything"], top_k=60)[0]


def test_only_allowed_items_are_answered(retriever, item_ids):
    stock = [*item_ids[10:25], "unknown"]
    mask = torch.zeros(60, dtype=torch.bool)
    mask[10:25] = True
    for ask, asked in ((retriever.search, ["a", "b c"]), (retriever.recommend, [item_ids[12:14]])):
        by_mask = ask(asked, top_k=20, allowed=mask)
        assert by_mask == ask(asked, top_k=20, allowed=set(stock))
        for answer in by_mask:  # the probabilities are those among the allowed items
            assert {one.item_id for one in answer} <= set(stock)
            assert sum(math.exp(one.score) for one in answer) == pytest.approx(1, abs=1e-4)
    (answer,) = retriever.recommend([item_ids[12:14]], allowed=stock)
    assert {one.item_id for one in answer} == set(item_ids[10:25]) - set(item_ids[12:14])


def test_lists_of_single_requests_and_a_shared_set_together(retriever, item_ids):
    requests = [Request("", "search", "a", (), ())] * 3 + [
        Request("", "recommendation", "", (5, 6), ())
    ]
    restrictions = [
        Restriction((4, 5, 6)),
        Restriction(None, (7, 8)),
        Restriction((6, 40), (6,)),
        Restriction((5, 7), ()),
    ]
    mask = torch.arange(60) < 20
    found = retriever.answer(requests, top_k=60, restrictions=restrictions, allowed=mask)
    rows = [{item_ids.index(one.item_id) for one in answer} for answer in found]
    assert rows == [{4, 5, 6}, set(range(20)) - {7, 8}, set(), {7}]


@pytest.mark.parametrize("allowed", [set(), {"unknown"}, torch.zeros(60, dtype=torch.bool)])
def test_an_empty_set_is_refused(retriever, allowed):
    with pytest.raises(DataError, match="allowed holds no item of the catalogue"):
        retriever.search(["a"], allowed=allowed)


def test_a_mask_of_another_catalogue_is_refused(retriever):
    with pytest.raises(DataError, match="allowed has 59 entries for 60 items"):
        retriever.search(["a"], allowed=torch.ones(59, dtype=torch.bool))


def test_a_full_device_gets_smaller_batches(tiny, retriever, item_ids, monkeypatch, capsys):
    full = Retriever.load(tiny.generator_run, device="cpu")
    answer = full.generator.model.answer

    def small(batch, **settings):
        if batch.num_requests > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return answer(batch, **settings)

    monkeypatch.setattr(full.generator.model, "answer", small)
    texts = [f"query {row}" for row in range(7)]
    found = full.search(texts)
    assert len(capsys.readouterr().err.splitlines()) == 1
    for one, other in zip(found, retriever.search(texts), strict=True):
        assert [item.item_id for item in one] == [item.item_id for item in other]


def test_lists_that_the_search_left_short_are_filled_up(tiny, item_ids, monkeypatch):
    collapsed = Retriever.load(tiny.generator_run, device="cpu")
    model = collapsed.generator.model
    search = model.decoding.search

    def two_items(*arguments, **settings):
        decoded = search(*arguments, **settings)
        decoded.ranked.items[:, 2:] = -1
        decoded.ranked.scores[:, 2:] = float("-inf")
        return decoded

    monkeypatch.setattr(model, "decoding", SimpleNamespace(search=two_items))
    monkeypatch.setattr(model, "prior", None)  # a prior alone would not search
    (found,) = collapsed.recommend([item_ids[:5]], top_k=30)
    assert [one.score is None for one in found] == [False] * 2 + [True] * 28
    order = sorted(range(60), key=lambda item: (-int(model.popularity[item]), item))
    first = [one.item_id for one in found[:2]]
    rest = [item_ids[item] for item in order if item >= 5 and item_ids[item] not in first]
    assert [one.item_id for one in found[2:]] == rest[:28]


def test_long_queries_and_histories_are_cut(retriever, item_ids):
    words = "rain and snow " * 10_000
    assert retriever.search([words]) == retriever.search([words[:4_096]])
    long = [*item_ids[:5], "unknown"] * 20_000
    (answer,) = retriever.recommend([long])
    recent = (item_ids[:5] * 2)[-8:]
    assert answer == retriever.recommend([recent])[0]


def test_histories_are_excluded_as_in_training(tiny, item_ids, monkeypatch):
    read = load_generator.read_checkpoint
    changed = lambda file: read(file) | {"exclude_history": False}  # noqa: E731
    monkeypatch.setattr(load_generator, "read_checkpoint", changed)
    (answer,) = Retriever.load(tiny.generator_run).recommend([item_ids[:5]], top_k=60)
    assert set(item_ids[:5]) < {one.item_id for one in answer}


def test_answering_imports_no_training_code():
    code = (
        "import sys, sidrec.generator.retrieval.retriever;"
        "print(*{'lightning', 'torchmetrics', 'datasets', 'polars', 'pandas'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""
