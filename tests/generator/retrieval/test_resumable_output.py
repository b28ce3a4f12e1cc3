"""An interrupted ``sidrec retrieve`` resumes, and ends with the bytes of an undisturbed one."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.cli.retrieve import answer_file
from sidrec.errors import ConfigError
from sidrec.generator.retrieval.resumable_output import read_lines
from tests.generator.echo import Echo
from tests.tiny import sidrec

SLOWLY = """
import sys
from sidrec.cli.retrieve import answer_file
from tests.generator.echo import Echo
settings = {"depends_on": {"run": "r"}, "top_k": 3, "batch_size": 1, "block_lines": 16}
answer_file(Echo(seconds=0.02), *sys.argv[1:], **settings)
"""


def requests_file(folder, num_lines):
    lines = [
        json.dumps({"id": str(row), "task": "search", "query": "x" * (1 + row % 7)})
        for row in range(num_lines)
    ]
    lines[5] = "{broken"
    lines[6] = ""
    source = folder / "in.jsonl"
    source.write_text("\n".join(lines))
    return source


def answer(source, target, *, retriever=None, run="r", top_k=3):
    settings = {"run": run, "top_k": top_k} if top_k != 3 else {"run": run}
    return answer_file(
        retriever or Echo(),
        str(source),
        str(target),
        depends_on=settings,
        top_k=top_k,
        batch_size=1,
        block_lines=16,
    )


def blocks_of(target):
    return sorted(target.with_name(f"{target.name}.part").glob("*.jsonl"))


def interrupted(source, target, *, after_blocks=2):
    with pytest.raises(KeyboardInterrupt):
        answer(source, target, retriever=Echo(fail_at=after_blocks + 1))


@pytest.fixture
def places(tmp_path):
    source = requests_file(tmp_path, 100)  # blocks of 16 lines
    whole = tmp_path / "whole.jsonl"
    answer(source, whole)
    return source, tmp_path / "out.jsonl", whole.read_bytes()


def test_an_interrupted_run_resumes_and_ends_alike(places, capsys):
    source, target, whole = places
    target.write_text("old")
    interrupted(source, target)
    assert target.read_text() == "old"
    done = b"".join(file.read_bytes() for file in blocks_of(target))
    assert whole.startswith(done)
    assert done.count(b"\n") == 32
    retriever = Echo()
    counts = answer(source, target, retriever=retriever)
    assert target.read_bytes() == whole
    assert retriever.num_calls == 5  # 99 lines are 7 blocks, 2 were done
    assert (counts["answered"], counts["errors"]) == (98, 1)
    assert "2 finished blocks" in capsys.readouterr().err
    assert {one.name for one in target.parent.iterdir()} == {
        "in.jsonl", "out.jsonl", "whole.jsonl"
    }  # fmt: skip


def test_half_a_block_is_dropped(places):
    source, target, whole = places
    interrupted(source, target)
    half = target.with_name("out.jsonl.part") / ".000002-0.jsonl.x.part"
    half.write_bytes(whole.splitlines(keepends=True)[32] + b'{"id": "33", "ite')
    answer(source, target)
    assert target.read_bytes() == whole


def test_a_killed_process_resumes(tmp_path):
    source, target, whole = requests_file(tmp_path, 2_000), tmp_path / "out", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, source, target],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    while not blocks_of(target) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not target.exists()
    answer(source, whole)
    retriever = Echo()
    answer(source, target, retriever=retriever)
    assert target.read_bytes() == whole.read_bytes()
    assert 0 < retriever.num_calls < 2_000 / 16


def test_other_settings_or_requests_are_refused(places):
    source, target, whole = places
    interrupted(source, target)
    part = [file.read_bytes() for file in blocks_of(target)]
    with pytest.raises(ConfigError, match=r"other settings \(run r, now s\).*delete the folder"):
        answer(source, target, run="s")
    with pytest.raises(ConfigError, match="top_k None, now 4"):
        answer(source, target, top_k=4)
    given = source.read_bytes()
    source.write_bytes(given.replace(b'"0"', b'"O"'))
    with pytest.raises(ConfigError, match=r"other requests \(block 0 differs\)"):
        answer(source, target)
    source.write_bytes(given[:100])
    with pytest.raises(ConfigError, match=r"other requests \(block 0 differs\)"):
        answer(source, target)
    assert [file.read_bytes() for file in blocks_of(target)] == part
    source.write_bytes(given)
    answer(source, target)
    assert target.read_bytes() == whole


def test_requests_may_have_been_added_at_the_end(places):
    source, target, whole = places
    interrupted(source, target)
    with source.open("a") as stream:
        stream.write('\n{"id": "new", "task": "search", "query": "x"}\n')
    answer(source, target)
    assert target.read_bytes().startswith(whole)
    assert target.read_bytes().count(b"\n") == whole.count(b"\n") + 1


@pytest.mark.parametrize("note", ["", "[", None])
def test_blocks_of_unknown_settings_mean_a_new_start(places, note):
    source, target, whole = places
    folder = target.with_name("out.jsonl.part")
    folder.mkdir()
    (folder / "000000-0.jsonl").write_text("something")
    if note is not None:
        (folder / "settings.json").write_text(note)
    answer(source, target)
    assert target.read_bytes() == whole


def test_a_failure_before_the_first_block_leaves_nothing(places):
    source, target, _ = places
    interrupted(source, target, after_blocks=0)
    assert {one.name for one in target.parent.iterdir()} == {"in.jsonl", "whole.jsonl"}


def test_two_processes_do_not_write_one_output(places):
    source, target, _ = places

    class Twice(Echo):
        def answer(self, requests, **settings):
            with pytest.raises(ConfigError, match="being written by another process"):
                answer(source, target)
            return super().answer(requests, **settings)

    answer(source, target, retriever=Twice())


def test_a_real_run_resumes_byte_for_byte(tiny, tmp_path, capsys, monkeypatch):
    source, whole, target = requests_file(tmp_path, 60), tmp_path / "whole", tmp_path / "out"
    words = ["retrieve", "--from", tiny.generator_run, "--input", source, "--batch_size", "1"]
    from sidrec.generator.retrieval.retriever import Retriever

    monkeypatch.setattr("sidrec.cli.retrieve.answer_file", partial(answer_file, block_lines=16))
    assert sidrec(*words, "--output", whole) == 0
    answer_really, calls = Retriever.answer, []

    def stop_at_third(self, requests, **settings):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer_really(self, requests, **settings)

    with mock.patch.object(Retriever, "answer", stop_at_third):
        assert sidrec(*words, "--output", target) == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert sidrec(*words, "--output", target, "--top_k", "5") == 2
    assert "top_k 30, now 5" in capsys.readouterr().err
    assert sidrec(*words, "--output", target) == 0
    assert "2 finished blocks" in capsys.readouterr().err
    assert target.read_bytes() == whole.read_bytes()


def lines_of(data, *, longest=8):
    return list(read_lines(io.BytesIO(data), max_line_bytes=longest))


def test_a_long_line_is_cut_and_read_past():
    assert lines_of(b"short\n" + b"x" * 5_000 + b"\nlast") == [b"short\n", b"x" * 9, b"last"]
    assert lines_of(b"12345678\n9") == [b"12345678\n", b"9"]  # exactly as long as allowed


@given(st.binary(max_size=60))
def test_every_line_keeps_its_beginning(data):
    assert lines_of(data) == [line[:9] for line in io.BytesIO(data)]


def test_a_line_without_end_takes_no_memory():
    class Endless(io.RawIOBase):
        left = 64

        def readline(self, size):
            self.left -= 1
            return b"x" * size if self.left > 0 else b""

    tracemalloc.start()
    (line,) = read_lines(Endless(), max_line_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(line) == (1 << 20) + 1
    assert peak < 8 << 20
