"""The built wheel in an empty folder: configurations travel, and errors come at once."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build, str(Path(__file__).parents[1])], check=True)
    (wheel,) = folder.glob("*.whl")
    target = str(folder / "site")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, str(wheel)], check=True)
    return wheel, target


@pytest.fixture
def sidrec(installed, tmp_path):
    def run(*words):
        environment = os.environ | {"PYTHONPATH": installed[1]}
        command = [sys.executable, "-m", "sidrec", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def test_types_and_configurations_are_inside(installed):
    names = zipfile.ZipFile(installed[0]).namelist()
    assert {"sidrec/py.typed", "sidrec/__init__.pyi", "sidrec/configs/ids/tiger.yaml"} <= {*names}


def test_a_packaged_configuration_is_found_by_its_name(sidrec, tmp_path):
    done = sidrec("fit", "--config", "multitask.yaml")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("sidrec: --data.corpus corpora/movies is not a corpus")
    done = sidrec("compare", "--config", "compare/movies.yaml", "--dry_run")
    assert done.returncode == 3
    assert "corpus data/movies-core is not a corpus" in done.stderr
    assert not any(tmp_path.iterdir())


def test_configurations_are_listed_and_copied(sidrec, tmp_path):
    listed = sidrec("configs").stdout
    assert "ids/tiger.yaml" in listed
    assert sidrec("configs", "copy", "ids/tiger.yaml").returncode == 0
    assert "sidrec.ExtraLevel" in (tmp_path / "tiger.yaml").read_text()
