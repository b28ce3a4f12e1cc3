import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from sidrec.runs.directory import RunDirectory
from tests.stops import files_up_to
from tests.tiny import encoder_settings, sidrec, write_yaml

STOPS = "--trainer.callbacks+=tests.stops.StopAt"


@pytest.fixture
def config(tiny, tmp_path):
    """An encoder's configuration without Semantic IDs at its end: faster."""
    settings = encoder_settings(tiny.corpus, tiny.encoder)
    del settings["trainer"]["callbacks"]
    return write_yaml(tmp_path / "config.yaml", settings)


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_both_stages_finish(tiny):
    for run in (tiny.encoder_run, tiny.generator_run):
        assert RunDirectory(run).state() == "finished"
        manifest = json.loads(RunDirectory(run).manifest.read_text())
        assert manifest["world_size"] == 1
        assert manifest["corpus_fingerprint"]


def test_a_run_can_be_repeated_from_its_own_configuration(tiny, tmp_path, capsys):
    again = tmp_path / "again"
    own = RunDirectory(tiny.encoder_run).config
    assert sidrec("fit", "--config", own, "--run_dir", again) == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == yaml.safe_load(own.read_text())
    assert (again / "logs" / "version_0" / "metrics.csv").exists()
    capsys.readouterr()


def test_a_finished_run_is_left_as_it_is(tiny, capsys):
    fit = ("fit", "--config", tiny.generator_config, "--from", tiny.encoder_run)
    before = RunDirectory(tiny.generator_run).last_checkpoint.stat().st_mtime_ns
    assert sidrec(*fit, "--run_dir", tiny.generator_run) == 0
    assert last_line(capsys) == f"already finished: {tiny.generator_run}"
    assert RunDirectory(tiny.generator_run).last_checkpoint.stat().st_mtime_ns == before


@pytest.mark.usefixtures("_stops")
def test_an_interrupted_run_goes_on_where_it_was(config, tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root)
    stop = (f"{STOPS}", "--trainer.callbacks.step=3", "--trainer.callbacks.reason=person")
    assert sidrec(*fit, *stop) == 130
    assert last_line(capsys) == "Interrupted. Run the same command again to resume."
    assert run.state() == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 2

    assert sidrec("test", "--from", run.root) == 1
    assert "not a finished run (state 'interrupted')" in last_line(capsys)

    assert sidrec(*fit) == 0
    assert f"resuming from {run.last_checkpoint} (step 2)" in capsys.readouterr().err
    assert run.state() == "finished"
    steps = []
    for part in ("version_0", "version_1"):
        lines = (run.logs / part / "metrics.csv").read_text().splitlines()
        steps.append([int(row["step"]) for row in csv.DictReader(lines)])
    assert min(steps[0]) == 0
    assert min(steps[1]) == 2  # the step that was interrupted, again


def send(hook, name):
    """Return arguments that make a run send itself a signal in one of Lightning's hooks."""
    callback = ("--trainer.callbacks+=tests.stops.SignalIn", f"--trainer.callbacks.hook={hook}")
    return (*callback, f"--trainer.callbacks.signal_name={name}")


@pytest.mark.usefixtures("_stops")
@pytest.mark.parametrize(
    ("hook", "state"),
    [
        ("setup", "new"),  # data are loaded, nothing is written yet
        ("on_fit_start", "new"),
        ("on_validation_start", "preempted"),  # waits for the end of the next step
        ("on_train_end", "preempted"),
        ("on_fit_end", "preempted"),  # where Semantic IDs are made
    ],
)
def test_a_signal_at_any_moment_ends_in_a_clear_state(config, tmp_path, capsys, hook, state):
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root, "--trainer.val_check_interval", "2")
    assert sidrec(*fit, *send(hook, "SIGUSR1")) == 85
    assert last_line(capsys) == "Preempted. Run the same command again to resume."
    assert run.state() == state
    assert not run.lock.exists()
    assert sidrec(*fit) == 0
    assert run.state() == "finished"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": None}, "data is missing or null; give its class_path and init_args."),
        ({"model": None}, "required: fit.model"),
        ({"tower": [[{"dropout": 0.0}]]}, "model.init_args.tower is a list; write its settings as"),
    ],
)
def test_a_group_of_settings_of_another_kind_is_refused(config, tmp_path, capsys, change, text):
    tree = yaml.safe_load(config.read_text())
    for name, value in change.items():
        (tree if name in tree else tree["model"]["init_args"])[name] = value
    file = write_yaml(tmp_path / "changed.yaml", tree)
    assert sidrec("fit", "--config", file, "--run_dir", tmp_path / "run") == 2
    assert text in last_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_stops")
