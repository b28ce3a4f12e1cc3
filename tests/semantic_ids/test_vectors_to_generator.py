"""Own vectors, and items that came after training, all the way to answers."""

import json
import shutil
from dataclasses import replace

import polars as pl
import pytest
import torch

from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from tests.tiny import sidrec

SMALL = [
    "--quantizer=sidrec.RqKMeans",
    "--quantizer.codebook_sizes=[8, 8]",
    "--quantizer.num_iterations=3",
    "--quantizer.tolerance=0",
    "--quantizer.num_redo=1",
    "--quantizer.init=progressive",
    "--quantizer.sample_rows_per_code=64",
    "--quantizer.normalize_residuals=false",
    "--quantizer.seed=1",
    "--policy=sidrec.ExtraLevel",
    "--policy.num_codes=60",
]


def vectors_of(ids, file):
    generator = torch.Generator().manual_seed(len(ids[0]))
    vectors = {item: torch.randn(12, generator=generator).tolist() for item in sorted(ids)}
    table = {"item_id": ids, "embedding": [vectors[item] for item in ids]}
    pl.DataFrame(table).write_parquet(file)
    return file


def make(file, corpus, out):
    return sidrec("ids", "--embeddings", file, "--corpus", corpus, "--out", out, *SMALL)


def test_own_vectors_in_any_order_train_test_and_retrieve(tiny, tmp_path, capsys):
    ids = Corpus.load(tiny.corpus).item_ids()
    shuffled = [ids[row] for row in torch.randperm(len(ids)).tolist()]
    for name, order in (("plain", ids), ("shuffled", [*shuffled, "stranger"])):
        file = vectors_of(order, tmp_path / f"{name}.parquet")
        if "stranger" in order:  # its own vector must not move the others
            frame = pl.read_parquet(tmp_path / "plain.parquet")
            extra = pl.DataFrame({"item_id": ["stranger"], "embedding": [[1.0] * 12]})
            pl.concat([frame[[ids.index(i) for i in shuffled]], extra]).write_parquet(file)
        assert make(file, tiny.corpus, tmp_path / name) == 0
    assert "1 items are not in the corpus (first: 'stranger')" in capsys.readouterr().err
    plain, other = (SemanticIdBundle.load(tmp_path / name) for name in ("plain", "shuffled"))
    assert plain.hash == other.hash
    assert plain.item_ids == ids
    run = tmp_path / "gen"
    given = ["--data.corpus", tiny.corpus, "--model.semantic_ids", tmp_path / "plain"]
    tokens = ["--model.inputs.text_input=tokens", "--model.prior=null"]
    fit = ("fit", "--config", tiny.generator_config, *given, *tokens, "--run_dir", run)
    assert sidrec(*fit) == 0
    assert sidrec("test", "--from", run) == 0
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text(json.dumps({"id": "a", "task": "search", "query": "film"}) + "\n")
    assert sidrec("retrieve", "--from", run, "--input", requests, "--output", answers) == 0
    assert len(json.loads(answers.read_text())["items"]) == 30


def test_missing_vectors_and_nameless_rows_are_one_line(tiny, tmp_path, capsys):
    ids = Corpus.load(tiny.corpus).item_ids()
    file = vectors_of(ids[2:], tmp_path / "few.parquet")
    assert make(file, tiny.corpus, tmp_path / "x") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"lacks the vectors of 2 of {len(ids)} items of the corpus (first: '{ids[0]}')" in line
    pl.read_parquet(file).drop("item_id").write_parquet(tmp_path / "nameless.parquet")
    assert make(tmp_path / "nameless.parquet", tiny.corpus, tmp_path / "x") == 3
    assert "does not name its items" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def appended(tiny, tmp_path_factory):
    """The bundle of the generator's run with four new items, made of their texts."""
    folder = tmp_path_factory.mktemp("appended")
    rows = ["item_id,title,description"]
    rows += [f"new{n},New film {n},a story about number {n}" for n in range(4)]
    (folder / "new_items.csv").write_text("\n".join(rows) + "\n")
    out = folder / "ids2"
    append = ("ids", "--append", folder / "new_items.csv", "--from", tiny.encoder_run)
    assert sidrec(*append, "--out", out, "--device", "cpu") == 0
    return out


