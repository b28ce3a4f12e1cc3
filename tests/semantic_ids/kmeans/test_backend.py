from dataclasses import replace
from importlib import util

import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans import backend as backends
from sidrec.semantic_ids.kmeans.backend import faiss_k_means, lloyd_of
from sidrec.semantic_ids.kmeans.lloyd import k_means
from sidrec.semantic_ids.kmeans.sharded_rows import ShardedRows
from sidrec.semantic_ids.quality.id_metrics import relative_error
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = RqKMeans((16, 8), 20, 0.0, 1, "central", 64, False, 1, backend="faiss")


def test_faiss_moves_centroids_as_torch_does():
    pytest.importorskip("faiss")
    vectors = torch.randn(500, 6)
    rows = ShardedRows(lambda a, b: vectors[a:b], 500, 6)
    ours = k_means(rows, vectors[:16], num_iterations=3, tolerance=0.0)
    theirs = faiss_k_means(rows, vectors[:16], num_iterations=3, tolerance=0.0, on_gpu=False)
    torch.testing.assert_close(theirs.centroids, ours.centroids, rtol=1e-4, atol=1e-4)
    assert theirs.objectives == pytest.approx(ours.objectives, rel=1e-4)


def test_a_fit_by_faiss_is_repeatable_and_as_good():
    pytest.importorskip("faiss")
    vectors = torch.randn(600, 6)
    lost = []
    for settings in (SETTINGS, SETTINGS, replace(SETTINGS, backend="torch")):
        fitted = settings.fit(vectors)
        lost.append(relative_error(vectors, fitted.encode(vectors), fitted))
    assert lost[0] == lost[1]
    assert lost[0] == pytest.approx(lost[2], rel=0.05)


def test_a_gpu_that_faiss_does_not_see_is_an_error():
    faiss = pytest.importorskip("faiss")
    if getattr(faiss, "get_num_gpus", int)():
        pytest.skip("faiss sees a GPU here")
    with pytest.raises(ConfigError, match="backend is 'faiss', but the vectors are on a GPU and"):
        lloyd_of("faiss", CUDA)


def test_auto_says_what_it_took(capsys, monkeypatch):
    pytest.importorskip("faiss")
    assert lloyd_of("auto", CPU) is not k_means
    assert "k-means backend: faiss on cpu" in capsys.readouterr().err
    monkeypatch.setattr(backends, "find_spec", lambda name: util.find_spec(f"no_{name}"))
    assert lloyd_of("auto", CPU) is k_means
    assert "k-means backend: torch (faiss is not installed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"faiss is not installed .*; set backend: torch"):
        lloyd_of("faiss", CPU)


def test_torch_is_taken_without_a_word(capsys):
    assert lloyd_of("torch", CPU) is k_means
    assert capsys.readouterr().err == ""
