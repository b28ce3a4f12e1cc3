"""The endpoint gives the bytes of `sidrec retrieve`; what it refuses, it refuses in one line."""

import json
import math
import re

import pytest
import torch

from sidrec.cli.main import EXTRAS
from sidrec.generator.retrieval.retriever import Retriever
from tests.tiny import sidrec

starlette = pytest.importorskip("starlette.testclient", reason="NOT TESTED: the extra `serve`")
from sidrec.generator.serving import web_app  # noqa: E402 (needs the extra)
from sidrec.generator.serving.answer_queue import AnswerQueue, TooManyWaitingError  # noqa: E402

TOP_K = 4
BAD = {"id": "x", "task": "recommendation", "history": ["no such item"]}


@pytest.fixture(scope="module")
def queue(tiny):
    retriever = Retriever.load(tiny.generator_run, device="cpu")
    return AnswerQueue(retriever, top_k=TOP_K, batch_size=8)


@pytest.fixture(scope="module")
def item_ids(queue):
    return queue.retriever.generator.ids.item_ids


@pytest.fixture
def client(queue):
    app = web_app.web_app(queue, run="runs/gen", hosts=["localhost"])
    with starlette.TestClient(app, base_url="http://localhost") as client:
        yield client


def lines_of(*requests):
    return "".join(json.dumps(one) + "\n" for one in requests)


def refused(response, status):
    """Return the error of a refusal, which is one line."""
    assert response.status_code == status
    (line,) = response.text.splitlines()
    return json.loads(line)["error"]


def test_the_endpoint_gives_the_bytes_of_retrieve(client, tiny, tmp_path, item_ids):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked = [
        {"id": str(row), "task": "search", "query": f"item {row} {'word ' * row}"}
        for row in range(9)
    ]
    asked += [{"id": "r", "task": "recommendation", "history": item_ids[:3]}, BAD]
    source.write_text("\n" + lines_of(*asked))
    words = ("--top_k", TOP_K, "--batch_size", 8, "--device", "cpu")
    places = ("--input", source, "--output", target)
    assert sidrec("retrieve", "--from", tiny.generator_run, *places, *words) == 0
    response = client.post("/retrieve", content=source.read_bytes())
    assert response.status_code == 200  # although one line of many is bad, as in `retrieve`
    assert response.content == target.read_bytes()


@pytest.mark.parametrize("path", ["/retrieve", "/explain"])
def test_a_request_that_cannot_be_answered_is_400(client, path):
    for content, text in ((b'{"id": "a", "task', "not valid JSON"), (lines_of(BAD), "1 unknown")):
        response = client.post(path, content=content)
        assert response.status_code == 400
        (line,) = response.text.splitlines()
        found = json.loads(line)
        assert text in found.get("answer", found)["error"]
    assert "body is empty" in refused(client.post(path, content=b" \n\n"), 400)


def test_limits(client, queue, monkeypatch):
    assert "longer than 8 MiB" in refused(client.post("/retrieve", content=b"x" * 10_000_000), 413)
    many = lines_of(*[BAD] * (web_app.MAX_LINES + 1))
    assert "more than 1,024 lines" in refused(client.post("/retrieve", content=many), 413)
    assert "takes one line" in refused(client.post("/explain", content=lines_of(BAD, BAD)), 400)

    def full(lines):
        raise TooManyWaitingError("64 requests wait already; ask again later.")

    monkeypatch.setattr(queue, "submit", full)
    assert "ask again" in refused(client.post("/retrieve", content=lines_of(BAD)), 503)


