import io
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from sidrec.cli.retrieve import Progress, Streamed
from sidrec.corpus.store import Corpus
from sidrec.generator.retrieval.jsonl_stream import answer_lines
from tests.generator.echo import Echo
from tests.tiny import sidrec


@pytest.fixture(scope="module")
def item_ids(tiny):
    return Corpus.load(tiny.corpus).item_ids()


def retrieve(tiny, tmp_path, lines, *options):
    source, target = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    source.write_bytes(b"\n".join(data))
    code = sidrec(
        "retrieve", "--from", tiny.generator_run, "--input", source, "--output", target, *options
    )
    assert code == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_answers_come_in_the_order_of_the_lines(tiny, tmp_path, item_ids, capsys):
    lines = [
        {"id": "a", "task": "search", "query": "x" * 100_000},
        b"",
        {"id": "b", "task": "recommendation", "history": [*item_ids[:3], "nobody"]},
        {"id": "c", "task": "search", "query": "half a character \ud83d"},
        {"id": "a", "task": "search", "query": "the same id again", "and": "more"},
    ]
    results = retrieve(tiny, tmp_path, lines, "--top_k", "5", "--batch_size", "1")
    assert [result["id"] for result in results] == ["a", "b", "c", "a"]
    for result in results:
        assert len({item["item_id"] for item in result["items"]}) == 5
        assert {frozenset(item) for item in result["items"]} == {
            frozenset({"item_id", "score", "semantic_id"})
        }
    assert "answered 4, errors 0, unknown items skipped 1" in capsys.readouterr().err


BAD = [
    (b'{"id": "a", "task": ', None, "not valid JSON"),
    (b"\xff\xfe", None, "not valid JSON"),
    (b"[" * 100_000, None, "not valid JSON"),
    (b'["a"]', None, "expected a JSON object, got list"),
    ({"task": "search", "query": "x"}, None, "id must be a string"),
    ({"id": 7, "task": "search", "query": "x"}, 7, 'id must be a string: write "7", not 7'),
    ({"id": "a", "query": "x"}, "a", "task must be one of search, recommendation, got null"),
    ({"id": "a", "task": "rank", "query": "x"}, "a", 'got "rank"'),
    ({"id": "a", "task": ["search"], "query": "x"}, "a", "got list"),
    ({"id": "a", "task": "search"}, "a", 'search needs "query", a string'),
    ({"id": "a", "task": "search", "query": " \n"}, "a", "query is empty"),
    (
        {"id": "a", "task": "recommendation", "history": [1]},
        "a",
        'element 0 is no string: write "1", not',
    ),
    ({"id": "a", "task": "recommendation", "history": "i1"}, "a", "a list of item_id strings"),
    ({"id": "a", "task": "recommendation", "history": []}, "a", "history is empty"),
    ({"id": "a", "task": "recommendation", "history": ["?"]}, "a", "no item of the catalogue"),
]


def test_bad_lines_become_errors_and_the_rest_goes_on(tiny, tmp_path, capsys):
    good = {"id": "good", "task": "search", "query": "x"}
    results = retrieve(tiny, tmp_path, [line for bad, _, _ in BAD for line in (bad, good)])
    assert [result["id"] for result in results[1::2]] == ["good"] * len(BAD)
    for place, (result, (_, own, text)) in enumerate(zip(results[::2], BAD, strict=True)):
        assert result["error"].startswith(f"line {2 * place + 1}: ") == (not isinstance(own, str))
        assert result.keys() == {"id", "error"}
        assert result["id"] == own
        assert text in result["error"]
    assert f"answered {len(BAD)}, errors {len(BAD)}" in capsys.readouterr().err


def test_stdin_to_stdout(tiny, monkeypatch, capsys):
    line = json.dumps({"id": "a", "task": "search", "query": "x"}).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line)))
    places = ("--input", "-", "--output", "-")
    assert sidrec("retrieve", "--from", tiny.generator_run, *places) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "a"