def test_texts_are_encoded_as_those_of_the_run(tiny, appended, tmp_path):
    corpus, old = Corpus.load(tiny.corpus), SemanticIdBundle.load(appended)
    table = {"item_id": ["again"], "title": corpus.item_titles()[:1]}
    table["text"] = corpus.item_texts()[:1]
    pl.DataFrame(table).write_ndjson(tmp_path / "again.jsonl")
    out = tmp_path / "ids"
    append = ("ids", "--append", tmp_path / "again.jsonl", "--from", tiny.encoder_run)
    assert sidrec(*append, "--out", out) == 0
    vectors = SemanticIdBundle.load(out).embeddings.vectors
    torch.testing.assert_close(vectors[-1], vectors[0], rtol=1e-5, atol=1e-5)
    assert old.item_ids[-4:] == ["new0", "new1", "new2", "new3"]


def test_new_items_are_served_and_old_lists_stay(tiny, appended):
    before = Retriever.load(tiny.generator_run, device="cpu")
    after = Retriever.load(tiny.generator_run, device="cpu", semantic_ids=appended)
    old, new = before.generator.ids.item_ids, [f"new{n}" for n in range(4)]
    found = after.search(["film", "rain in the city"], top_k=10, allowed=new)
    for answer in found:
        assert sorted(item.item_id for item in answer) == new
    assert after.search(["film"], allowed=old) == before.search(["film"], allowed=old)
    assert after.recommend([old[:3]], allowed=old) == before.recommend([old[:3]], allowed=old)
    assert after.recommend([old[:3]], allowed=old[5:9]) == before.recommend(
        [old[:3]], allowed=old[5:9]
    )
    (everything,) = after.search(["film"], top_k=1000)
    assert sorted(item.item_id for item in everything) == sorted([*old, *new])
    (following,) = after.recommend([["new1", old[0]]], top_k=5, allowed=old)
    assert len(following) == 5


def test_retrieve_takes_the_larger_bundle(tiny, appended, tmp_path):
    asked = {"id": "a", "task": "search", "query": "film", "allowed": ["new2"]}
    (tmp_path / "in.jsonl").write_text(json.dumps(asked) + "\n")
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    run = ("retrieve", "--from", tiny.generator_run, "--device", "cpu", *files)
    assert sidrec(*run, "--ids", appended) == 0
    (item,) = json.loads((tmp_path / "out.jsonl").read_text())["items"]
    assert item["item_id"] == "new2"


def test_a_changed_old_item_is_refused(tiny, appended, tmp_path):
    bundle = SemanticIdBundle.load(appended)
    codes = bundle.table.codes.clone()
    codes[3] = codes[-1].roll(1)
    table = type(bundle.table)(codes.clamp(max=7), bundle.table.codebook_sizes)
    replace(bundle, table=table).save(tmp_path / "changed")
    with pytest.raises(DataError, match=r"old items have another Semantic ID .*first: '"):
        Retriever.load(tiny.generator_run, device="cpu", semantic_ids=tmp_path / "changed")
    fewer = type(bundle.table)(bundle.table.codes[:, :2], bundle.table.codebook_sizes[:2])
    replace(bundle, table=fewer).save(tmp_path / "fewer")
    with pytest.raises(DataError, match=r"codebook sizes \[8, 8\], the generator was trained on"):
        Retriever.load(tiny.generator_run, device="cpu", semantic_ids=tmp_path / "fewer")
    ids = [bundle.item_ids[1], bundle.item_ids[0], *bundle.item_ids[2:]]
    replace(bundle, item_ids=ids).save(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"item_id '{ids[1]}' is item 0 of the generator's"):
        Retriever.load(tiny.generator_run, device="cpu", semantic_ids=tmp_path / "moved")
    vectors = replace(bundle.embeddings, vectors=bundle.embeddings.vectors * 2)
    replace(bundle, embeddings=vectors).save(tmp_path / "scaled")
    with pytest.raises(DataError, match="Old items have other vectors"):
        Retriever.load(tiny.generator_run, device="cpu", semantic_ids=tmp_path / "scaled")


def test_texts_need_the_encoder_of_the_bundle(tiny, appended, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("item_id,title\nn,Film\n")
    append = ("ids", "--append", tmp_path / "new.csv", "--out", tmp_path / "out")
    assert sidrec(*append, "--from", appended) == 2
    assert "is a bundle, which cannot encode texts" in capsys.readouterr().err
    other = RunDirectory(tmp_path / "other")
    shutil.copytree(tiny.encoder_run, other.root)
    shutil.rmtree(other.semantic_ids)
    bundle = SemanticIdBundle.load(appended)
    foreign = replace(bundle.embeddings, encoder_hash="external")
    replace(bundle, embeddings=foreign).save(other.semantic_ids)
    append = ("ids", "--append", tmp_path / "new.csv", "--from", other.root)
    assert sidrec(*append, "--out", tmp_path / "x") == 3
    assert "vectors were not made by the encoder of" in capsys.readouterr().err
