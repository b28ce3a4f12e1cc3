"""A configuration is text from anywhere: it sets numbers and chooses classes, and calls nothing."""

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings

from sidrec.runs.directory import RunDirectory
from tests.tiny import encoder_settings, sidrec, write_yaml

HOSTILE = [
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "subprocess.call",
    "builtins.eval",
    "builtins.exec",
    "torch.load",
    "torch.hub.load",
    "torch.serialization.load",
    "pickle.loads",
    "shutil.rmtree",
    "importlib.import_module",
    "functools.partial",
    "transformers.AutoModel.from_pretrained",
    "pathlib.Path.write_text",
    # what a permitted module imports is defined elsewhere
    "sidrec.runs.directory.subprocess.run",
    "sidrec.cli.train.shutil.rmtree",
    "sidrec.files.os.system",
    "sidrec.cli.train.signal.signal",
    "lightning.pytorch.trainer.connectors.signal_connector.call",
    "lightning.pytorch.trainer.connectors.signal_connector.os.system",
    # ours, but of no kind that a configuration may make
    "sidrec.files.write_json",
    "sidrec.files.atomic_folder",
    "sidrec.corpus.reading.archive.extract",
    "sidrec.corpus.reading.download._run",
    "sidrec.cli.main.main",
    "sidrec.runs.checkpoints.write_checkpoint",
]
PLACES = [
    ("model",),
    ("data",),
    ("trainer", "callbacks"),
    ("trainer", "logger"),
    ("trainer", "strategy"),
    ("trainer", "plugins"),
    ("trainer", "profiler"),
    ("trainer", "callbacks", 0, "init_args", "quantizer"),
]


@pytest.fixture(scope="module")
def base(tiny):
    return encoder_settings(tiny.corpus, tiny.encoder)


def with_class(base, place, path, canary):
    """Return the configuration with a class of that path at that place, told to make a file."""
    config = yaml.safe_load(yaml.safe_dump(base))
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    arguments = {"command": f"touch {canary}", "args": f"touch {canary}", "target": str(canary)}
    named = {"class_path": path, "init_args": arguments}
    inner[place[-1]] = [named] if place[-1] in ("callbacks", "plugins") else named
    return config


def is_refused(config, folder, capsys):
    file = write_yaml(folder / "hostile.yaml", config)
    code = sidrec("fit", "--config", file, "--run_dir", folder / "run")
    err = capsys.readouterr().err
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    return not (folder / "run").exists() and not (folder / "canary").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", HOSTILE)
def test_no_hostile_path_is_called_anywhere(base, tmp_path, capsys, path):
    capsys.readouterr()
    for place in PLACES:
        config = with_class(base, place, path, tmp_path / "canary")
        assert is_refused(config, tmp_path, capsys), place


@pytest.mark.parametrize("path", ["os.system", "torch.load", "subprocess.Popen"])
def test_the_commonest_are_refused(base, tmp_path, capsys, path):
    capsys.readouterr()
    for place in (("model",), ("trainer", "callbacks")):
        config = with_class(base, place, path, tmp_path / "canary")
        assert is_refused(config, tmp_path, capsys)


@pytest.mark.parametrize("function", ["os.system", "sidrec.files.os.system", "builtins.exec"])
def test_a_callback_that_takes_functions_gets_no_hostile_one(base, tmp_path, capsys, function):
    config = yaml.safe_load(yaml.safe_dump(base))
    hook = {"on_fit_start": function}
    lambdas = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": hook}
    config["trainer"]["callbacks"] = [lambdas]
    capsys.readouterr()
    assert is_refused(config, tmp_path, capsys)


@pytest.mark.parametrize(
    "path", ["lightning.pytorch.cli.instantiate_module", "lightning.fabric.utilities.load"]
)
def test_of_lightning_only_what_a_trainer_is_made_of(base, tmp_path, capsys, path):
    file = write_yaml(tmp_path / "c.yaml", with_class(base, ("trainer", "callbacks"), path, "x"))
    capsys.readouterr()
    assert sidrec("fit", "--config", file, "--run_dir", tmp_path / "run") == 2
    assert "_IMPORTS to allow it" in capsys.readouterr().err


def test_a_tag_that_makes_python_objects_is_no_yaml_for_us(tmp_path, capsys):
    canary = tmp_path / "canary"
    file = tmp_path / "tagged.yaml"
    file.write_text(f"model: !!python/object/apply:os.system ['touch {canary}']\n")
    assert sidrec("fit", "--config", file, "--run_dir", tmp_path / "run") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not canary.exists()


