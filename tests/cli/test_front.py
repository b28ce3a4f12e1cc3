"""What is said before torch is imported, and how a command line is completed."""

import json
import shutil
import subprocess
import sys
from functools import wraps

import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger

from sidrec.cli.front import KEYS, TRAINING_COMMANDS, prepared
from sidrec.cli.fuse import main as fuse
from sidrec.cli.ids import main as make_ids
from sidrec.cli.parser import options_of
from sidrec.cli.train import SidrecCLI
from sidrec.errors import ConfigError, DataError, RunError
from tests.tiny import sidrec, write_yaml


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "corpus.json").touch()
    return folder


@pytest.fixture
def config(tmp_path, corpus):
    settings = {
        "model": {"class_path": "sidrec.BiEncoder"},
        "data": {"class_path": "sidrec.PairDataModule", "init_args": {"corpus": str(corpus)}},
        "trainer": {"callbacks": [{"class_path": "sidrec.A", "init_args": {"x": 1}}]},
    }
    return write_yaml(tmp_path / "first.yaml", settings)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["fit", "--config", "gone.yaml"], 2, "gone.yaml: no such file"),
        (["fit", "--config", "multitask.yaml"], 3, "corpora/movies is not a corpus"),
        (["fit", "--config", "typo.yaml"], 2, "key 'modell', which does not exist; did you mean"),
        (["ids", "--config", "typo.yaml"], 2, "key 'modell', which does not exist; choose from"),
        (["fit", "--from", "gone"], 1, "gone does not exist"),
        (["retrieve", "--from", "gone", "--input", "i", "--output", "o"], 1, "gone does not exist"),
        (["compare", "--config", "compare/movies.yaml"], 3, "data/movies-core is not a corpus"),
        (["fit", "--config", "ids/tiger.yml"], 2, "did you mean 'ids/tiger.yaml'?"),
    ],
)
def test_mistakes_are_told_without_torch(tmp_path, words, code, text):
    (tmp_path / "typo.yaml").write_text("modell: {}\n")
    script = (
        "import sys\nfrom sidrec.cli.main import main\n"
        f"sys.argv = ['sidrec', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    print(stop.code)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == [str(code), "False"], done.stderr
    (line,) = done.stderr.splitlines()
    assert text in line


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_keys_are_those_of_the_parser(monkeypatch, command):
    """Read the options of the real parser of a training command."""

    def parse(self, parser, args):
        (choices,) = [one.choices for one in parser._actions if isinstance(one.choices, dict)]
        self.heads = {name.split(".")[0] for name in options_of(choices[command])}
        raise StopIteration

    monkeypatch.setattr(SidrecCLI, "parse_arguments", parse)
    cli = SidrecCLI.__new__(SidrecCLI)
    with pytest.raises(StopIteration):
        cli.__init__([command])
    assert cli.heads - {"c", "config", "h", "help", "print_config", "from"} == KEYS[command]


@pytest.mark.parametrize(("command", "main"), [("ids", make_ids), ("fuse", fuse)])
def test_keys_are_those_of_the_other_parsers(monkeypatch, command, main):
    heads = set()

    def parse(self, args):
        heads.update(name.split(".")[0] for name in options_of(self))
        raise StopIteration

    monkeypatch.setattr("sidrec.cli.parser.CommandParser.parse_args", parse)
    with pytest.raises(StopIteration):
        main([])
    assert heads - {"config", "h", "help", "print_config"} == KEYS[command]


def test_callbacks_of_a_second_configuration_are_added(config, tmp_path, capsys):
    more = [{"class_path": "sidrec.B"}, {"class_path": "sidrec.A", "init_args": {"x": 2}}]
    second = write_yaml(tmp_path / "second.yaml", {"trainer": {"callbacks": more}})
    words = ["--config", str(config), "--config", str(second), "--run_dir", "r"]
    got = prepared("fit", words)
    (flag,) = [word for word in got if word.startswith("--trainer.callbacks=")]
    assert got.index(flag) == 4
    assert json.loads(flag.partition("=")[2]) == [
        {"class_path": "sidrec.A", "init_args": {"x": 2}},
        {"class_path": "sidrec.B"},
    ]
    assert "second.yaml together: sidrec.A, sidrec.B" in capsys.readouterr().err
    assert prepared("fit", [*words[:2], *words[4:]]) == [*words[:2], *words[4:]]


def test_a_fit_without_a_run_directory_gets_one(config, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sidrec", "fit"])
    got = prepared("fit", ["--config", str(config)])
    assert got[2] == "--run_dir"
    assert got[3].startswith("runs/first-2")
    assert sys.argv == ["sidrec", "fit", *got[2:]]  # what launched ranks are started with
    assert "--run_dir" not in prepared("fit", ["--config", str(config), "--print_config"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="need one --run_dir"):
        prepared("fit", ["--config", str(config)])


@pytest.mark.parametrize("flag", ["--run_dir=s3://b/r", "--run_dir s3://b/r", "in_yaml"])
def test_runs_are_local(config, tmp_path, flag):
    words = ["--config", str(config), *flag.split()]
    if flag == "in_yaml":
        remote = write_yaml(tmp_path / "r.yaml", {"run_dir": "s3://b/r"})
        words = ["--config", str(config), "--config", str(remote)]
    with pytest.raises(ConfigError, match="s3://b/r: results are written to local folders only"):
        prepared("fit", words)


def test_a_flag_names_another_corpus(config, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a corpus"):
        prepared("fit", ["--config", str(config), "--data.init_args.corpus", "nowhere"])
    with pytest.raises(RunError, match="nowhere does not exist"):
        prepared("test", ["--from", "nowhere"])


def test_help_is_asked_before_anything_is_refused():
    assert prepared("fit", ["--config", "multitask.yaml", "--help"])[-1] == "--help"


@pytest.mark.parametrize("command", ["fit", "test", "ids", "fuse", "retrieve", "baselines"])
def test_from_stands_in_the_help(command, capsys):
    assert sidrec(command, "--help") == 0
    assert "--from" in capsys.readouterr().out


def test_a_logger_is_not_needed_to_read_a_run(tiny, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny.encoder_run, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "p"},
    }
    write_yaml(run / "config.yaml", settings)

    @wraps(WandbLogger.__init__)  # whose arguments the parser reads
    def missing(*unused, **also_unused):
        raise ModuleNotFoundError("wandb")

    monkeypatch.setattr(WandbLogger, "__init__", missing)
    assert sidrec("validate", "--from", run) == 0, capsys.readouterr().err


def test_a_run_without_the_semantic_ids_it_was_told_to_make_is_not_finished(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sidrec.SemanticIdCallback.on_fit_end", lambda *_: None)
    fit = ("fit", "--config", tiny.encoder_config, "--trainer.max_steps", 1)
    assert sidrec(*fit, "--run_dir", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "SemanticIdCallback wrote no semantic_ids/" in err
    assert f"run directory: {tmp_path / 'run'}" in err
    assert "finished: " not in err


def test_a_batch_of_one_is_refused(tiny, tmp_path, capsys):
    fit = ("fit", "--config", tiny.encoder_config, "--data.batch_size", 1)
    assert sidrec(*fit, "--run_dir", tmp_path / "run") == 2
    assert "data.batch_size 1 has no negatives" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def missing(arguments):
        raise ModuleNotFoundError("No module", name="sklearn.decomposition")

    monkeypatch.setattr("sidrec.doctor.checks.main", missing)
    assert sidrec("doctor") == 2
    assert "pip install 'sidrec[dictionary]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ids", "fuse"])
def test_a_folder_with_something_else_is_not_replaced_by_a_bundle(tmp_path, command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").touch()
    for out in (tmp_path / "run", tmp_path / "run" / "manifest.json"):
        with pytest.raises(ConfigError, match=r"exists and is not a bundle of Semantic IDs"):
            prepared(command, ["--out", str(out)])
    (tmp_path / "empty").mkdir()
    prepared(command, ["--out", str(tmp_path / "empty")])
    (tmp_path / "run" / "semantic_ids.json").touch()
    prepared(command, ["--out", str(tmp_path / "run")])


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_that_reads_a_run_asks_for_it(command):
    with pytest.raises(ConfigError, match=rf"`sidrec {command}` needs --from RUN"):
        prepared(command, ["--trainer.devices", "1"])
