import json

import numpy as np
import pytest

from sidrec.cli.preparing import prepare as command
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from sidrec.generator.model.generator_settings import (
    EvaluationSettings,
    GeneratorTaskSettings,
    HistorySettings,
)
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.pairs.query_item import query_item_pairs

DOCUMENTS = [
    {"_id": "d1", "title": "Glue", "text": "<p>Sticks paper.</p>", "metadata": {}},
    {"_id": "d2", "title": "", "text": "Iron nail"},
    {"_id": 3, "title": "Tape", "text": ""},
]
QUERIES = [{"_id": f"q{n}", "text": f"question {n}", "metadata": {"url": "x"}} for n in range(1, 7)]
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = {
    "train": HEADER + "q1\td1\t2\nq1\t3\t1\nq1\td2\t0\nq2\td2\t1\n",
    "dev": HEADER + "q3\td1\t1\n",
    "test": HEADER + "q4\t3\t1\nq5\td1\t-1\n",
}


def folder(path, documents=DOCUMENTS, queries=QUERIES, qrels=QRELS):
    (path / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", documents), ("queries", queries)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in qrels.items():
        (path / "qrels" / f"{name}.tsv").write_text(text)
    return path


def prepare(source, out, *more):
    command.main(["beir", "--source", str(source), "--out", str(out), *more])
    return Corpus.load(out, verify=True)


def test_counts_by_hand(tmp_path, capsys):
    corpus = prepare(folder(tmp_path / "in"), tmp_path / "out")
    assert corpus.item_ids() == ["d1", "d2", "3"]
    assert corpus.item_texts() == ["Glue. Sticks paper.", "Iron nail.", "Tape."]
    rows = {row["query_id"]: row for row in corpus.queries}
    assert {name: row["split"] for name, row in rows.items()} == {
        "q1": "train",
        "q2": "train",
        "q3": "valid",
        "q4": "test",
    }
    assert rows["q1"]["item_index"] == [0, 2]
    assert rows["q1"]["weight"] == [2.0, 1.0]
    assert rows["q1"]["grade"] == [2, 1]
    (request,) = search_requests(corpus, "test")
    assert (request.relevant, request.grades) == ((2,), (1,))
    said = capsys.readouterr().err
    assert "3 documents, 6 queries, 7 judgments; left out 2 judgments with a score of 0 or" in said
    assert "2 queries without a relevant document" in said


def test_search_alone_reaches_the_generators_batches(tmp_path):
    corpus = prepare(folder(tmp_path / "in"), tmp_path / "out")
    assert corpus.num_users == 0
    assert len(corpus.train_interactions().item_index) == 0
    assert len(recommendation_requests(corpus, "test")) == 0
    assert [request.query for request in search_requests(corpus, "test")] == ["question 4"]
    batches = batches_of(tmp_path / "out", search=1.0, recommendation=0.0)
    assert batches.recommendation is None
    assert sorted(batches.search.queries) == ["question 1", "question 2"]
    assert batches.search.batch(np.arange(2), seed=0, turn=0).texts == ["question 1", "question 2"]


def test_recommendation_alone_reaches_the_generators_batches(tmp_path):
    (tmp_path / "s.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n"
        + "".join(f"u\t{item}\t{time}\n" for time, item in enumerate("abcde"))
    )
    command.main(["recbole", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    corpus = Corpus.load(tmp_path / "out")
    assert len(search_requests(corpus, "test")) == 0
    assert len(recommendation_requests(corpus, "test")) == 1
    batches = batches_of(tmp_path / "out", search=0.0, recommendation=1.0)
    assert batches.search is None
    assert len(batches.recommendation) == 2


def batches_of(folder, *, search, recommendation):
    data = GeneratorDataModule(
        corpus=str(folder),
        tasks=GeneratorTaskSettings(
            search_share=search, recommendation_share=recommendation, indexing_share=0.0
        ),
        histories=HistorySettings(max_history_items=5),
        evaluation=EvaluationSettings(batch_size=2, valid_requests=None),
        batch_size=2,
        bucket_batches=1,
        seed=0,
    )
    return data.lay_out(0, 1)


def test_grades_weigh_the_draw_of_a_pair(tmp_path):
    qrels = {"train": HEADER + "q1\td1\t9\nq1\td2\t1\nq2\td2\t1\nq2\t3\t1\nq3\t3\t1\n"}
    corpus = prepare(folder(tmp_path / "in", qrels=qrels), tmp_path / "out")
    pairs = query_item_pairs(corpus, rows="query")
    rows = np.arange(len(pairs))
    drawn = np.array([pairs.draw(rows, seed=1, epoch=epoch).right_item for epoch in range(2_000)])
    assert (drawn[:, 0] == 0).mean() == pytest.approx(0.9, abs=0.02)
    assert (drawn[:, 1] == 1).mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn[:, 2] == 2).all()
    expected = np.log([0.9 / 3, (0.1 + 0.5) / 3, (0.5 + 1) / 3])
    np.testing.assert_allclose(pairs.log_frequency(3), expected, rtol=1e-5)


def test_equal_grades_leave_no_weights(tmp_path):
    corpus = prepare(folder(tmp_path / "in", qrels={"train": QRELS["dev"]}), tmp_path / "out")
    assert corpus.queries.column_names[-1] == "source"
    assert query_item_pairs(corpus, rows="query").weight_sums is None


def test_only_a_test_split_is_said_and_can_be_shared_out(tmp_path, capsys):
    judged = HEADER + "".join(f"q{n}\td1\t1\n" for n in range(1, 7))
    source = folder(tmp_path / "in", qrels={"test": judged})
    corpus = prepare(source, tmp_path / "out")
    assert set(corpus.queries["split"][:]) == {"test"}
    assert "has no train queries" in capsys.readouterr().err
    shared = prepare(
        source, tmp_path / "out", "--keep_splits", "false", "--test_query_fraction", "0.5"
    )
    assert {"train", "test"} <= set(shared.queries["split"][:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"qrels": {"test": HEADER + "q1\td1\t1\nq1\td9\t1\n"}},
            "test.tsv row 2 names corpus-id 'd9'",
        ),
        (
            {"qrels": {"test": HEADER + "q9\td1\t1\n"}},
            "test.tsv row 1 names query-id 'q9', which is",
        ),
        (
            {"qrels": {"test": HEADER + "q1\td1\tbest\n"}},
            "test.tsv row 1: score 'best' is not a whole number",
        ),
        (
            {"qrels": {"test": HEADER + "q1\td1\t0.5\n"}},
            "test.tsv row 1: score '0.5' is not a whole number",
        ),
        ({"qrels": {"test": "q1\td1\t1\n"}}, "test.tsv has the header ['q1', 'd1', '1'], expected"),
        ({"qrels": QRELS | {"test": HEADER + "q1\td1\t1\n"}}, "query 'q1' was judged before in"),
        ({"qrels": {}}, "qrels holds none of train.tsv, dev.tsv and test.tsv"),
        (
            {"documents": [*DOCUMENTS, {"title": "x"}]},
            "corpus.jsonl row 4: expected text or a numb",
        ),
        (
            {"documents": [*DOCUMENTS, DOCUMENTS[0]]},
            "row 4: item_id 'd1' was already used in row 1",
        ),
        (
            {"queries": [{"_id": "q4", "text": " "}], "qrels": {"test": HEADER + "q4\t3\t1\n"}},
            "empty",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, change, message):
    with pytest.raises(DataError) as error:
        prepare(folder(tmp_path / "in", **change), tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unknown_documents_can_be_dropped(tmp_path, capsys):
    source = folder(tmp_path / "in", qrels={"train": HEADER + "q1\td9\t1\nq2\td1\t1\nq9\td1\t1\n"})
    corpus = prepare(source, tmp_path / "out", "--unknown_items", "drop")
    assert [row["query_id"] for row in corpus.queries] == ["q2"]
    assert "2 of unknown documents or queries" in capsys.readouterr().err


def test_judgments_of_other_files_make_no_empty_corpus(tmp_path):
    source = folder(tmp_path / "in", qrels={"test": HEADER + "q1\tother\t1\nz\td1\t1\n"})
    with pytest.raises(DataError, match="none of 2 judgments"):
        prepare(source, tmp_path / "out", "--unknown_items", "drop")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no corpus\.jsonl"):
        prepare(tmp_path, tmp_path / "out")
