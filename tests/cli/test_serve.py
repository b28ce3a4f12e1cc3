"""`sidrec serve`: wrong usage, a stop with answers in flight, and the page in a browser."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest

from tests.patience import patient
from tests.tiny import sidrec

WORDS = ("serve", "--device", "cpu", "--from")
START_S = 120.0
WITH_BEAMS = """
from sidrec.cli.main import main
from sidrec.generator.scorers.item_prior import ItemPrior
ItemPrior.t5_factor = lambda prior, task: 1.0  # whatever this tiny run's calibration has found
main()
"""
SLOW_ANSWERS = """
import pathlib, sys, time
from sidrec.cli.main import main
from sidrec.generator.retrieval.retriever import Retriever
real = Retriever.answer
def slow(*given, **named):
    pathlib.Path(sys.argv.pop()).touch()
    time.sleep(2)
    return real(*given, **named)
Retriever.answer = slow
main()
"""


def test_a_used_port_is_one_line_before_anything_is_loaded(tiny, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert sidrec(*WORDS, tiny.generator_run, "--port", port) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--port {port}: Address already in use" in line


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--port", "99999"], "--port must be 0 to 65535, got 99999"),
        (["--host", "192.0.2.1", "--port", "0"], "--host 192.0.2.1"),
        (["--top_k", "0"], "must be at least 1"),
        (["--prot", "1"], "did you mean 'port'"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, given, text):
    assert sidrec(*WORDS, tmp_path, *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_without_the_extra(tmp_path, monkeypatch, capsys, package):
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sidrec.generator.serving.web_app", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert sidrec(*WORDS, tmp_path, "--port", "0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{package} is not installed; pip install 'sidrec[serve]'" in line


@contextmanager
def served(run, *more, code="from sidrec.cli.main import main; main()"):
    """Yield the process and its address; end it if the test has not."""
    words = [sys.executable, "-c", code, *map(str, WORDS), str(run), "--port", "0", *more]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    watch = threading.Timer(patient(START_S), process.kill)
    watch.start()
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("serving "):
                yield process, line.split(" on ")[1].split(",")[0]
                break
        else:
            pytest.fail(f"the server did not start: {''.join(said)}")
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_sigterm_lets_the_answer_in_flight_arrive(tiny, tmp_path):
    asked = tmp_path / "asked"
    code = SLOW_ANSWERS.replace("sys.argv.pop()", repr(str(asked)))
    got = {}

    def ask(address):
        body = json.dumps({"id": "a", "task": "search", "query": "rain"}).encode()
        with urllib.request.urlopen(f"{address}/retrieve", data=body) as response:  # noqa: S310
            got["status"], got["answer"] = response.status, json.load(response)

    with served(tiny.generator_run, code=code) as (process, address):
        client = threading.Thread(target=ask, args=(address,))
        client.start()
        while not asked.exists():
            assert process.poll() is None
            client.join(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(60)) == 0
        client.join(patient(10))
        said = process.stderr.read()
    assert got["status"] == 200
    assert got["answer"]["id"] == "a"
    assert said.splitlines()[-1] == "every request is answered, ended"
    assert "Traceback" not in said


@pytest.fixture
def page(tiny):
    """The page in headless Chromium, with what its console said."""
    playwright = pytest.importorskip("playwright.sync_api", reason="PAGE NOT TESTED: playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        served(tiny.generator_run, "--top_k", "10", code=WITH_BEAMS) as (_, address),
        playwright.sync_playwright() as p,
    ):
        try:
            browser = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("PAGE NOT TESTED: no Chromium; apt-get install chromium")
        shown = browser.new_page(viewport={"width": 1400, "height": 1000})
        shown.said, shown.address = [], address
        shown.on("console", lambda message: shown.said.append(message.text))
        shown.on("pageerror", lambda error: shown.said.append(str(error)))
        shown.set_default_timeout(patient(20) * 1000)
        shown.goto(address)
        yield shown
        browser.close()


def listed(page):
    rows = page.locator("#items li")
    rows.first.wait_for()
    return [row.get_attribute("data-item") for row in rows.all()]


def retrieved(page, request):
    body = json.dumps(request).encode()
    with urllib.request.urlopen(f"{page.address}/retrieve", data=body) as response:  # noqa: S310
        return [one["item_id"] for one in json.load(response)["items"]]


def catalogue(page):
    with urllib.request.urlopen(f"{page.address}/catalogue") as response:  # noqa: S310
        return json.load(response)


@pytest.mark.slow
def test_type_pick_and_see_what_retrieve_answers(page, tmp_path):
    page.fill("#query", "item 3")
    page.press("#query", "Enter")
    wanted = retrieved(page, {"id": "a", "task": "search", "query": "item 3"})
    assert listed(page) == wanted
    assert page.locator("#path svg g.on").count() == 3  # the path of the first item, level by level
    page.locator("#items li").nth(1).hover()
    assert page.locator("#items li").nth(1).get_attribute("class") == "on"
    page.locator("#items li").first.locator("button.code").first.click()
    page.locator("#sharing-items li").first.wait_for()
    assert "share" in page.inner_text("#sharing-heading")
    page.screenshot(path=str(tmp_path / "search.png"), full_page=True)

    page.click("#tab-recommendation")
    picked = []
    titles = [row["title"] for row in catalogue(page)]
    for letters in (titles[0], titles[7]):
        page.locator("#title").press_sequentially(letters)
        first = page.locator("#choices li").first
        first.wait_for()
        picked.append(first.locator("small").inner_text())
        page.press("#title", "Enter")
        assert page.locator("#picked li").count() == len(picked)
    page.click("#recommend")
    request = {"id": "a", "task": "recommendation", "history": picked}
    assert listed(page) == retrieved(page, request)
    page.screenshot(path=str(tmp_path / "recommendation.png"), full_page=True)
    assert page.said == []  # no error, no warning, and nothing refused by the page's own rules

    page.click("#tab-search")
    page.fill("#query", " ")
    page.press("#query", "Enter")
    page.locator("#problem").wait_for()
    assert "query is empty" in page.inner_text("#problem")
