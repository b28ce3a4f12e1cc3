import errno

import pytest
import torch

from sidrec.encoder.tower import TextTower, mean_pool
from sidrec.errors import DataError, SidrecError
from sidrec.generator.model import query_state_cache as text_states
from sidrec.generator.model.query_state_cache import store_text_states
from tests.ranks import run_on_ranks

TEXTS = ["heist in paris", "rain", "a slow drama by the sea with rain and rain", "space opera"]


def tower_of(encoder):
    return TextTower(encoder, revision=None, dropout=None, length_groups=1)


def stored(encoder, folder, **changes):
    settings = {"max_tokens": 7, "batch_size": 2, "bf16": False} | changes
    return store_text_states(tower_of(encoder), TEXTS, folder=folder, **settings)


def test_states_are_the_towers_own_in_bfloat16(encoder, tmp_path):
    tower, states = tower_of(encoder).eval(), stored(encoder, tmp_path)
    tokens = tower.tokenize(TEXTS, max_tokens=7, kind="query")
    expected = tower.token_states(tokens)
    found, mask = states.gather(torch.arange(4))
    assert torch.equal(mask, tokens.mask)
    for row in range(4):
        own = expected[row, mask[row]]
        torch.testing.assert_close(found[row, mask[row]].float(), own, atol=1e-5, rtol=2**-8)
    pooled = torch.nn.functional.normalize(mean_pool(found.float(), mask), dim=1)
    torch.testing.assert_close(pooled, tower(tokens), atol=5e-3, rtol=0)


def test_rows_in_any_order_repeated_or_absent(encoder, tmp_path):
    states = stored(encoder, tmp_path)
    found, mask = states.gather(torch.tensor([1, -1, 1, 0]))
    assert mask.sum(dim=1).tolist()[1] == 0
    assert torch.equal(found[0], found[2])
    assert mask[3].sum() == states.lengths[0]
    nothing, none = states.gather(torch.tensor([-1]))
    assert nothing.shape == (1, 1, 16)
    assert not none.any()


def test_written_anew_even_beside_older_files(encoder, tmp_path):
    for number in (0, 7):  # of a run with more ranks
        (tmp_path / f"text_states.{number}.bin").write_bytes(b"x" * 999)
    first = stored(encoder, tmp_path).gather(torch.arange(4))[0]
    assert torch.equal(stored(encoder, tmp_path).gather(torch.arange(4))[0], first)
    assert [file.name for file in tmp_path.iterdir()] == ["text_states.0.bin"]


def test_a_single_flipped_bit_is_noticed(encoder, tmp_path):
    states = stored(encoder, tmp_path)
    file = tmp_path / "text_states.0.bin"
    content = bytearray(file.read_bytes())
    content[2 * 16 * int(states.first[2]) + 5] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)
    states.gather(torch.tensor([0, 1, 3]))
    with pytest.raises(DataError, match=r"text_states\.0\.bin is damaged at text 2; run the same"):
        states.gather(torch.tensor([2]))


def on_ranks(rank, world_size, tmp_path):
    encoder, folder = (tmp_path / "encoder.txt").read_text(), tmp_path / "shared"
    states = stored(encoder, folder, batch_size=1)
    assert set(states.file) == set(range(world_size))  # each wrote a file of its own
    torch.save(states.gather(torch.arange(4)), tmp_path / f"states-{rank}.pt")


@pytest.mark.slow
def test_ranks_share_the_work_and_see_all_of_it(encoder, tmp_path):
    (tmp_path / "encoder.txt").write_text(encoder)
    run_on_ranks(on_ranks, tmp_path)
    alone = stored(encoder, tmp_path / "alone", batch_size=1).gather(torch.arange(4))
    for rank in range(2):
        found = torch.load(tmp_path / f"states-{rank}.pt")
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_a_full_disk_is_one_line(encoder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(text_states.os, "posix_fallocate", full)
    with pytest.raises(SidrecError, match=r"text_states\.0\.bin cannot be written: No space left"):
        stored(encoder, tmp_path)