def test_a_dead_data_worker_is_named_and_the_run_goes_on(config, tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root, "--data.num_workers", "2")
    kill = ("--trainer.callbacks+=tests.stops.KillWorker", "--trainer.callbacks.step=2")
    assert sidrec(*fit, *kill) == 1
    line = last_line(capsys)
    assert line.startswith("sidrec: A process that makes batches (pid ")
    assert "run the same command again, or lower data.num_workers" in line
    assert run.state() == "failed"
    assert sidrec(*fit) == 0
    resumed = capsys.readouterr().err
    assert "(step 2)" in resumed or "(step 3)" in resumed  # a batch may have been there already


def test_a_preempted_run_saves_where_it_was(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIDREC_ALLOW_IMPORTS", "tests")
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root)
    stop = (f"{STOPS}", "--trainer.callbacks.step=3", "--trainer.callbacks.reason=machine")
    assert sidrec(*fit, *stop) == 85
    assert last_line(capsys) == "Preempted. Run the same command again to resume."
    assert run.state() == "preempted"
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 3
    assert sidrec(*fit) == 0
    assert "(step 3)" in capsys.readouterr().err


@pytest.mark.usefixtures("_stops")
def test_a_failed_run_says_so_and_other_settings_are_refused(config, tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root)
    stop = (f"{STOPS}", "--trainer.callbacks.step=2", "--trainer.callbacks.reason=error")
    assert sidrec(*fit, *stop) == 1
    assert last_line(capsys) == "sidrec: FloatingPointError: error (--debug shows where)"
    assert run.state() == "failed"
    assert (
        sidrec(*fit, "--model.loss.temperature", "0.2", "--data.item_pairs.window_size", "2") == 2
    )
    line = last_line(capsys)
    assert "data.init_args.item_pairs.window_size: given 2, in run 3" in line
    assert "model.init_args.loss.temperature: given 0.2, in run 0.1" in line
    assert sidrec(*fit, "--trainer.max_steps", "3") == 0


