import pyarrow.parquet as pq
import pytest

from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.generator.retriever import Retriever
from sidrec.run_directory import RunDirectory
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
        assert item.semantic_id == retriever.generator.bundle.semantic_id_of(item.item_id)


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


def test_other_runs_are_refused(tiny, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Retriever.load(tmp_path / "gone")
    with pytest.raises(RunError, match="is no generator; give --from"):
        Retriever.load(tiny.encoder_run)
    with pytest.raises(RunError, match="not a finished run"):
        Retriever.load(tmp_path)
    with pytest.raises(ConfigError, match="must be auto, cpu or cuda"):
        Retriever.load(tiny.generator_run, device="quantum")


def test_a_truncated_checkpoint_is_one_line(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_manifest(state="finished")
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.raises(RunError, match=r"last\.ckpt is damaged"):
        Retriever.load(tmp_path)
