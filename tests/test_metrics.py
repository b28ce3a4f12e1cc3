"""Figures equal an outside tool's, whatever the order, and by hand."""

import math

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import RR, R, nDCG

from sidrec.figures import (
    Prediction,
    cold_start_line,
    evaluate,
    head_items,
    ranked_lists,
    validation_figures,
)
from sidrec.metrics import Recall, gains, hits, mrr_at_k, ndcg_at_k, ranking_metrics, recall_at_k
from tests.ranks import run_on_ranks


def prediction(name, items, relevant, *, task="search", ranks=(), history_length=0):
    scores = tuple(-float(rank) for rank in range(len(items)))
    return Prediction(
        name, task, "test", tuple(items), scores, tuple(ranks), tuple(relevant), history_length
    )


def random_predictions(number, *, num_items, seed):
    draw = np.random.default_rng(seed)
    return [
        prediction(
            f"q{n}",
            draw.permutation(num_items)[: draw.integers(0, 40)].tolist(),
            draw.permutation(num_items)[: draw.integers(1, 6)].tolist(),
            task=("search", "recommendation")[draw.integers(2)],
        )
        for n in range(number)
    ]


def test_one_request_by_hand():
    items = torch.tensor([[4, 7, 9, 2]])
    relevant = torch.tensor([[7, 2, 5, -1]])
    hit, number = hits(items, relevant), torch.tensor([3])
    assert hit.tolist() == [[False, True, False, True]]
    assert recall_at_k(hit, number, k=3).item() == pytest.approx(1 / 3)
    assert recall_at_k(hit, number, k=30).item() == pytest.approx(2 / 3)
    assert mrr_at_k(hit, k=3).item() == 0.5
    assert mrr_at_k(hit, k=1).item() == 0.0
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at_k(hit.long(), (relevant >= 0).long(), k=10).item() == pytest.approx(gain / ideal)


def test_graded_ndcg_by_hand():
    items, relevant = torch.tensor([[4, 7, 9, 2]]), torch.tensor([[7, 2, 5, -1]])
    grades = torch.tensor([[1, 3, 2, 0]])
    gain = gains(items, relevant, grades)
    assert gain.tolist() == [[0, 1, 0, 3]]
    found = 1 / math.log2(3) + 3 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg_at_k(gain, grades, k=10).item() == pytest.approx(found / ideal)
    assert ndcg_at_k(gain, grades, k=2).item() == pytest.approx(
        (1 / math.log2(3)) / (3 + 2 / math.log2(3))
    )


def test_grades_of_one_give_the_figures_of_binary_relevance_bit_for_bit():
    binary = random_predictions(120, num_items=60, seed=3)
    ones = [one._replace(grades=(1,) * len(one.relevant)) for one in binary]
    assert evaluate(ones, torch.arange(60)) == evaluate(binary, torch.arange(60))
    items, relevant, grades = ranked_lists(binary)
    hit, count = hits(items, relevant), (relevant >= 0).sum(dim=1)
    discount = 1 / torch.arange(2, 12).double().log2()
    ideal = torch.cat([torch.zeros(1).double(), discount.cumsum(dim=0)])[count.clamp(max=10)]
    expected = (hit[:, :10] * discount).sum(dim=1) / ideal  # gains of 0 and 1
    assert torch.equal(ndcg_at_k(gains(items, relevant, grades), grades, k=10), expected)


def test_padding_never_hits_and_repetition_counts_once():
    assert not hits(torch.tensor([[-1, -1]]), torch.tensor([[3, -1]])).any()
    assert hits(torch.tensor([[3, 3]]), torch.tensor([[3]])).tolist() == [[True, False]]


@pytest.mark.parametrize("graded", [False, True])
def test_equal_to_ir_measures(graded):
    predictions = random_predictions(120, num_items=60, seed=3)
    if graded:
        draw = np.random.default_rng(0)
        predictions = [
            one._replace(grades=tuple(draw.integers(1, 5, len(one.relevant)).tolist()))
            for one in predictions
        ]
    figures = evaluate(predictions, torch.arange(60))
    for task in ("search", "recommendation"):
        own = [one for one in predictions if one.task == task]
        qrels = [
            ir_measures.Qrel(p.request_id, str(item), grade)
            for p in own
            for item, grade in zip(p.relevant, p.all_grades, strict=True)
        ]
        run = [
            ir_measures.ScoredDoc(p.request_id, str(item), -float(rank))
            for p in own
            for rank, item in enumerate(p.items)
        ]
        names = {f"recall@{k}": R @ k for k in (5, 10, 30)}
        names |= {"ndcg@5": nDCG @ 5, "ndcg@10": nDCG @ 10, "mrr@30": RR @ 30}
        theirs = ir_measures.calc_aggregate(names.values(), qrels, run)
        metrics = ranking_metrics()
        for start in range(0, len(own), 7):
            metrics.update(*ranked_lists(own[start : start + 7]))
        of_metrics = metrics.compute()
        assert of_metrics.keys() == names.keys()
        for name, measure in names.items():
            assert figures[f"{task}/{name}"] == pytest.approx(theirs[measure], abs=1e-6)
            assert of_metrics[name].item() == pytest.approx(theirs[measure], abs=1e-6)