def test_an_epoch_shorter_than_the_interval_of_validation_is_refused(config, tmp_path, capsys):
    fit = ("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert sidrec(*fit, "--trainer.val_check_interval", 100_000) == 2
    line = last_line(capsys)
    assert line.startswith("sidrec: trainer.val_check_interval (100000) exceeds the ")
    assert "batches of an epoch, so validation would never run; lower it" in line
    assert sidrec(*fit) == 0  # the run directory is as good as new


def test_an_encoder_run_is_measured_too(tiny, capsys):
    assert sidrec("test", "--from", tiny.encoder_run) == 0
    figures = json.loads(RunDirectory(tiny.encoder_run).metrics.read_text())
    assert {"search/recall@30", "recommendation/recall@10"} <= figures.keys()
    assert f"search/recall@30          {figures['search/recall@30']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_other_commands_read_a_run(tiny, command, capsys):
    assert sidrec(command, "--from", tiny.generator_run) == 0
    assert RunDirectory(tiny.generator_run).predictions.exists() or command == "validate"
    capsys.readouterr()


def test_a_bundle_of_another_corpus_is_refused(tiny, tmp_path, capsys):
    other = tmp_path / "other"
    assert sidrec("prepare", "synthetic", "--out", other, "--items", 50, "--users", 20) == 0
    fit = ("fit", "--config", tiny.generator_config, "--from", tiny.encoder_run)
    assert sidrec(*fit, "--data.corpus", other, "--run_dir", tmp_path / "run") == 3
    assert "holds Semantic IDs of another corpus" in last_line(capsys)
    assert list(tmp_path.glob("*/manifest.json")) == []


def test_a_refused_fit_leaves_nothing_behind(config, tmp_path):
    run = tmp_path / "refused"
    words = ("fit", "--config", str(config), "--data.corpus", str(tmp_path / "nowhere"))
    assert sidrec(*words, "--run_dir", str(run)) == 3
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["fit", "--from", "gone", "--run_dir", "r"], 1, "gone does not exist; give --from"),
        (["test", "--from", "gone"], 1, "gone does not exist; give --from"),
        (["test", "--from", "."], 1, ". is not a finished run (no manifest.json)"),
        (["test", "--from"], 2, "--from needs the folder of a run"),
        (["test", "--from", "CONFIG"], 1, "config.yaml is a file; give --from the folder of the"),
        (["fit", "--from", "CONFIG", "--run_dir", "r"], 1, "config.yaml is a file; give --from"),
        (["fit", "--config", "gone.yaml", "--run_dir", "r"], 2, "sidrec: gone.yaml: no such file"),
        (["fit", "--run_dir", "r"], 2, "required: fit.model"),
        (["test", "--config", "CONFIG"], 2, "`sidrec test` needs --run_dir FOLDER"),
        (["fit", "--config", "CONFIG", "--run_dir", "s3://b/r"], 2, "local folders only"),
        (
            ["fit", "--config", "CONFIG", "--run_dir", "r", "--trainer.limit_train_batches", "2"],
            2,
            "trainer.limit_train_batches (2) is below trainer.val_check_interval (4)",
        ),
        (["fit", "--config", "CONFIG", "--run_dir", "r", "--trainer.max_step=3"], 2, "max_steps'?"),
        (["fit", "--config", "CONFIG", "--rundir", "r"], 2, "did you mean 'run_dir'?"),
        (
            ["fit", "--config", "CONFIG", "--model.loss.temprature", "1"],
            2,
            "mean 'loss.temperature'?",
        ),
        (["fit", "--config", "CONFIG", "--model.loss.temperature", "hot"], 2, "valid number"),
        (
            ["fit", "--config", "CONFIG", "--run_dir", "r", "--model.loss.temperature", "-1"],
            2,
            'loss.temperature": Input should be greater than 0 Got value: -1.',
        ),
        (
            ["fit", "--config", "CONFIG", "--model", "os.system"],
            2,
            "Add its package to the environment variable SIDREC_ALLOW_IMPORTS",
        ),
        (
            ["fit", "--config", "CONFIG", "--model", "sidrec.encoder.module.BiEncodr"],
            2,
            "did you mean 'sidrec.BiEncoder'?",
        ),
        (
            ["fit", "--config", "CONFIG", "--model", "sidrec.BiEncodr"],
            2,
            "did you mean 'sidrec.BiEncoder'?",
        ),
        (
            ["fit", "--config", "CONFIG", "--run_dir", "r", "--trainer.strategy", "fsdp"],
            2,
            "trainer.strategy fsdp shards weights",
        ),
        (
            ["fit", "--config", "CONFIG", "--run_dir", "r", "--trainer.strategy", "FSDPStrategy"],
            2,
            "FSDPStrategy shards weights in a way that is not supported; use fsdp",
        ),
        (
            [
                "fit",
                "--config",
                "CONFIG",
                "--run_dir",
                "r",
                "--trainer.strategy",
                "{class_path: sidrec.ShardedStrategy}",
            ],
            2,
            "sidrec.ShardedStrategy shards weights, but sidrec.BiEncoder is encoded",
        ),
    ],
)
def test_wrong_usage_is_one_line(config, tmp_path, monkeypatch, capsys, arguments, code, text):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    capsys.readouterr()
    assert sidrec(*(str(config) if word == "CONFIG" else word for word in arguments)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"model:\n  class_path: [a\n b: c\n", "line 3: not valid YAML (expected ',' or ']'"),
        (b"only words", "expected keys with values, found a str"),
        (b"- 1", "expected keys with values, found a list"),
        (b"\xff\xfe\x00", "not valid YAML ('utf-8' codec can't decode byte 0xff"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "ids", "retrieve", "prepare synthetic"])
