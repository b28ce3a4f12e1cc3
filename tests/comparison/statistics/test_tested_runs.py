"""What stands in one table: the same corpus, split and requests; figures as evaluate gives them."""

import numpy as np
import pytest
import yaml

from sidrec.comparison.plan.comparison_settings import ReportSettings
from sidrec.comparison.report.markdown import cell, harmonic_cell
from sidrec.comparison.report.side_by_side import side_by_side
from sidrec.comparison.statistics.judge import evaluate_systems
from sidrec.comparison.statistics.tested_runs import (
    System,
    groups_of,
    made_elsewhere,
    read_run,
    requests_of,
)
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError, RunError
from sidrec.figures import Prediction
from sidrec.files import read_json, write_json
from sidrec.runs.directory import RunDirectory
from tests.comparison.fakes import write_answers
from tests.comparison.made import REPORT
from tests.pairs.made import make_corpus

SETTINGS = ReportSettings(**REPORT)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("results") / "corpus")


@pytest.fixture(scope="module")
def systems(synthetic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def system(name, quality, *, seeds=(1, 2, 3, 4), kind="strategy", **how):
        runs = []
        for seed in seeds:
            own = folder / f"{name}-{seed}"
            write_answers(own, synthetic, seed=seed or 9, quality=quality, **how)
            runs.append(read_run(own, seed=seed))
        return System(name=name, kind=kind, runs=runs)

    return [
        system("multitask", 0.5),
        system("poor", 0.05),
        system("lexical", 0.4, seeds=(None,), kind="baseline", tasks=("search",)),
        System(name="broken", kind="strategy", runs=[], missing={"1": "failed"}),
    ]


def of(systems, name):
    return next(one for one in systems if one.name == name)


def test_values_are_those_of_the_runs_own_figures(systems, synthetic):
    requests = requests_of(systems, synthetic)
    for system in systems[:3]:
        for task in ("search", "recommendation"):
            if not system.has_answers(task):
                continue
            values = system.values(task, requests[task])
            for row, run in zip(values, system.runs, strict=True):
                assert row.mean() == pytest.approx(run.figures[f"{task}/recall@30"])
            by_id = system.semantic_id_values(task, requests[task])
            for row, run in zip(by_id, system.runs, strict=True):
                assert row.mean() == pytest.approx(run.figures[f"{task}/sid_recall@30"])


def test_evaluation(systems, synthetic):
    requests = requests_of(systems, synthetic)
    found = evaluate_systems(systems, requests, SETTINGS)
    rows = {row["name"]: row for row in found["systems"]}
    assert found["front"] == ["multitask"]
    assert found["num_tests"] == 3  # poor in two tasks, lexical in one, broken in none
    assert rows["poor"]["tests"]["search"]["significant"]
    assert rows["poor"]["tests"]["search"]["difference"] < 0
    assert rows["multitask"]["tests"] == {}
    assert rows["lexical"]["harmonic_mean"] is None
    assert rows["lexical"]["figures"]["search/recall@30"]["deviation"] is None
    assert "recommendation/recall@30" not in rows["lexical"]["figures"]
    assert rows["broken"]["figures"] == {}
    figure = rows["multitask"]["figures"]["search/recall@30"]
    assert figure["mean"] == pytest.approx(np.mean(figure["values"]))
    assert figure["interval"][0] < figure["mean"] < figure["interval"][1]
    inflation = rows["poor"]["figures"]["search/inflation"]
    by_id = rows["poor"]["figures"]["search/sid_recall@30"]["mean"]
    by_item = rows["poor"]["figures"]["search/recall@30"]["mean"]
    assert inflation == pytest.approx(by_id / by_item - 1)
    assert rows["multitask"]["front_share"] == 1.0
    assert found["hypervolume"] == pytest.approx(rows["multitask"]["contribution"], rel=0.5)


@pytest.mark.parametrize("untrained", ["search", "recommendation"])
def test_a_task_that_was_not_trained_is_left_out(systems, synthetic, tmp_path, untrained):
    write_answers(tmp_path, synthetic, seed=9, quality=1.0)  # better than all in both
    shares = {"tasks": {f"{untrained}_share": 0.0}, "batch_size": 8}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": shares}}))
    alone = System(name="alone", kind="strategy", runs=[read_run(tmp_path, seed=9)] * 2)
    assert alone.runs[0].figures[f"{untrained}/recall@30"] == 1.0  # metrics.json has it
    requests = requests_of([*systems, alone], synthetic)
    found = evaluate_systems([*systems, alone], requests, SETTINGS)
    row = found["systems"][-1]
    trained = ({"search", "recommendation"} - {untrained}).pop()
    assert row["figures"][f"{trained}/recall@30"]["mean"] == 1.0
    assert {key.split("/")[0] for key in row["figures"]} == {trained}
    assert row["tests"].keys() == {trained}
    assert row["harmonic_mean"] is None
    assert found["front"] == ["multitask"]
    assert row["front_share"] == row["contribution"] == 0
    assert cell(row, f"{untrained}/recall@30") == harmonic_cell(row) == "-"
    lists = side_by_side([*systems, alone], requests, synthetic, per_task=2, seed=0)
    assert {one["task"] for one in lists if "alone" in one["lists"]} == {trained}


@pytest.mark.parametrize(
    "text", ["data: {init_args: {tasks: {search_share: 0.5}}}", "data: null", "a: 1"]
)
def test_a_run_without_a_share_of_nothing_answers_both(synthetic, tmp_path, text):
    write_answers(tmp_path, synthetic, seed=1)
    (tmp_path / "config.yaml").write_text(text)
    assert all(read_run(tmp_path, seed=1).answers.values())


def test_a_slice_without_requests_has_no_figure(systems, synthetic):
    found = evaluate_systems(systems, requests_of(systems, synthetic), SETTINGS)
    counts = found["num_requests_of_slices"]
    empty = [key for key, n in counts.items() if n == 0]
    assert empty, "the synthetic corpus has a slice without requests"
    for key in empty:
        task, name = key.split("/num_requests_")
        figure = f"{task}/cold_start" if name == "cold_start" else f"{task}/recall@30_{name}"
        assert all(figure not in row["figures"] for row in found["systems"])


def test_one_seed_of_a_trained_system_has_neither_test_nor_interval(systems, synthetic):
    one = System(name="one", kind="strategy", runs=of(systems, "poor").runs[:1])
    found = evaluate_systems([*systems, one], requests_of(systems, synthetic), SETTINGS)
    row = found["systems"][-1]
    assert row["tests"] == {}
    assert "interval" not in row["figures"]["search/recall@30"]
    assert found["num_tests"] == 3


def test_queries_with_the_same_answers_are_one_group(systems, synthetic):
    names = requests_of(systems, synthetic)["search"]
    answers = systems[0].runs[0].answers["search"]
    groups = groups_of(systems, "search", names)
    assert len(set(groups)) < len(groups)  # the corpus has a paraphrase of each query
    for first, one in zip(groups, names, strict=True):
        for second, other in zip(groups, names, strict=True):
            same = set(answers[one].relevant) == set(answers[other].relevant)
            assert (first == second) == same
    assert groups_of(systems, "recommendation", ["u", "v"]).tolist() == [0, 1]


def test_one_test_is_its_own_family(systems, synthetic):
    requests = requests_of(systems, synthetic)
    chosen = [of(systems, "multitask"), of(systems, "lexical")]
    found = evaluate_systems(chosen, requests, SETTINGS)
    assert found["num_tests"] == 1
    (least,) = found["smallest_difference"].values()
    assert 0 < least["alone"] == least["in_family"]
    least = evaluate_systems(systems, requests, SETTINGS)["smallest_difference"]["search"]
    assert least["alone"] < least["in_family"]


def test_runs_from_outside_are_numbered(systems):
    folders = [str(run.folder) for run in of(systems, "poor").runs]
    (found,) = made_elsewhere({"others": folders})
    assert (found.name, found.kind) == ("others", "run")
    assert [run.seed for run in found.runs] == [0, 1, 2, 3]
    assert found.commands == [f"sidrec test --from {folder}" for folder in folders]
    assert [str(run.folder) for run in found.runs] == folders


def test_a_reference_that_failed_leaves_no_tests(systems, synthetic):
    requests = requests_of(systems, synthetic)
    found = evaluate_systems(systems[1:], requests, SETTINGS)
    assert found["num_tests"] == 0


def test_lists_side_by_side(systems, synthetic):
    requests = requests_of(systems, synthetic)
    shown = side_by_side(systems, requests, synthetic, per_task=2, seed=0)
    assert [one["task"] for one in shown] == ["search"] * 2 + ["recommendation"] * 2
    titles = synthetic.item_titles()
    for one in shown:
        answer = of(systems, "multitask").runs[0].answers[one["task"]][one["request"]]
        items = one["lists"]["multitask"]["items"]
        assert [item["title"] for item in items] == [titles[i] for i in answer.items[:10]]
        hits = [n for n, item in enumerate(items, 1) if item["hit"]]
        assert hits[:1] == [one["lists"]["multitask"]["rank"]] if hits else True
    assert "lexical" not in shown[-1]["lists"]
    assert "broken" not in shown[0]["lists"]
    assert side_by_side(systems, requests, synthetic, per_task=2, seed=0) == shown


def test_another_corpus_is_refused(synthetic, tmp_path):
    write_answers(tmp_path, synthetic, seed=1)
    manifest = RunDirectory(tmp_path).manifest
    write_json(manifest, read_json(manifest) | {"corpus_fingerprint": "d" * 64})
    system = System(name="foreign", kind="run", runs=[read_run(tmp_path, seed=1)])
    with pytest.raises(DataError, match="belongs to corpus dddddddddddd, the comparison to"):
        requests_of([system], synthetic)


def test_another_split_is_refused(synthetic, tmp_path):
    write_answers(tmp_path, synthetic, seed=1, split="valid")
    with pytest.raises(DataError, match="answers the split 'valid', expected 'test'"):
        read_run(tmp_path, seed=1)


def test_other_requests_are_refused(systems, synthetic, tmp_path):
    extra = Prediction("new", "search", "test", (1,), (0.0,), (), (1,), 0)
    write_answers(tmp_path, synthetic, seed=1, more=[extra])
    other = System(name="other", kind="run", runs=[read_run(tmp_path, seed=1)])
    with pytest.raises(DataError, match="are not the same; test both on the same split"):
        requests_of([*systems, other], synthetic)


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_half_finished_run_is_refused(synthetic, tmp_path, state):
    write_answers(tmp_path, synthetic, seed=1)
    RunDirectory(tmp_path).write_manifest(state=state)
    with pytest.raises(RunError, match=f"is not a finished run \\(state '{state}'\\)"):
        read_run(tmp_path, seed=1)


def test_an_untested_run_is_refused(tmp_path):
    RunDirectory(tmp_path).write_manifest(state="finished")
    with pytest.raises(RunError, match="run `sidrec test --from"):
        read_run(tmp_path, seed=1)


def test_the_corpus_fixture_is_a_corpus(synthetic):
    assert isinstance(synthetic, Corpus)
