import json
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from sidrec.corpus.store import Corpus
from sidrec.encoder.encode import encode_texts
from sidrec.encoder.load_encoder import load_encoder
from sidrec.generator.training.load_generator import load_generator
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from tests.tiny import sidrec


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for run, out in ((tiny.encoder_run, "encoder"), (tiny.generator_run, "generator")):
        assert sidrec("export", "--from", run, "--out", folder / out) == 0
    return folder


def test_encoder_run_gives_its_own_item_vectors(tiny, exported):
    model = SentenceTransformer(str(exported / "encoder"), device="cpu")
    texts = Corpus.load(tiny.corpus).item_texts()
    bundle = SemanticIdBundle.load(tiny.encoder_run / "semantic_ids")
    found = torch.from_numpy(model.encode_document(texts))
    torch.testing.assert_close(found, bundle.embeddings.vectors, atol=1e-5, rtol=0)
    tower = load_encoder(RunDirectory(tiny.encoder_run)).tower
    expected = encode_texts(tower, ["space opera"], kind="query", max_tokens=16, batch_size=1)
    found = torch.from_numpy(model.encode_query(["space opera"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_generator_run_gives_its_own_weights(tiny, exported):
    own = load_generator(RunDirectory(tiny.generator_run)).model
    model = AutoModelForSeq2SeqLM.from_pretrained(exported / "generator")
    tokenizer = AutoTokenizer.from_pretrained(exported / "generator")
    batch = tokenizer(["search: rain"], return_tensors="pt")
    start = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        expected = own.t5(**batch, decoder_input_ids=start).logits
        found = model.eval()(**batch, decoder_input_ids=start).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["encoder", "generator"])
def test_cards_hold_data_license_hash_and_limits(tiny, exported, which):
    corpus = json.loads((tiny.corpus / "corpus.json").read_text())
    bundle = SemanticIdBundle.load(tiny.encoder_run / "semantic_ids")
    for card in ("README.md", "semantic_ids/README.md"):
        text = (exported / which / card).read_text()
        for fact in (corpus["source"], corpus["license"], corpus["fingerprint"], bundle.hash):
            assert fact in text, (card, fact)
        # the run is shared with other tests, one of which may have tested it
        assert ("`sidrec test` has not been run" in text) != ("recall@30" in text)
    card = (exported / "generator" / "README.md").read_text()
    assert "does not answer as `sidrec retrieve` does: the exact prior" in card
    assert "num_beams" not in card


def test_semantic_ids_are_a_dataset(tiny, exported, tmp_path):
    folder = str(exported / "generator" / "semantic_ids")
    table = load_dataset(folder, split="items", cache_dir=str(tmp_path))
    bundle = SemanticIdBundle.load(tiny.encoder_run / "semantic_ids")
    assert table["item_id"][:] == bundle.item_ids
    assert table["codes"][:] == bundle.table.codes.tolist()
    codes = bundle.table.codes[0].tolist()
    assert table["semantic_id"][0] == "<a_{}><b_{}><c_{}>".format(*codes)


def test_figures_of_a_tested_run_stand_in_the_card(tiny, tmp_path, monkeypatch):
    figures = tmp_path / "metrics.json"
    figures.write_text(json.dumps({"search/recall@30": 0.25, "search/num_requests": 7}))
    monkeypatch.setattr(RunDirectory, "metrics", property(lambda _: figures))
    assert sidrec("export", "--from", tiny.encoder_run, "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| search/recall@30 | 0.2500 |" in card


class FakeHub:
    """Hub that keeps what it was asked for."""

    calls: ClassVar[list] = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options["repo_type"], options["private"]))

    def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message):
        assert (folder_path / "README.md").exists()
        self.calls.append(("upload", repo_id, repo_type, commit_message))


def test_push_uploads_model_and_table(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    out = tmp_path / "out"
    push = ("--push_to_hub", "me/movies_encoder")
    assert sidrec("export", "--from", tiny.encoder_run, "--out", out, *push) == 0
    assert [call[:3] for call in FakeHub.calls] == [
        ("create", "me/movies_encoder", "model"),
        ("upload", "me/movies_encoder", "model"),
        ("create", "me/movies_encoder-semantic-ids", "dataset"),
        ("upload", "me/movies_encoder-semantic-ids", "dataset"),
    ]
    assert all(call[3] is True for call in FakeHub.calls if call[0] == "create")
    assert 'SentenceTransformer("me/movies_encoder")' in (out / "README.md").read_text()
    assert "pushed: me/movies_encoder\n" in capsys.readouterr().out


def test_hub_that_refuses_leaves_the_folder(tiny, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    out = tmp_path / "out"
    command = ("export", "--from", tiny.encoder_run, "--out", out, "--push_to_hub", "me/enc")
    assert sidrec(*command) == 1
    error = capsys.readouterr().err
    assert "me/enc cannot be pushed (Token is required); `hf auth login` sets a token" in error
    assert error.strip().splitlines()[-1].startswith("sidrec:")
    assert (out / "modules.json").exists()


def unfinished(tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"state": "running", "stage": "encoder"}))
    return run, tmp_path / "out"


def not_empty(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    return tiny.encoder_run, tmp_path / "out"


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (unfinished, (), "is not a finished run (state 'running')"),
        (not_empty, (), "exists and is not empty; give a new folder"),
        (
            lambda tiny, tmp_path: (tiny.encoder_run, tmp_path / "out"),
            ("--push_to_hub", "a/b/c"),
            "--push_to_hub 'a/b/c' is no name on the hub",
        ),
        (lambda tiny, tmp_path: (tmp_path / "none", tmp_path / "out"), (), "does not exist"),
    ],
)
def test_refusals_are_one_line(tiny, tmp_path, capsys, case, options, message):
    run, out = case(tiny, tmp_path)
    assert sidrec("export", "--from", run, "--out", out, *options) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (out / "modules.json").exists()
