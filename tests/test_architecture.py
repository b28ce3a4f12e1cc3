"""The house has six rooms; data walks through them in order. This test keeps the signs true."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["corpus", "pairs", "encoder", "semantic_ids", "generator", "comparison"]
SOURCES = sorted((ROOT / "sidrec").rglob("*.py"))
SIGN = re.compile(r"Stage (\d) of 6: (.+) -> (.+)\.")
LONGEST = 400


def sign(stage):
    found = SIGN.match(importlib.import_module(f"sidrec.{stage}").__doc__ or "")
    assert found, f"sidrec/{stage}/__init__.py must open with 'Stage N of 6: A -> B.'"
    return found.groups()


def test_each_stage_consumes_what_the_one_before_produces():
    signs = [sign(stage) for stage in STAGES]
    assert [int(number) for number, _, _ in signs] == [1, 2, 3, 4, 5, 6]
    assert [made for _, _, made in signs[:-1]] == [taken for _, taken, _ in signs[1:]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_no_file_is_longer_than_a_sitting(source):
    assert len(source.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("room", STAGES)
def test_the_map_names_every_file(room):
    text = (ROOT / "docs" / "architecture.md").read_text()
    part = text.split(f"**{room}**: ")[1].split("\n\n")[0]
    named, there = set(re.findall(r"`(\w+\.py)`", part)), ROOT / "sidrec" / room
    assert named == {file.name for file in there.glob("*.py")} - {"__init__.py"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "slurm/README.md"])
def test_pages_point_at_what_exists(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"(?:configs|slurm|docs)/[\w/.-]+\.(?:yaml|sbatch|md)", text)
    targets = [(ROOT / page).parent / link for link in links] + [ROOT / file for file in files]
    assert targets
    gone = [str(target.relative_to(ROOT)) for target in targets if not target.exists()]
    assert not gone, f"{page} points at {gone}"
