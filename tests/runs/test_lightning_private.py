"""Lightning's private names: all in one file, and all still there."""

import re
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies.launchers import subprocess_script

from sidrec.runs import lightning_private as private

ROOT = Path(__file__).parents[2]
OWNER = re.compile(
    r"\b(trainer|strategy|launcher|fit_loop|epoch_loop|loop|subprocess_script)\._[a-z]"
)

IMPORTED = re.compile(r"from lightning\S* import .*\b_\w|self\._trainer\b(?!\()")


@pytest.fixture(scope="module")
def trainer():
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


@pytest.mark.parametrize(
    "path",
    [
        "_signal_connector.register_signal_handlers",
        "fit_loop._data_fetcher",
        "fit_loop.epoch_loop._should_check_val_fx",
        "_accelerator_connector.use_distributed_sampler",
    ],
)
def test_trainer_has_the_name(trainer, path):
    owner = trainer
    for name in path.split("."):
        assert hasattr(owner, name), f"Lightning {L.__version__}: trainer.{path} is gone"
        owner = getattr(owner, name)


def test_launcher_and_command_line_have_the_names():
    observer = getattr(subprocess_script, "_launch_process_observer", None)
    assert callable(observer), f"Lightning {L.__version__}: _launch_process_observer is gone"
    gone = [name for name in private.PRIVATE_METHODS_OF_CLI if not hasattr(LightningCLI, name)]
    assert not gone, f"Lightning {L.__version__}: LightningCLI has no {gone}"


def test_they_do_what_they_are_called_for(trainer):
    private.disable_signal_handlers(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None
    assert private.uses_distributed_sampler(trainer) is True
    module = L.LightningModule()
    assert not private.is_attached(module)
    module.trainer = trainer
    assert private.is_attached(module)


def test_no_other_file_has_private_names_of_lightning():
    sources = [
        source
        for source in (ROOT / "sidrec").rglob("*.py")
        if source.name != "lightning_private.py"
    ]
    found = [
        f"{source.relative_to(ROOT)}: {line.strip()}"
        for source in sources
        for line in source.read_text().splitlines()
        if OWNER.search(line) or IMPORTED.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_command_line_overrides_no_other_private_method():
    text = (ROOT / "sidrec" / "cli" / "train.py").read_text()
    used = set(re.findall(r"\bself\.(_[a-z]\w*)\(|super\(\)\.(_[a-z]\w*)\(", text))
    names = {name for pair in used for name in pair if name and hasattr(LightningCLI, name)}
    assert names == set(private.PRIVATE_METHODS_OF_CLI)