def test_ids_takes_known_classes_only_too(tiny, tmp_path, capsys):
    arguments = ("--from", tiny.encoder_run, "--out", tmp_path / "out")
    assert sidrec("ids", *arguments, "--quantizer", "os.system") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_that_would_run_code_is_refused(base, tmp_path, capsys):
    class Hook:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    run = RunDirectory(tmp_path / "run")
    run.last_checkpoint.parent.mkdir(parents=True)
    torch.save({"global_step": 1, "state_dict": {}, "hook": Hook()}, run.last_checkpoint)
    config = write_yaml(tmp_path / "config.yaml", base)
    capsys.readouterr()
    assert sidrec("fit", "--config", config, "--run_dir", run.root) == 1
    assert "No checkpoint can be read" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


def test_secrets_and_names_are_refused_before_anything_is_written(base, tmp_path, capsys):
    file, run = write_yaml(tmp_path / "config.yaml", base), tmp_path / "run"
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger")
    folder = ("--trainer.logger.save_dir", tmp_path / "logs")
    key = "f" * 40
    for flags, text in (
        (("--trainer.logger.name", key), "looks like a secret"),
        (("--trainer.logger.name", "../../elsewhere"), "is outside the run's folder"),
    ):
        capsys.readouterr()
        assert sidrec("fit", "--config", file, "--run_dir", run, *logger, *folder, *flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
        assert key not in line
    assert not run.exists()
    assert not (tmp_path / "logs").exists()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just("os.system")
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=8), st.just("class_path")), inner, max_size=3),
    ),
    max_leaves=5,
)


def places_of(tree, here=()):
    yield here
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places_of(value, (*here, key))


@pytest.mark.slow
def test_a_damaged_configuration_is_one_line_or_means_the_same(base, tmp_path, capsys):
    places = list(places_of(base))[1:]
    run, num_cases = tmp_path / "run", int(os.environ.get("SIDREC_FUZZ_CASES", "60"))
    outcomes = {}

    @settings(
        max_examples=num_cases,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(st.sampled_from(places), TREES)
    def one(place, value):
        config = yaml.safe_load(yaml.safe_dump(base))
        config["trainer"] |= {"fast_dev_run": 1, "logger": False}
        inner = config
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        file = write_yaml(tmp_path / "fuzz.yaml", config)
        capsys.readouterr()
        code = sidrec("fit", "--config", file, "--run_dir", run, "--trainer.fast_dev_run", "true")
        err = capsys.readouterr().err
        outcomes[code] = outcomes.get(code, 0) + 1
        assert "Traceback" not in err, (place, value)
        assert not (run / "manifest.json").exists(), (place, value)
        if code:
            lines = [line for line in err.splitlines() if line.startswith("sidrec")]
            assert len(lines) == 1, (place, value, err)

    one()
    print(outcomes)  # noqa: T201


def test_no_run_directory_file_holds_a_key_of_the_environment(base, tmp_path, monkeypatch):
    """W&B offline, with keys where they belong; then look into every file that was written."""
    wandb = pytest.importorskip("wandb", reason="W&B NOT TESTED: pip install wandb")
    keys = {
        "WANDB_API_KEY": "0f" * 20,
        "HF_TOKEN": "hf_" + "Q" * 34,
        "OPENAI_API_KEY": "sk-" + "Z" * 40,
    }
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = yaml.safe_load(yaml.safe_dump(base))
    config["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "p", "save_dir": str(tmp_path / "run"), "offline": True},
    }
    del config["trainer"]["callbacks"]
    file = write_yaml(tmp_path / "config.yaml", config)
    for steps in (2, 4):  # the second one resumes, and goes on with the same curve
        fit = ("fit", "--config", file, "--run_dir", tmp_path / "run")
        assert sidrec(*fit, "--trainer.max_steps", steps, "--trainer.val_check_interval", 2) == 0
        wandb.finish()  # what the end of the process does
    runs = {path.name.rsplit("-", 1)[-1] for path in tmp_path.glob("run/wandb/offline-run-*")}
    assert runs == {RunDirectory(tmp_path / "run").log_id()}
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in written)
    for path in written:
        content = path.read_bytes()
        assert not [name for name, value in keys.items() if value.encode() in content], path


def test_a_snapshot_cannot_write_outside_its_folder(tmp_path):
    from sidrec.encoder.tower import TextTower
    from sidrec.errors import DataError

    for name in ("../out.json", str(tmp_path / "out.json")):
        with pytest.raises(DataError, match="give the checkpoint of an encoder"):
            TextTower.from_snapshot({name: "{}"}, length_groups=1)
    assert list(Path(tmp_path).iterdir()) == []
