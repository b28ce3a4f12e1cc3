"""The page of ``sidrec compare``: nothing from outside runs in it, and it opens."""

import shutil
import subprocess

import pytest
import yaml

from sidrec.errors import ConfigError
from tests.comparison.made import compare

NASTY = '<script>alert("1")</script>'

pytestmark = pytest.mark.usefixtures("_quick_disk")


def test_markup_is_no_name(config, launcher):
    settings = yaml.safe_load(config.read_text())
    settings["strategies"][NASTY] = settings["strategies"]["multitask-kept"]
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(ConfigError, match="is not a name"):
        compare(config)


def test_the_page_opens_in_a_browser(config, launcher):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    if not browser:
        pytest.skip("no Chromium: apt-get install chromium, or set PATH to one")
    compare(config)
    page = config.parent / "out" / "report.html"
    probe = page.with_name("probe.html")
    count = "document.title = document.querySelectorAll('[id^=\"point-\"]').length"
    probe.write_text(page.read_text().replace("</body>", f"<script>{count}</script></body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent}/profile"]
    opened = subprocess.run(
        [browser, *words, "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>8</title>" in opened.stdout
    console = [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
