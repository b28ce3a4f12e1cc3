"""Rules that keep the layout readable: rooms in order, few files a folder, no name twice."""

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["corpus", "pairs", "encoder", "semantic_ids", "generator", "comparison"]
SOURCES = sorted((ROOT / "sidrec").rglob("*.py"))
MODULES = [source for source in SOURCES if source.name != "__init__.py"]
FOLDERS = sorted({source.parent for source in SOURCES})
SIGN = re.compile(r"Stage (\d) of 6: (.+) -> (.+)\.")
MOST_LINES, MOST_MODULES, FEW_LINES = 400, 12, 60
MAY_REPEAT = {"module.py", "datamodule.py"}
MAY_BE_SMALL = {"sidrec/pairs/batches.py"}  # loader processes import it without Lightning


def named(path):
    return str(path.relative_to(ROOT))


def sign_of(folder):
    """Return the first docstring line of a folder's ``__init__.py``."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    return (text or "").splitlines()[0]


def stage_sign(stage):
    found = SIGN.match(importlib.import_module(f"sidrec.{stage}").__doc__ or "")
    assert found, f"sidrec/{stage}/__init__.py must open with 'Stage N of 6: A -> B.'"
    return found.groups()


def test_each_stage_consumes_what_the_one_before_produces():
    signs = [stage_sign(stage) for stage in STAGES]
    assert [int(number) for number, _, _ in signs] == [1, 2, 3, 4, 5, 6]
    assert [made for _, _, made in signs[:-1]] == [taken for _, taken, _ in signs[1:]]


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_modules_are_short(source):
    assert len(source.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_folders_are_narrow(folder):
    assert sum(module.parent == folder for module in MODULES) <= MOST_MODULES


def test_no_file_name_appears_twice():
    count = Counter(module.name for module in MODULES if module.name not in MAY_REPEAT)
    assert {name for name, times in count.items() if times > 1} == set()


def test_faces_of_folders_hold_no_code():
    faces = [s for s in SOURCES if s.name == "__init__.py" and s.parent != ROOT / "sidrec"]
    assert [named(face) for face in faces if len(ast.parse(face.read_text()).body) > 1] == []


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_a_small_module_serves_two_others(module):
    lines = len(module.read_text().splitlines())
    is_command = "cli" in module.parts or module.name == "__main__.py"
    if lines >= FEW_LINES or is_command or named(module) in MAY_BE_SMALL:
        return
    path = named(module)[:-3].replace("/", ".")
    importers = [s for s in SOURCES if s != module and re.search(rf"\b{path}\b", s.read_text())]
    assert len(importers) >= 2, f"{named(module)}: {lines} lines, {len(importers)} importer"


def test_the_map_shows_every_folder_with_its_sign():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [f for f in FOLDERS if f != ROOT / "sidrec"]
    lines = {named(folder): sign_of(folder) for folder in rooms}
    missing = [
        f"`{path}`: {sign}" for path, sign in lines.items() if f"| `{path}` | {sign} |" not in text
    ]
    assert not missing, "docs/architecture.md lacks:\n" + "\n".join(missing)
    shown = set(re.findall(r"^\| `(sidrec/[\w/]+)` \|", text, flags=re.MULTILINE))
    assert shown == set(lines)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "slurm/README.md"])
def test_pages_point_at_what_exists(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"(?:configs|slurm|docs)/[\w/.-]+\.(?:yaml|sbatch|md)", text)
    targets = [(ROOT / page).parent / link for link in links] + [ROOT / file for file in files]
    assert targets
    gone = [str(target.relative_to(ROOT)) for target in targets if not target.exists()]
    assert not gone, f"{page} points at {gone}"
