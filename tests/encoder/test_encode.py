import socket
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sidrec.corpus.store import ColumnStrings
from sidrec.encoder import encode as catalogue
from sidrec.encoder import sharded_memmap as vector_file
from sidrec.encoder.encode import (
    encode_catalogue,
    encode_over_ranks,
    encode_texts,
    encoder_hash,
)
from sidrec.encoder.sharded_memmap import SharedVectors, share_of_rank
from sidrec.encoder.tower import TextTower
from sidrec.errors import SidrecError
from tests.ranks import run_on_ranks

SIZES = {"max_tokens": 20, "batch_size": 7}


def load(encoder):
    return TextTower(encoder, revision=None, dropout=None, length_groups=1)


def test_row_by_row_the_same_as_one_text_at_a_time(encoder, corpus):
    tower, texts = load(encoder), corpus.item_texts()[:15]
    found = encode_texts(tower, texts, kind="item", **SIZES)
    assert tower.training  # as before
    tower.eval()
    alone = torch.cat([tower(tower.tokenize([text], max_tokens=20, kind="item")) for text in texts])
    torch.testing.assert_close(found, alone.detach(), atol=1e-6, rtol=1e-5)


def test_no_texts(encoder):
    assert encode_texts(load(encoder), [], kind="item", **SIZES).shape == (0, 16)


def test_catalogue_carries_its_origin(encoder, corpus):
    tower = load(encoder)
    found = encode_catalogue(tower, corpus, **SIZES)
    assert found.vectors.shape == (corpus.num_items, 16)
    assert found.corpus_fingerprint == corpus.fingerprint
    assert found.encoder_hash == encoder_hash(tower)


def test_hash_sees_every_weight(encoder):
    tower = load(encoder)
    before = encoder_hash(tower)
    assert encoder_hash(load(encoder)) == before
    tower.model.embeddings.LayerNorm.bias.data[3] += 1e-6
    assert encoder_hash(tower) != before


def encode_own_share(rank, world_size, tmp_path):
    folder, texts = torch.load(tmp_path / "input.pt")
    torch.save(
        encode_over_ranks(load(folder), texts, kind="item", **SIZES), tmp_path / f"{rank}.pt"
    )


def test_any_number_of_ranks_gives_the_same(encoder, corpus, tmp_path):
    texts = corpus.item_texts()[:11]
    torch.save((encoder, texts), tmp_path / "input.pt")
    run_on_ranks(encode_own_share, tmp_path)
    expected = encode_texts(load(encoder), texts, kind="item", **SIZES)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def encode_own_share_into_a_file(rank, world_size, tmp_path):
    folder, texts, hosts = torch.load(tmp_path / "input.pt")
    catalogue._IN_MEMORY_BYTES, vector_file._ROWS_TOGETHER = 0, 4
    socket.gethostname = lambda: f"host-{rank % hosts}"
    found = encode_over_ranks(load(folder), texts, folder=tmp_path, kind="item", **SIZES)
    torch.save(found.clone(), tmp_path / f"{rank}.pt")


@pytest.mark.parametrize("hosts", [1, 2])
def test_vectors_in_a_file_are_the_same_and_the_file_is_gone(encoder, corpus, hosts, tmp_path):
    texts = corpus.item_texts()[:11]
    torch.save((encoder, texts, hosts), tmp_path / "input.pt")
    run_on_ranks(encode_own_share_into_a_file, tmp_path)
    expected = encode_texts(load(encoder), texts, kind="item", **SIZES)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not list(tmp_path.glob("vectors-*"))


def test_a_large_catalogue_lies_in_a_file(encoder, corpus, monkeypatch):
    monkeypatch.setattr(catalogue, "_IN_MEMORY_BYTES", 0)
    tower = load(encoder)
    in_file = encode_catalogue(tower, corpus, **SIZES).vectors
    monkeypatch.setattr(catalogue, "_IN_MEMORY_BYTES", 1 << 30)
    torch.testing.assert_close(in_file, encode_catalogue(tower, corpus, **SIZES).vectors)


def test_other_hosts_read_the_file_by_its_name(tmp_path, monkeypatch):
    """A host that keeps its file open may go on reading what it knew before others wrote."""
    for one_host in (True, False):
        monkeypatch.setattr(vector_file, "on_one_host", lambda one_host=one_host: one_host)
        shared = SharedVectors(tmp_path, 2, 3)
        shared.write(0, torch.ones(2, 3))
        names = list(tmp_path.glob("vectors-*"))
        assert len(names) == (0 if one_host else 1)
        for name in names:
            name.unlink()
            name.write_bytes(torch.full((2, 3), 7.0).numpy().tobytes())
        assert torch.equal(shared.all(), torch.full((2, 3), 1.0 if one_host else 7.0))
    SharedVectors(tmp_path, 2, 3).all()  # takes the name of the one before away, not its own
    assert len(list(tmp_path.glob("vectors-*"))) == 1
    SharedVectors._forget_the_one_before()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("num_rows", [1, 16_384, 100_000, 10_000_001])
def test_no_page_has_rows_of_two_ranks(num_rows, world_size):
    shares = [share_of_rank(num_rows, rank, world_size) for rank in range(world_size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == num_rows
    for (_, end), (first, _) in pairwise(shares):
        assert end == first
        assert first * 4 % 65_536 == 0  # times any width


def write_to_a_full_disk(rank, world_size, tmp_path):
    shared = SharedVectors(tmp_path, 3, 4)
    if rank == 1:
        shared._stream.close()
        shared._stream = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 (it closes it)
    shared.write(0, torch.ones(3, 4))
    with pytest.raises(SidrecError, match="No space left on device"):
        shared.all()


def test_every_rank_fails_if_one_cannot_write(tmp_path):
    run_on_ranks(write_to_a_full_disk, tmp_path)


def see_no_folder(rank, world_size, tmp_path):
    with pytest.raises(SidrecError, match="No such file or directory"):
        SharedVectors(tmp_path if rank == 0 else tmp_path / "not mounted here", 3, 4)


def test_every_rank_fails_if_one_does_not_see_the_folder(tmp_path):
    run_on_ranks(see_no_folder, tmp_path)
    assert not list(tmp_path.glob("vectors-*"))


def test_a_folder_that_cannot_hold_the_vectors_is_named(tmp_path):
    with pytest.raises(SidrecError, match=r"no cannot hold 0\.0 GiB of item embeddings"):
        SharedVectors(tmp_path / "no", 3, 4)


def test_a_column_of_strings_is_read_where_it_is_asked_for(corpus):
    column = corpus.item_text_column()
    assert list(column) == corpus.item_texts()
    assert column[3] == corpus.item_texts()[3]
    part = column[10:20]
    assert isinstance(part, ColumnStrings)
    assert list(part[2:5]) == corpus.item_texts()[12:15]
    assert not len(column[50:10])
    with pytest.raises(ValueError, match="step 1, got 2"):
        column[::2]
