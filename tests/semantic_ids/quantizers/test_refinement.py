from dataclasses import replace

import pytest
import torch

from sidrec.semantic_ids.quality.id_metrics import relative_error
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans, joint_refit

SETTINGS = RqKMeans((16, 12, 8), 8, 0.0, 1, "central", 64, False, 1)


def test_levels_move_by_hand():
    books = (torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [1.0]]))
    fitted = FittedRqKMeans(books, (torch.ones(1), torch.ones(2)), normalized=False)
    vectors, codes = torch.tensor([[0.0], [2.0], [14.0]]), torch.tensor([[0, 0], [0, 1], [1, 1]])
    # errors 0, 1, 3: code 1 of level 2 moves by 2; left are 0, -1, 1: level 1 moves by -1/2 and 1
    again = joint_refit(vectors, codes, fitted)
    assert [book.flatten().tolist() for book in again.codebooks] == [[-0.5, 11.0], [0.0, 3.0]]


@pytest.mark.parametrize("normalize", [False, True])
def test_error_falls_while_codes_stay(normalize):
    vectors = torch.randn(400, 6)
    fitted = replace(SETTINGS, normalize_residuals=normalize).fit(vectors)
    codes = fitted.encode(vectors)
    errors = [relative_error(vectors, codes, fitted)]
    for _ in range(3):
        fitted = joint_refit(vectors, codes, fitted)
        errors.append(relative_error(vectors, codes, fitted))
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_codes_without_items_stay():
    vectors = torch.randn(60, 6)
    fitted = SETTINGS.fit(vectors)
    codes = fitted.encode(vectors)
    codes[:, 1] = 3
    moved = joint_refit(vectors, codes, fitted).codebooks[1]
    assert moved[:3].equal(fitted.codebooks[1][:3])
    assert not moved[3].equal(fitted.codebooks[1][3])


def test_a_refined_fit_loses_less():
    vectors = torch.randn(400, 6)
    found = [replace(SETTINGS, num_refit_rounds=rounds).fit(vectors) for rounds in (0, 1)]
    errors = [relative_error(vectors, fitted.encode(vectors), fitted) for fitted in found]
    assert errors[1] < errors[0]