def test_ideal_of_ndcg_is_not_cut_to_the_length_of_the_list():
    gain, grades = torch.tensor([[1, 0]]), torch.ones(1, 5, dtype=torch.long)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, 6))  # 5 right answers, a list of 2
    assert ndcg_at_k(gain, grades, k=10).item() == pytest.approx(1 / ideal)
    assert ndcg_at_k(gain, grades, k=1).item() == 1.0


def reduce_over_ranks(rank, world_size, tmp_path):
    own = random_predictions(41, num_items=40, seed=5)[: 30 if rank == 0 else 0]  # rank 1 has none
    own += random_predictions(41, num_items=40, seed=5)[30:] if rank else []
    metrics = ranking_metrics()
    empty = ranking_metrics()
    if rank:
        empty.update(torch.tensor([[1]]), torch.tensor([[-1]]))
    metrics.update(*ranked_lists(own))
    torch.save((metrics.compute(), empty.compute()), tmp_path / f"{rank}.pt")


def test_ranks_reduce_to_the_figures_of_one_process(tmp_path):
    run_on_ranks(reduce_over_ranks, tmp_path)
    whole = ranking_metrics()
    whole.update(*ranked_lists(random_predictions(41, num_items=40, seed=5)))
    for rank in range(2):
        found, empty = torch.load(tmp_path / f"{rank}.pt")
        assert found == whole.compute()  # to the last bit
        assert all(math.isnan(value) for value in empty.values())


def test_metric_by_hand():
    metric = Recall(k=2)
    metric.update(torch.tensor([[4, 7, 9], [1, 2, 3]]), torch.tensor([[9, 4, -1], [-1, -1, -1]]))
    assert metric.compute().item() == 0.5  # the request without an answer does not count
    assert metric.count.item() == 1
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        Recall(k=0)


def test_reduced_precision_of_the_model_changes_no_figure():
    metrics = ranking_metrics().to(torch.bfloat16)
    own = random_predictions(300, num_items=60, seed=3)
    metrics.update(*ranked_lists(own))
    whole = ranking_metrics()
    whole.update(*ranked_lists(own))
    assert metrics.compute() == whole.compute()


def test_unanswerable_requests_are_counted_and_left_out_of_the_second_figure():
    found = prediction("a", [3, 1], [3], task="recommendation", history_length=2)
    lost = prediction("b", [3, 1], [2], task="recommendation", history_length=2)
    missed = lost._replace(request_id="c")
    own = [found, missed, lost._replace(answerable=False)]
    figures = evaluate(own, torch.ones(4).long())
    assert figures["recommendation/num_unanswerable"] == 1
    assert figures["recommendation/recall@30"] == pytest.approx(1 / 3)
    assert figures["recommendation/recall@30_answerable"] == 0.5
    alone = evaluate([own[2]], torch.ones(4).long())
    assert "recommendation/recall@30_answerable" not in alone


def test_order_and_repeated_requests_change_no_bit():
    predictions = random_predictions(50, num_items=40, seed=1)
    order = np.random.default_rng(0).permutation(57)
    shuffled = [(predictions + predictions[:7])[place] for place in order]
    assert evaluate(shuffled, torch.arange(40)) == evaluate(predictions, torch.arange(40))


def test_chunks_change_no_bit(monkeypatch):
    predictions = random_predictions(50, num_items=40, seed=2)
    whole = evaluate(predictions, torch.arange(40))
    monkeypatch.setattr("sidrec.figures._CHUNK", 3)
    assert evaluate(predictions, torch.arange(40)) == whole


def test_tasks_with_one_request_id_are_two_requests():
    both = [
        prediction("1", [0], [0]),
        prediction("1", [1], [0], task="recommendation", history_length=2),
    ]
    figures = evaluate(both, torch.tensor([1, 1]))
    assert figures["search/recall@30"] == 1.0
    assert figures["recommendation/recall@30"] == 0.0


def test_head_torso_and_cold_start():
    popularity = torch.tensor([0, 9, 5, 0])  # one item of four is the head: item 1
    predictions = [
        prediction("a", [1, 2], [1, 3]),  # head found, cold missed
        prediction("b", [2], [2]),  # torso found
    ]
    figures = evaluate(predictions, popularity)
    assert figures["search/recall@30"] == 0.75
    assert figures["search/recall@30_head"] == 1.0
    assert figures["search/recall@30_torso"] == 0.5
    assert figures["search/cold_start"] == 0.0
    assert figures["search/num_requests_head"] == 1
    assert figures["search/num_requests_torso"] == 2
    assert figures["search/num_requests_cold_start"] == 1