def test_memory_stays_the_same_however_many_lines():
    def peak(num_lines):
        line = json.dumps({"id": "a", "task": "search", "query": "x" * 200}).encode()
        tracemalloc.start()
        lines = (line for _ in range(num_lines))
        blocks = answer_lines(Echo(), lines, Streamed(null), top_k=1, batch_size=2, block_lines=32)
        num_answered = sum(counts["answered"] for counts in blocks)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num_answered == num_lines
        return memory

    with Path(os.devnull).open("w") as null:
        peak(50)  # what is imported and cached at first use
        assert peak(500) < 1.5 * peak(100)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--input", "/no/such.jsonl", "--output", "o"], 3, "--input /no/such.jsonl is not a file"),
        (["--input", "-", "--output", "/tmp"], 2, "--output /tmp is a folder"),  # noqa: S108
        (["--input", "-", "--output", "o", "--top_k", "0"], 2, "at least 1"),
        (["--input", "-", "--output", "o", "--topk", "3"], 2, "did you mean 'top_k'?"),
        (["--input", "-"], 2, "required: output"),
        (["--input", "-", "--output", "o", "--top_k", "many"], 2, "top_k"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, monkeypatch, capsys, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    assert sidrec("retrieve", "--from", ".", *arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_results(tiny, tmp_path):
    (tmp_path / "o.jsonl").write_text("old")
    places = ("--input", "/dev/null", "--output", tmp_path / "o.jsonl")
    assert sidrec("retrieve", "--from", tiny.encoder_run, *places) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["o.jsonl"]
    assert (tmp_path / "o.jsonl").read_text() == "old"


def test_the_requests_are_not_overwritten(tiny, tmp_path, capsys):
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"id": "a", "task": "search", "query": "rain"}\n')
    before = requests.read_text()
    words = ("retrieve", "--from", str(tiny.generator_run), "--top_k", "1")
    assert sidrec(*words, "--input", str(requests), "--output", str(requests)) == 2
    assert "is the file of the requests" in capsys.readouterr().err
    assert requests.read_text() == before


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tiny, tmp_path):
    requests, target, link = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "link"))
    requests.write_text('{"id": "a", "task": "search", "query": "rain"}\n')
    link.symlink_to(target)
    words = ("retrieve", "--from", str(tiny.generator_run), "--top_k", "1")
    assert sidrec(*words, "--input", str(requests), "--output", str(link)) == 0
    assert link.is_symlink()
    assert target.read_text().startswith('{"id": "a", "items"')
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert sidrec(*words, "--input", str(requests), "--output", str(pipe)) == 0
    assert os.read(reader, 1 << 16).startswith(b'{"id": "a", "items"')
    os.close(reader)
    assert pipe.is_fifo()


def test_progress_says_how_much_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress, unsized = Progress(1_100), Progress(None)
    counts = Counter(answered=1_200, errors=34, bytes=275, found=175)
    now[0] += 9
    progress(counts)
    assert not capsys.readouterr().err
    now[0] += 1
    progress(counts)
    unsized(counts)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "retrieving: 1,234 requests done, 25% of the input, about 82 s left"
    assert second == "retrieving: 1,234 requests done"


def test_subsets_and_lists_through_the_command(tiny, tmp_path, item_ids):
    some = item_ids[:4]
    lines = [
        {"id": "a", "task": "search", "query": "x", "allowed": [*some, "nobody"]},
        {"id": "b", "task": "recommendation", "history": some[:1], "allowed": some},
        {"id": "c", "task": "search", "query": "x", "allowed": some, "excluded": some},
        {"id": "d", "task": "search", "query": "x", "excluded": item_ids[4:]},
    ]
    a, b, c, d = retrieve(tiny, tmp_path, lines)
    assert {one["item_id"] for one in a["items"]} == set(some)
    assert {one["item_id"] for one in b["items"]} == set(some[1:])
    error = "no allowed item is left; allow more or exclude fewer"
    assert c == {"id": "c", "error": error}
    assert {one["item_id"] for one in d["items"]} == set(some)
