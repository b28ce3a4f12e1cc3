import os
import pickle
import resource
import signal
import warnings

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import save

from sidrec.errors import RunError
from sidrec.runs.callbacks import CheckpointFiles
from sidrec.runs.checkpoints import (
    checked,
    damage_of,
    keep_previous,
    newest_whole_checkpoint,
    read_checkpoint,
    replace_folder,
    set_aside_damaged,
    step_of,
    write_checkpoint,
)
from sidrec.runs.directory import RunDirectory

CONTENT = {"global_step": 7, "state_dict": {"w": torch.arange(500.0)}, "text": "x" * 100}


@pytest.fixture
def run(tmp_path):
    """A run with two whole checkpoints, of steps 7 and 8."""
    run = RunDirectory(tmp_path)
    write_checkpoint(CONTENT, run.last_checkpoint)
    keep_previous(run)
    write_checkpoint(CONTENT | {"global_step": 8}, run.last_checkpoint)
    return run


def flip(file, place, bit=0):
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def test_the_newest_is_taken(run, capsys):
    assert newest_whole_checkpoint(run) == run.last_checkpoint
    assert capsys.readouterr().err == ""
    assert torch.load(run.previous_checkpoint, weights_only=True)["global_step"] == 7


def test_a_new_run_has_none(tmp_path):
    assert newest_whole_checkpoint(RunDirectory(tmp_path)) is None


def truncate(file):
    file.write_bytes(file.read_bytes()[:-300])


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip_a_weight(file):
    flip(file, file.read_bytes().index(torch.arange(500.0).numpy().tobytes()[400:480]))


def replace_by_text(file):
    file.write_text("no checkpoint")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "truncated or damaged"),
        (halve, "truncated or damaged"),
        (empty, "empty"),
        (flip_a_weight, "wrong checksum in"),
        (replace_by_text, "not a zip file"),
    ],
)
def test_a_damaged_newest_gives_way_to_the_one_before(run, capsys, damage, why):
    damage(run.last_checkpoint)
    chosen = newest_whole_checkpoint(run)
    assert chosen == run.previous_checkpoint
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
    assert "using the previous checkpoint" in line
    set_aside_damaged(run, chosen)
    keep_previous(run)  # what comes before the next checkpoint: the whole one stays
    assert damage_of(run.previous_checkpoint) is None
    with pytest.raises(RunError, match=r"last\.damaged cannot be read"):
        checked(run.last_checkpoint.with_suffix(".damaged"))


def test_no_whole_checkpoint_is_one_clear_error(run):
    empty(run.last_checkpoint)
    truncate(run.previous_checkpoint)
    with pytest.raises(RunError, match=r"last\.ckpt: empty; .*previous\.ckpt: truncated.*to begin"):
        newest_whole_checkpoint(run)


def test_a_missing_newest_gives_way_too(run):
    run.last_checkpoint.unlink()
    assert newest_whole_checkpoint(run) == run.previous_checkpoint


def test_any_flipped_bit_is_found_or_harmless(tmp_path):
    file = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, file)
    whole = file.read_bytes()
    draw = np.random.default_rng(0)
    num_found = 0
    for place in draw.choice(len(whole), size=400, replace=False).tolist():
        file.write_bytes(whole)
        flip(file, place, bit=int(draw.integers(8)))
        if damage_of(file) is not None:
            num_found += 1
            continue
        loaded = torch.load(file, weights_only=True)
        assert loaded["global_step"] == 7, place
        assert torch.equal(loaded["state_dict"]["w"], CONTENT["state_dict"]["w"]), place
        assert loaded["text"] == CONTENT["text"], place
    assert num_found > 150  # the rest lies in padding and in fields that nobody reads


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"global_step": 1, "hook": print}, file)
    assert damage_of(file).startswith("damaged: UnpicklingError")


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(run):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunError, match=r"last\.ckpt cannot be written .*GB free.*Free space"):
            write_checkpoint(CONTENT | {"global_step": 9}, run.last_checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 8
    assert sorted(file.name for file in run.last_checkpoint.parent.iterdir()) == [
        "last.ckpt",
        "last.previous.ckpt",
    ]


def write_sharded(folder, step, *, is_whole=True):
    """Write what Lightning does with ``state_dict_type: sharded``; its facts come last."""
    state = {"model": {"a.weight": torch.arange(6.0)}, "optimizer_0": {"step": torch.ones(3)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process alone
        save(state, checkpoint_id=folder, no_dist=True)
    if is_whole:
        torch.save({"global_step": step}, folder / "meta.pt")


def test_a_sharded_checkpoint_is_a_folder(tmp_path):
    run = RunDirectory(tmp_path)
    write_sharded(run.last_checkpoint, 7)
    assert newest_whole_checkpoint(run) == run.last_checkpoint
    assert step_of(run.last_checkpoint) == 7
    keep_previous(run)
    assert newest_whole_checkpoint(run) == run.previous_checkpoint  # while the next is written
    write_sharded(run.last_checkpoint, 8, is_whole=False)
    keep_previous(run)
    assert newest_whole_checkpoint(run) == run.previous_checkpoint
    assert step_of(run.previous_checkpoint) == 7
    set_aside_damaged(run, run.previous_checkpoint)
    write_sharded(run.last_checkpoint, 9)
    keep_previous(run)
    assert step_of(run.previous_checkpoint) == 9


def test_a_folder_of_shards_is_read_whole(tmp_path):
    folder = tmp_path / "last.ckpt"
    write_sharded(folder, 7)
    for read in (read_checkpoint, CheckpointFiles().load_checkpoint):
        found = read(folder)
        assert found.keys() == {"global_step", "state_dict"}
        assert torch.equal(found["state_dict"]["a.weight"], torch.arange(6.0))


def test_a_damaged_or_hostile_folder_of_shards_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "last.ckpt"
    write_sharded(folder, 7)
    shard = folder / "__0_0.distcp"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert damage_of(folder) == "damaged: ValueError"
    shard.unlink()
    assert damage_of(folder) == "No such file or directory"
    shard.write_bytes(content)
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(RunError, match=r"last\.ckpt cannot be read \(damaged: UnpicklingError\)"):
        read_checkpoint(folder)
    assert not (tmp_path / "hostile").exists()


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile",))


def test_a_folder_takes_the_place_of_a_checkpoint(tmp_path):
    target, part = tmp_path / "best.ckpt", tmp_path / ".best.ckpt.part"
    target.write_text("a file")
    for step in (1, 2):
        write_sharded(part, step)
        replace_folder(part, target)
        assert step_of(target) == step
        assert list(tmp_path.iterdir()) == [target]
