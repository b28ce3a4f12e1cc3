import pytest
import torch
import yaml

from sidrec.corpus.store import Corpus
from sidrec.distributed import device_named
from sidrec.errors import ConfigError, RunError
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.append import attributes_of_run, stored_bundle
from sidrec.semantic_ids.collisions.policies import KeepCollisions
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.types import ItemEmbeddings
from tests.pairs.made import make_corpus
from tests.semantic_ids.made import small_settings


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "corpus"
    make_corpus(folder)
    return folder


@pytest.fixture
def run(tmp_path, corpus_folder):
    """A run directory with a bundle of the corpus, as the encoder's stage leaves it."""
    run = RunDirectory(tmp_path / "enc")
    corpus = Corpus.load(corpus_folder)
    build_semantic_ids(
        ItemEmbeddings(torch.randn(corpus.num_items, 4), "e" * 64, corpus.fingerprint),
        quantizer=small_settings(4, 4),
        policy=KeepCollisions(),
        item_ids=corpus.item_ids(),
        titles=corpus.item_titles(),
        source={},
        device=torch.device("cpu"),
    ).save(run.semantic_ids)
    run.config.write_text(yaml.safe_dump({"data": {"init_args": {"corpus": str(corpus_folder)}}}))
    return run


def test_attributes_come_from_the_corpus_of_the_run(run, corpus_folder, capsys):
    corpus = Corpus.load(corpus_folder)
    expected = set(corpus.items.column_names) - {"item_index", "item_id", "title", "text"}
    for folder in (run.root, run.semantic_ids):
        found = attributes_of_run(folder, corpus.fingerprint)
        assert {attribute.name for attribute in found} <= expected
        assert found, corpus.items.column_names
    assert capsys.readouterr().err == ""


def test_a_corpus_that_is_gone_or_has_changed_is_said(run, capsys):
    assert attributes_of_run(run.root, "0" * 64) == []
    assert "of the run has changed" in capsys.readouterr().err
    run.config.write_text("data: {init_args: {corpus: nowhere}}")
    assert attributes_of_run(run.root, "0" * 64) == []
    assert "does not exist here" in capsys.readouterr().err
    run.config.unlink()
    assert attributes_of_run(run.root, "0" * 64) == []
    assert capsys.readouterr().err == ""


def test_an_unfinished_run_is_refused_and_its_bundle_alone_is_not(run):
    with pytest.raises(RunError, match="not a finished run"):
        stored_bundle(run.root)
    assert len(stored_bundle(run.semantic_ids).item_ids) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert device_named("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no GPU is visible"):
        device_named("cuda")
    with pytest.raises(ConfigError, match=r"--device must be auto, cpu or cuda, got 'gpu'"):
        device_named("gpu")