def test_a_foreign_host_is_refused(client):
    assert client.get("/about", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/about", headers={"host": "localhost:8000"}).json()["run"] == "runs/gen"


def test_the_page_loads_nothing_and_says_what_it_is_for(client):
    response = client.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "For trying and for showing" in response.text
    addresses = re.findall(r"https?://[^\"' ]+", response.text)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert EXTRAS["starlette"] == EXTRAS["uvicorn"] == "serve"


def test_items_by_title(client, queue):
    titles = queue.retriever.generator.ids.bundles["search"].titles
    for wanted in (titles[5].upper(), titles[5][1:]):
        found = client.get("/catalogue", params={"title": f" {wanted} "}).json()
        assert titles[5] in [one["title"] for one in found]
    assert len(client.get("/catalogue", params={"title": ""}).json()) == 12
    assert client.get("/catalogue", params={"title": "no such title"}).json() == []


@pytest.mark.parametrize("task", ["search", "recommendation"])
def test_items_below_a_prefix(client, queue, task):
    codes = queue.retriever.generator.ids.bundles[task].table.codes
    for depth in range(1, codes.shape[1] + 1):
        prefix = codes[7, :depth]
        rows = (codes[:, :depth] == prefix).all(dim=1).nonzero().flatten().tolist()
        asked = {"task": task, "codes": ",".join(map(str, prefix.tolist()))}
        found = client.get("/prefix", params=asked).json()
        assert found["num_items"] == len(rows)
        of_rows = {queue.retriever.generator.ids.item_ids[row] for row in rows}
        assert {one["item_id"] for one in found["items"]} == of_rows


@pytest.mark.parametrize(
    ("task", "codes", "text"),
    [
        ("search", "a", "numbers"),
        ("search", "", "numbers"),
        ("search", "999999", "no prefix"),
        ("search", "-1", "no prefix"),
        ("search", "0,0,0,0,0,0,0", "no prefix"),
        ("rank", "0", "task must be one of"),
    ],
)
def test_no_prefix(client, task, codes, text):
    assert text in refused(client.get("/prefix", params={"task": task, "codes": codes}), 400)


@pytest.mark.parametrize("task", ["search", "recommendation"])
def test_the_path_is_that_of_the_search(client, queue, item_ids, monkeypatch, task):
    model = queue.retriever.generator.model
    if task == "search":
        monkeypatch.setattr(model.prior, "t5_factor", lambda task: 1.0)  # at 0 there is no beam
    else:  # T5 alone
        monkeypatch.setitem(model._modules, "prior", None)
    request = {"id": "a", "task": task, "query": "item 3", "history": item_ids[:2]}
    found = client.post("/explain", content=lines_of(request)).json()
    line = client.post("/retrieve", content=lines_of(request)).text
    assert found["answer"] == json.loads(line)
    assert found["titles"].keys() == {one["item_id"] for one in found["answer"]["items"]}
    levels = [level["prefixes"] for level in found["levels"]]
    table = queue.retriever.generator.ids.bundles[task].table
    assert len(levels) == len(table.codebook_sizes)
    scores = {tuple(one["codes"]): one["score"] for level in levels for one in level}
    for depth, level in enumerate(levels, start=1):
        assert (
            found["levels"][depth - 1]["num_kept"]
            == len(level)
            <= queue.retriever.generator.num_beams
        )
        assert [one["score"] for one in level] == sorted((s["score"] for s in level), reverse=True)
        for one in level:
            assert len(one["codes"]) == depth
            assert one["score"] <= scores.get(tuple(one["codes"][:-1]), 0.0) + 1e-5
            below = (table.codes[:, :depth] == torch.tensor(one["codes"])).all(dim=1)
            assert one["num_items"] == int(below.sum()) > 0
    for item in found["answer"]["items"]:
        assert scores[tuple(item["semantic_id"])] == pytest.approx(item["score"], abs=1e-5)
    first = sum(math.exp(one["score"]) for one in levels[0])
    assert 0.5 < first <= 1.0 + 1e-5  # all first codes are kept here, less those with no item left


def test_an_answer_without_a_beam_has_no_path(client, queue, item_ids, monkeypatch):
    prior = queue.retriever.generator.model.prior
    monkeypatch.setattr(prior, "t5_factor", lambda task: 0)
    request = {"id": "a", "task": "recommendation", "history": item_ids[:2]}
    found = client.post("/explain", content=lines_of(request)).json()
    assert found["levels"] == []
    assert len(found["answer"]["items"]) == TOP_K


def test_the_search_is_as_before_after_an_explanation(client, queue):
    before = [model.decoding for model in queue.retriever.models]
    client.post("/explain", content=lines_of({"id": "a", "task": "search", "query": "item"}))
    assert [model.decoding for model in queue.retriever.models] == before
    assert type(before[0]).__name__ == "Decoding"