@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_damaged_configuration_is_named(tmp_path, capsys, content, text, command, form):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    assert sidrec(*command.split(), *form.format(file).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sidrec: {file}")
    assert text in line


def test_a_truncated_checkpoint_is_one_line(tiny, tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(tiny.generator_run, run.root)
    whole = run.last_checkpoint.read_bytes()
    for file in (run.last_checkpoint, run.best_checkpoint, run.previous_checkpoint):
        file.write_bytes(whole[: len(whole) // 2])
    assert sidrec("test", "--from", run.root) == 1
    assert "t.ckpt cannot be read (truncated or damaged" in last_line(capsys)
    again = ("fit", "--config", run.config, "--run_dir", run.root, "--trainer.max_steps", "5")
    assert sidrec(*again) == 1
    assert "No checkpoint can be read (" in last_line(capsys)


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_the_checkpoint_before(
    config, tmp_path, capsys
):
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root)
    assert sidrec(*fit, "--trainer.max_steps", 2) == 0
    with files_up_to(100_000):
        assert sidrec(*fit) == 1
    assert "t.ckpt cannot be written (" in last_line(capsys)
    assert run.state() == "failed"
    assert sidrec(*fit) == 0
    assert f"resuming from {run.last_checkpoint} (step 2)" in capsys.readouterr().err


def test_a_run_may_be_read_from_another_folder(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny.corpus.parent)
    here = Path()
    settings = encoder_settings(Path("corpus"), Path(tiny.encoder.name))
    del settings["trainer"]["callbacks"]
    config = write_yaml(tmp_path / "relative.yaml", settings)
    fit = ("fit", "--config", config, "--trainer.max_steps", "1")
    assert sidrec(*fit, "--run_dir", here / "relative-enc") == 0
    fit = ("fit", "--config", tiny.generator_config, "--from", Path("runs") / "enc")
    assert sidrec(*fit, "--run_dir", here / "relative-gen", "--trainer.max_steps", "1") == 0
    stored = yaml.safe_load((here / "relative-gen" / "config.yaml").read_text())
    assert stored["data"]["init_args"]["corpus"] == str(tiny.corpus)
    assert stored["model"]["init_args"]["semantic_ids"] == str(tiny.encoder_run / "semantic_ids")
    monkeypatch.chdir(tmp_path)
    assert sidrec("test", "--from", tiny.corpus.parent / "relative-enc") == 0
    assert sidrec("test", "--from", tiny.corpus.parent / "relative-gen") == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        (("model", "init_args", "loss"), "temprature", "loss.temperature"),
        (("data", "init_args"), "bach_size", "batch_size"),
        (("trainer",), "max_step", "trainer.max_steps"),
        (
            ("trainer", "callbacks", 0, "init_args", "quantizer", "init_args"),
            "num_redoo",
            "num_redo",
        ),
        ((), "modell", "model"),
    ],
)
def test_a_misspelt_key_names_the_nearest(tiny, tmp_path, capsys, path, wrong, right):
    settings = encoder_settings(tiny.corpus, tiny.encoder)
    place = settings
    for key in path:
        place = place[key]
    place[wrong] = place.pop(right.rsplit(".", 1)[-1])
    config = write_yaml(tmp_path / "c.yaml", settings)
    assert sidrec("fit", "--config", config, "--run_dir", tmp_path / "run") == 2
    line = last_line(capsys)
    assert f"'{wrong}'" in line or f".{wrong}'" in line or f"{wrong}." in line
    assert line.endswith(f"did you mean '{right}'?")
