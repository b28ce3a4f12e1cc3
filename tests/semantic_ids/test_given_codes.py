"""Codes of another program, all the way to a trained generator's answers."""

import json

import pytest
import torch

from sidrec.corpus.store import Corpus
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import ExtraLevel, KeepCollisions
from sidrec.semantic_ids.given_codes import bundle_of_codes
from sidrec.types import ItemEmbeddings
from tests.tiny import sidrec

CODES = torch.tensor([[0, 1], [0, 1], [2, 0], [2, 1]])
NAMED = {"item_ids": list("abcd"), "titles": [""] * 4, "fingerprint": "f", "source": {}}


def test_vectors_without_an_encoder_are_near_where_codes_are_shared():
    bundle = bundle_of_codes(CODES, policy=KeepCollisions(), **NAMED)
    assert bundle.table.codes.tolist() == CODES.tolist()
    assert bundle.table.codebook_sizes == (3, 2)
    near = bundle.embeddings.vectors @ bundle.embeddings.vectors.T
    assert near[0, 1] == pytest.approx(1, abs=0.3)  # both codes shared
    assert near[2, 3] == pytest.approx(0.5, abs=0.3)  # one of two
    assert near[0, 2] == pytest.approx(0, abs=0.3)
    torch.testing.assert_close(bundle.decode(CODES), bundle.embeddings.vectors)
    assert bundle.quality["ids/collision_rate"] == 0.5
    assert bundle.quality["ids/moved_fraction"] == 0


def test_centroids_are_means_of_the_given_vectors(tmp_path):
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 8.0]])
    embeddings = ItemEmbeddings(vectors, "encoder", "f")
    bundle = bundle_of_codes(CODES, policy=ExtraLevel(4), embeddings=embeddings, **NAMED)
    assert bundle.table.codes.tolist() == [[0, 1, 0], [0, 1, 1], [2, 0, 0], [2, 1, 0]]
    assert bundle.decode(CODES[:, :1]).tolist() == [[2, 0], [2, 0], [0, 6], [0, 6]]
    bundle.save(tmp_path / "ids")
    loaded = SemanticIdBundle.load(tmp_path / "ids", corpus_fingerprint="f")
    assert loaded.decode(CODES).tolist() == bundle.decode(CODES).tolist()


def letter_file(folder, names):
    """Write an index.json as LETTER does, every item with an ID of its own."""
    tokens = {
        name: [f"<a_{row // 8}>", f"<b_{row % 8}>", f"<c_{row % 5}>"]
        for row, name in enumerate(names)
    }
    file = folder / "index.json"
    file.write_text(json.dumps(tokens))
    return file


def test_letters_index_trains_tests_and_retrieves(tiny, tmp_path):
    ids = Corpus.load(tiny.corpus).item_ids()
    file, out, run = letter_file(tmp_path, reversed(ids)), tmp_path / "ids", tmp_path / "gen"
    assert sidrec("ids", "--codes", file, "--corpus", tiny.corpus, "--out", out) == 0
    bundle = SemanticIdBundle.load(out)
    assert bundle.semantic_id_of(ids[-1]) == (0, 0, 0)
    assert bundle.quality["ids/collision_rate"] == 0
    given = ["--data.corpus", tiny.corpus, "--model.semantic_ids", out]
    tokens = ["--model.inputs.text_input=tokens", "--model.prior=null"]
    fit = ("fit", "--config", tiny.generator_config, *given, *tokens, "--run_dir", run)
    assert sidrec(*fit) == 0
    assert sidrec("test", "--from", run) == 0
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text(json.dumps({"id": "a", "task": "recommendation", "history": ids[:3]}))
    assert sidrec("retrieve", "--from", run, "--input", requests, "--output", answers) == 0
    items = json.loads(answers.read_text())["items"]
    assert len(items) == 30
    for item in items:
        assert tuple(item["semantic_id"]) == bundle.semantic_id_of(item["item_id"])


def test_the_vectors_of_a_run_and_row_numbers(tiny, tmp_path, capsys):
    stored = SemanticIdBundle.load(tiny.encoder_run / "semantic_ids")
    file = letter_file(tmp_path, map(str, range(len(stored.item_ids))))
    ids = ("ids", "--codes", file, "--from", tiny.encoder_run, "--out", tmp_path / "ids")
    assert sidrec(*ids, "--join", "row", "--policy", "sidrec.ExtraLevel") == 0
    bundle = SemanticIdBundle.load(tmp_path / "ids")
    assert torch.equal(bundle.embeddings.vectors, stored.embeddings.vectors)
    assert bundle.corpus_fingerprint == stored.corpus_fingerprint
    assert bundle.table.codes.shape == (len(stored.item_ids), 4)
    assert bundle.policy["name"] == "extra_level"
    assert sidrec(*ids) == 3  # its keys are no item_ids
    assert "--join row" in capsys.readouterr().err
    assert sidrec("ids", "--codes", file, "--out", tmp_path / "x") == 2
    assert "needs either --corpus DIR or --from RUN" in capsys.readouterr().err