def test_cold_start_at_each_cut_off_by_hand():
    cold = torch.zeros(40, dtype=torch.bool)
    cold[[1, 39]] = True  # item 0 has no train interaction, but a train query
    predictions = [
        prediction("a", [0, 2, 3, 4, 5, 6, 1], [0, 1]),  # item 1 at rank 7
        prediction("b", [39], [39]),
        prediction("c", [0], [0]),
    ]
    figures = evaluate(predictions, torch.zeros(40).long(), cold=cold)
    assert figures["search/recall@5_cold_start"] == 0.5
    assert figures["search/recall@10_cold_start"] == 1.0
    assert figures["search/cold_start"] == 1.0
    assert figures["search/num_requests_cold_start"] == 2
    assert cold_start_line(figures) == (
        "cold start: search recall@5 0.5000, recall@10 1.0000, recall@30 1.0000 over 2 requests"
    )
    assert cold_start_line(evaluate(predictions[2:], torch.zeros(40).long(), cold=cold)) is None


def test_figure_over_nothing_is_left_out():
    figures = evaluate([prediction("a", [0], [0])], torch.tensor([3, 1]))
    assert figures["search/num_requests_cold_start"] == 0
    assert "search/cold_start" not in figures
    assert not any(key.startswith("recommendation/") for key in figures)


def test_request_without_answer_is_counted_not_scored():
    figures = evaluate([prediction("a", [0], [0]), prediction("b", [1], [])], torch.ones(2).long())
    assert figures["search/recall@30"] == 1.0
    assert figures["search/num_requests"] == 1
    assert figures["search/num_without_answer"] == 1


def test_semantic_id_recall_counts_the_id_alone():
    predictions = [
        prediction("a", [5], [3], ranks=[0]),  # the ID was found, its first item is another one
        prediction("b", [5], [3], ranks=[-1]),
        prediction("c", [5], [3], ranks=[12]),
    ]
    figures = evaluate(predictions, torch.ones(6).long())
    assert figures["search/recall@30"] == 0.0
    assert figures["search/sid_recall@30"] == pytest.approx(2 / 3)
    assert figures["search/sid_recall@10"] == pytest.approx(1 / 3)


def test_valid_fraction_counts_unknown_items_and_repetitions():
    figures = evaluate([prediction("a", [0, 0, 7, 1], [0])], torch.ones(2).long())
    assert figures["decoding/valid_fraction"] == 0.5
    assert figures["decoding/list_length"] == 4


def test_what_fills_up_a_list_was_not_found():
    short = prediction("a", [3, 0, 1, 2], [0])._replace(scores=(-1.0, -2.0, -math.inf, -math.inf))
    figures = evaluate([short], torch.ones(4).long())
    assert figures["decoding/found_fraction"] == 0.5
    assert figures["decoding/valid_fraction"] == 1.0


@pytest.mark.parametrize("scores", [(), (None, None)])
def test_what_was_found_is_not_known_without_scores(scores):
    figures = evaluate([prediction("a", [3, 0], [0])._replace(scores=scores)], torch.ones(4).long())
    assert "decoding/found_fraction" not in figures
    assert figures["search/recall@10"] == 1.0


@pytest.mark.parametrize(
    ("trained", "mean"),
    [(("search", "recommendation"), 0.3), (("search",), 0.6), (("recommendation",), 0.2), ((), 0)],
)
def test_checkpoints_are_chosen_by_the_tasks_that_train(trained, mean):
    figures = {"search/recall@30": 0.6, "recommendation/recall@30": 0.2}
    found = validation_figures(figures, trained=trained)
    own = pytest.approx(mean)
    assert found == figures | {"recall_harmonic_mean": own, "harmonic_mean/recall@30": own}


def test_any_figure_has_its_mean_over_tasks():
    figures = {"search/ndcg@10": 0.6, "recommendation/ndcg@10": 0.2}
    found = validation_figures(figures, trained=("search", "recommendation"))
    assert found["harmonic_mean/ndcg@10"] == pytest.approx(0.3)
    assert found["recall_harmonic_mean"] == 0


def test_a_task_that_was_not_asked_chooses_nothing():
    found = validation_figures({"search/recall@30": 0.6}, trained=("search", "recommendation"))
    assert found["recall_harmonic_mean"] == pytest.approx(0.6)


def test_head_is_a_hundredth_of_the_catalogue():
    assert head_items(torch.arange(350)).nonzero().flatten().tolist() == [347, 348, 349]
    assert head_items(torch.tensor([2, 2])).tolist() == [True, False]
    assert not head_items(torch.zeros(3, dtype=torch.long)).any()
