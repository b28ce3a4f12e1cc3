import http.server
import json
import threading

import pytest

from sidrec.corpus.queries.language_model import Sampling
from sidrec.corpus.queries.llm_prompts import (
    ItemFacts,
    paraphrases_prompt,
    queries_prompt,
    read_list,
)
from sidrec.corpus.queries.llm_writer import write_queries
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.errors import ConfigError, DataError, SidrecError

HEAT = ItemFacts("6", "Heat (1995)", 1995, ("Crime",), ("heist",), "Two men in Los Angeles.")
RONIN = ItemFacts("7", "Ronin", 1998, ("Action",), (), "A case is stolen.")
SAMPLING = Sampling(max_new_tokens=64, temperature=0.7, seed=3, batch_size=2)
KEY = "sk-very-secret"


class _Stub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[dict] = []  # bodies of the completions asked for
        self.keys: list[str | None] = []
        self.codes: list[int] = []  # answered first, one a request
        self.models = ["tiny"]
        self.answer = self.write

    @staticmethod
    def write(prompt):
        if "Rewrite each" in prompt:
            return "1. robbery crew film\n2. a detective's obsession"
        name = "Ronin" if "Ronin" in prompt else "Heat"
        return f"Sure!\n1. **bank robbers**\n2) a tired cop\n3. the film {name}\n9. out of range"


