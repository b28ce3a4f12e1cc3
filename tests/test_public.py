"""The public face: names, their paths in configurations, types, and what is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import lightning as L
import pytest
from jsonargparse._util import get_import_path

import sidrec
import sidrec.cli.train
from sidrec.cli.main import EXTRAS
from sidrec.semantic_ids.collisions.policies import CollisionPolicy
from sidrec.semantic_ids.quantizers.base import Quantizer

ROOT = Path(__file__).parents[1]
NAMES = [name for name in sidrec.__all__ if not name.startswith("__")]
PACKAGES = {"yaml": "pyyaml", "sklearn": "scikit-learn"}  # import name: name on PyPI
NOT_CONFIGURED = {
    "RunManifest",
    "LastCheckpoint",
    "LineProgress",
    "TerminalProgress",
    "Tracking",
    "PrefixShareModule",
}  # every run has them
BASES = {"CorpusDataModule", "ResumableDataModule", "RowDataModule", "StageModule", "Trained"}
BASES |= {"PrefixShareModule"}  # trained inside `sidrec fuse`


def test_import_sidrec_loads_no_framework():
    code = "import sys, sidrec; print([n for n in ('torch', 'lightning') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_written_short(name):
    value = getattr(sidrec, name)
    assert get_import_path(value) == f"sidrec.{name}"
    assert name in dir(sidrec)


def test_every_class_that_a_configuration_may_name_is_public():
    def below(base):
        return {one for sub in base.__subclasses__() for one in (sub, *below(sub))}

    for name in NAMES:
        getattr(sidrec, name)
    bases = (L.LightningModule, L.LightningDataModule, L.Callback, Quantizer, CollisionPolicy)
    ours = {
        one.__name__
        for base in bases
        for one in below(base)
        if one.__module__.startswith("sidrec.") and not one.__name__.startswith("_")
    }
    assert ours - {*NAMES} <= NOT_CONFIGURED | BASES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'BiEncodr'"):
        sidrec.BiEncodr  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "sidrec" / "__init__.pyi").read_text())
    stubs = {
        one.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for one in node.names
    }
    assert stubs == sidrec._MODULES


def test_configurations_may_name_classes_alone():
    allowed = {*sidrec.cli.train.lightning_classes(), *sidrec.public_classes()}
    assert {"sidrec.BiEncoder", "lightning.pytorch.callbacks.EarlyStopping"} <= allowed
    assert all(path.rsplit(".", 1)[-1][0].isupper() for path in allowed)
    assert "lightning.Trainer" not in allowed


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        return {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in requirements}

    optional = {
        package
        for extra, needs in project["optional-dependencies"].items()
        if extra != "dev"
        for package in names(needs)
    }
    imported = set()
    for file in (ROOT / "sidrec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "sidrec"}
    hard = {PACKAGES.get(one, one).replace("_", "-") for one in imported - {*EXTRAS}}
    assert hard <= names(project["dependencies"])
    for package, extra in EXTRAS.items():
        needs = names(project["optional-dependencies"][extra])
        known = {PACKAGES.get(package, package).replace("_", "-"), f"{package}-cpu"}
        assert known & needs, package
    declared = names(project["dependencies"]) - {"torchmetrics"}
    assert declared <= hard, "declared and never imported"
    assert optional
