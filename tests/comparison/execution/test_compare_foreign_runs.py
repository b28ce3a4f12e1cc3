"""Runs made elsewhere stand in the table of ``sidrec compare``, or are refused before any work."""

import pytest

from sidrec.corpus.store import Corpus
from sidrec.errors import DataError, RunError
from sidrec.runs.directory import RunDirectory
from tests.comparison.fakes import write_answers
from tests.comparison.made import compare, edit

pytestmark = pytest.mark.usefixtures("_quick_disk")


def test_a_run_made_elsewhere_stands_beside(config, launcher, folder, tmp_path):
    write_answers(tmp_path / "foreign", Corpus.load(folder / "corpus"), seed=5, quality=0.9)
    edit(config, runs={"other": [str(tmp_path / "foreign")]})
    report = compare(config)
    assert report["systems"][-1]["name"] == "other"
    assert report["systems"][-1]["kind"] == "run"


def test_a_run_over_another_corpus_is_refused(config, launcher, folder, tmp_path):
    corpus = Corpus.load(folder / "corpus")
    write_answers(tmp_path / "foreign", corpus, seed=5)
    manifest = tmp_path / "foreign" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(corpus.fingerprint, "d" * 64))
    edit(config, runs={"other": [str(tmp_path / "foreign")]})
    with pytest.raises(DataError, match="one table holds one corpus"):
        compare(config)
    assert launcher.ran == []  # said before hours of work, not after them


def test_a_run_of_another_split_is_refused(config, launcher, folder, tmp_path):
    write_answers(tmp_path / "foreign", Corpus.load(folder / "corpus"), seed=5, split="valid")
    edit(config, runs={"other": [str(tmp_path / "foreign")]})
    with pytest.raises(DataError, match="answers the split 'valid', expected 'test'"):
        compare(config)
    assert launcher.ran == []


@pytest.mark.parametrize("state", ["running", "failed", None])
def test_a_half_finished_run_is_refused(config, launcher, folder, tmp_path, state):
    foreign = RunDirectory(tmp_path / "foreign")
    write_answers(foreign.root, Corpus.load(folder / "corpus"), seed=5)
    if state:
        foreign.write_manifest(state=state)
    else:
        foreign.predictions.unlink()
    edit(config, runs={"other": [str(foreign.root)]})
    with pytest.raises(RunError, match=r"finish it first|run `sidrec test --from"):
        compare(config)
    assert launcher.ran == []