class _Handler(http.server.BaseHTTPRequestHandler):
    def _reply(self, code, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self._reply(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers.get("Authorization"))
        if self.server.codes:
            code = self.server.codes.pop(0)
            where = f"http://127.0.0.1:{self.server.server_port}/elsewhere"
            self._reply(code, {}, Retry_After="0", Location=where)
            return
        self.server.seen.append(body | {"path": self.path})
        text = self.server.answer(body["messages"][0]["content"])
        reply = (
            text
            if isinstance(text, bytes | dict)
            else {"choices": [{"message": {"content": text}}]}
        )
        self._reply(200, reply)

    def log_message(self, *args):
        pass


@pytest.fixture
def stub(monkeypatch):
    server = _Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.spec = f"openai:http://127.0.0.1:{server.server_port}/v1#tiny"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _write(spec, folder, items=(HEAT, RONIN)):
    return write_queries(items, model=spec, cache_folder=folder, num_queries=5, sampling=SAMPLING)


def test_queries_and_paraphrases_of_an_endpoint_by_hand(stub, tmp_path):
    queries = _write(stub.spec, tmp_path, [HEAT])
    assert queries == [
        RawQuery("written-6-1-o", "bank robbers", ("6",), "written-6-1", "", "tiny"),
        RawQuery("written-6-1-p", "robbery crew film", ("6",), "written-6-1", "", "tiny"),
        RawQuery("written-6-2-o", "a tired cop", ("6",), "written-6-2", "", "tiny"),
        RawQuery("written-6-2-p", "a detective's obsession", ("6",), "written-6-2", "", "tiny"),
    ]
    first, second = stub.seen
    assert first["path"] == "/v1/chat/completions"
    assert (first["model"], first["max_tokens"], first["seed"]) == ("tiny", 64, 3)
    assert "Two men in Los Angeles." in first["messages"][0]["content"]
    assert "1. bank robbers\n2. a tired cop" in second["messages"][0]["content"]


def test_nothing_is_asked_twice(stub, tmp_path):
    once = _write(stub.spec, tmp_path)
    asked = len(stub.seen)
    assert asked == 4
    assert _write(stub.spec, tmp_path) == once
    assert len(stub.seen) == asked
    other = RONIN._replace(description="Something else.")
    _write(stub.spec, tmp_path, [HEAT, other])
    assert len(stub.seen) == asked + 2
    write_queries([HEAT], model=stub.spec, cache_folder=tmp_path, num_queries=5,
                  sampling=SAMPLING._replace(seed=4))  # fmt: skip
    assert len(stub.seen) == asked + 4


def test_an_interrupted_run_goes_on_where_it_was(stub, tmp_path):
    items = [HEAT, HEAT._replace(item_id="8", year=1996), RONIN]
    stub.answer = lambda prompt: b"no json" if "Ronin" in prompt else stub.write(prompt)
    with pytest.raises(SidrecError, match="did not answer with JSON"):
        _write(stub.spec, tmp_path, items)
    stub.answer, stub.seen[:] = stub.write, []
    assert len(_write(stub.spec, tmp_path, items)) == 12
    assert len(stub.seen) == 2  # only Ronin was missing


def test_a_broken_last_line_of_the_cache_is_written_again(stub, tmp_path):
    once = _write(stub.spec, tmp_path)
    (cache,) = (tmp_path / "written_queries").iterdir()
    cache.write_bytes(cache.read_bytes()[:-7])
    stub.seen.clear()
    assert _write(stub.spec, tmp_path) == once
    assert len(stub.seen) == 2
    stub.seen.clear()
    assert _write(stub.spec, tmp_path) == once
    assert not stub.seen


def test_a_busy_endpoint_is_asked_again(stub, tmp_path):
    stub.codes = [429, 503, 500]
    assert len(_write(stub.spec, tmp_path, [HEAT])) == 4


def test_an_endpoint_that_stays_busy_ends_in_one_line(stub, tmp_path):
    stub.codes = [503] * 9
    with pytest.raises(SidrecError, match="answered 503 5 times") as caught:
        _write(stub.spec, tmp_path, [HEAT])
    assert "\n" not in str(caught.value)
    assert len(stub.keys) == 5


@pytest.mark.parametrize(
    ("code", "message"),
    [(401, "OPENAI_API_KEY to a valid key"), (404, "answered 404 for model tiny"), (302, "302")],
)
def test_what_waiting_cannot_heal_is_not_tried_again(stub, tmp_path, code, message):
    stub.codes = [code]
    with pytest.raises(ConfigError, match=message) as caught:
        _write(stub.spec, tmp_path, [HEAT])
    assert KEY not in str(caught.value)
    assert len(stub.keys) == 1  # a redirect is not followed, so the key stays here


def test_the_key_is_sent_and_stored_nowhere(stub, tmp_path, capsys):
    _write(stub.spec, tmp_path)
    assert set(stub.keys) == {f"Bearer {KEY}"}
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    shown = capsys.readouterr()
    assert KEY not in shown.out + shown.err


def test_without_a_key_none_is_sent(stub, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    _write(stub.spec, tmp_path, [HEAT])
    assert set(stub.keys) == {None}


def test_the_only_model_of_an_endpoint_is_taken(stub, tmp_path):
    spec = stub.spec.partition("#")[0]
    assert _write(spec, tmp_path, [HEAT])[0].source == "tiny"
    stub.models = ["one", "two"]
    with pytest.raises(ConfigError, match="offers one, two; name one"):
        _write(spec, tmp_path, [HEAT])


def test_an_answer_of_another_shape_is_named(stub, tmp_path):
    stub.answer = lambda prompt: {"choices": []}
    with pytest.raises(SidrecError, match="OpenAI-compatible"):
        _write(stub.spec, tmp_path, [HEAT])


def test_a_model_that_writes_nothing_usable_is_named_and_asked_again_later(stub, tmp_path):
    stub.answer = lambda prompt: "I cannot help with that."
    with pytest.raises(DataError, match="tiny wrote no usable query"):
        _write(stub.spec, tmp_path, [HEAT])
    stub.answer = stub.write
    assert len(_write(stub.spec, tmp_path, [HEAT])) == 4


def test_no_network_is_one_line_at_once(tmp_path):
    with pytest.raises(SidrecError, match="cannot be reached") as caught:
        _write("openai:http://127.0.0.1:9/v1#m", tmp_path, [HEAT])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "spec",
    ["gpt", "hf:", "openai:", "openai:localhost:80", "openai:file:///etc/passwd", "openai:http://"],
)
def test_a_wrong_form_is_refused(spec, tmp_path):
    with pytest.raises(ConfigError, match="expected"):
        _write(spec, tmp_path, [HEAT])


def test_a_password_in_the_address_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(ConfigError, match="carries a login") as caught:
        _write("openai:https://me:hunter2@example.org/v1#m", tmp_path, [HEAT])
    assert "hunter2" not in str(caught.value)


def test_a_number_below_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="num_queries must be at least 1"):
        write_queries([], model="hf:x", cache_folder=tmp_path, num_queries=0, sampling=SAMPLING)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1. one way\n2. two ways", {1: "one way", 2: "two ways"}),
        ('1) "one way"\n\n(2) “two ways”', {1: "one way", 2: "two ways"}),
        ("**1.** one way\n**2. two ways**", {1: "one way", 2: "two ways"}),
        ("- one way\n- two ways", {1: "one way", 2: "two ways"}),
        ("<think>\n1. a thought\n</think>\n1. one way", {1: "one way"}),
        ("<think>\n1. a thought that never ends", {}),
        ("1. one way\n1. again", {1: "one way"}),
        ("1. one way\n2. One way!", {1: "one way"}),
        ("0. zero\n4. four", {}),
        ("1.\n2. ...\n3. " + "x" * 201, {}),
        ("1. films like Heat\n2. preheated oven", {2: "preheated oven"}),
        ("1. 1990s heist", {1: "1990s heist"}),
        ("no list at all", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_lists_are_read_by_hand(answer, expected):
    assert read_list(answer, title="Heat", limit=3) == expected


def test_the_prompts_hold_what_is_known():
    prompt = queries_prompt(HEAT, num_queries=10)
    for part in ("10 search queries", "Title: Heat", "Year: 1995", "Tags: heist", "Never use"):
        assert part in prompt
    bare = queries_prompt(ItemFacts("1", "X", None, (), (), ""), num_queries=10)
    assert "Year" not in bare
    assert "3. old heist" in paraphrases_prompt({3: "old heist"})
