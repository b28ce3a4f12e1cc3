import errno
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.corpus import memmap_cache as derived
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError, SidrecError
from tests.corpus.small import build_small


@pytest.fixture
def folder(tmp_path):
    build_small(tmp_path / "out")
    return tmp_path / "out"


def test_small_corpus_by_hand(folder):
    corpus = Corpus.load(folder, verify=True)
    assert (corpus.num_items, corpus.num_users) == (4, 3)
    assert corpus.item_ids() == ["i1", "i2", "i3", "i4"]
    assert corpus.item_texts()[3] == "Text of i4."
    assert corpus.item_titles()[0] == "Title i1"
    assert corpus.interactions[1]["user_id"] == "b"
    assert corpus.queries[2]["item_index"] == [1, 2]
    train = corpus.train_interactions()
    assert train.user_index.tolist() == [0, 1, 1, 2, 2]
    assert train.item_index.tolist() == [0, 1, 2, 0, 1]
    assert train.timestamp.tolist() == [1, 10, 20, 7, 8]
    assert train.user_starts.tolist() == [0, 1, 3, 5]
    timelines = corpus.timelines()
    assert timelines.item_index.tolist() == [0, 1, 2, 1, 2, 0, 3, 0, 1]
    assert timelines.split.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 0]
    assert timelines.user_starts.tolist() == [0, 3, 7, 9]


def test_everything_is_mapped_not_copied(folder):
    before = pa.total_allocated_bytes()
    corpus = Corpus.load(folder)
    assert corpus.interactions.data.column("timestamp").chunk(0).to_numpy().sum() == 126
    assert pa.total_allocated_bytes() == before
    arrays = [one for one in corpus.train_interactions() if one is not None]  # no weights here
    assert all(isinstance(array, np.memmap) for array in arrays)
    assert corpus.interactions.cache_files[0]["filename"].startswith(str(folder / ".cache"))
    with pytest.raises(ValueError, match="read-only"):
        corpus.train_interactions().item_index[0] = 3


def test_cache_can_be_removed_at_any_time(folder):
    first = Corpus.load(folder).train_interactions()
    shutil.rmtree(folder / ".cache")
    again = Corpus.load(folder).train_interactions()
    assert again.item_index.tolist() == first.item_index.tolist()


def test_read_only_folder_uses_the_cache_of_the_user(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path / "cache"))
    (folder / ".cache").write_text("a file, so that no folder can be made here")
    corpus = Corpus.load(folder)
    assert corpus.train_interactions().item_index.tolist() == [0, 1, 2, 0, 1]
    assert corpus.items.cache_files[0]["filename"].startswith(str(tmp_path / "cache"))


def test_another_corpus_in_the_same_place_is_not_mixed_up(folder):
    Corpus.load(folder).train_interactions()
    build_small(folder, rows=[("z", "i4", 1), ("z", "i3", 2)])
    assert Corpus.load(folder).train_interactions().item_index.tolist() == [3, 2]


def test_worker_process_gets_a_corpus_without_copying_it(folder):
    corpus = Corpus.load(folder)
    corpus.train_interactions()
    parcel = pickle.dumps(corpus)
    assert len(parcel) < 1_000
    assert pickle.loads(parcel).fingerprint == corpus.fingerprint  # noqa: S301 (our own bytes)


def test_processes_that_make_the_copies_at_once_agree(folder, monkeypatch):
    stream = derived._write_stream

    def another_was_faster(parquet, target):
        stream(parquet, target)
        shutil.copy(target, target.parent / f"{parquet.stem}.arrow")

    monkeypatch.setattr(derived, "_write_stream", another_was_faster)
    assert Corpus.load(folder).item_ids() == ["i1", "i2", "i3", "i4"]
    assert not [file.name for file in (folder / ".cache").rglob("*.part")]


def test_truncated_parquet_is_named(folder):
    file = folder / "interactions.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"interactions\.parquet is damaged: .* prepare again"):
        Corpus.load(folder)


def test_missing_file_and_missing_column_are_named(folder):
    table = pq.read_table(folder / "items.parquet")
    pq.write_table(table.rename_columns({"text": "txt"}), folder / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet has no column 'text' of type string"):
        Corpus.load(folder)
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"items\.parquet is missing"):
        Corpus.load(folder)


def test_rows_that_went_missing_are_counted(folder):
    table = pq.read_table(folder / "queries.parquet")
    pq.write_table(table.slice(1), folder / "queries.parquet")
    with pytest.raises(DataError, match=r"queries\.parquet has 3 rows, corpus.json says 4"):
        Corpus.load(folder)


def test_changed_value_is_found_by_verify_only(folder):
    table = pq.read_table(folder / "items.parquet")
    other = table.set_column(2, "title", pa.array(["another"] * 4))
    pq.write_table(other, folder / "items.parquet")
    Corpus.load(folder)
    with pytest.raises(DataError, match=r"items\.parquet differs from its hash in corpus.json"):
        Corpus.load(folder, verify=True)


def test_other_schema_version_and_no_corpus_are_refused(folder, tmp_path):
    description = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(description | {"schema_version": 99}))
    with pytest.raises(DataError, match=r"has schema_version 99, expected 2"):
        Corpus.load(folder)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(DataError, match=r"is not valid JSON"):
        Corpus.load(folder)
    with pytest.raises(DataError, match=r"is not a corpus: it has no corpus.json"):
        Corpus.load(tmp_path)


def test_corpus_without_queries_opens(tmp_path):
    build_small(tmp_path / "out", queries=[])
    assert len(Corpus.load(tmp_path / "out").queries) == 0


def test_full_disk_under_the_copies_is_one_line_and_leaves_nothing(folder, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(derived, "_write_stream", full)
    with pytest.raises(SidrecError, match=r"cannot be written: No space left on device; free"):
        Corpus.load(folder)
    assert [path for path in (folder / ".cache").rglob("*") if path.is_file()] == []


def test_nowhere_to_write_the_copies_is_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path / "cache"))
    (folder / ".cache").write_text("no folder")
    with pytest.raises(SidrecError, match=r"set SIDREC_CACHE to a folder"):
        Corpus.load(folder)
