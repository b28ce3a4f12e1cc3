"""Every shipped configuration parses with the command that it is for; a typo is refused."""

import functools
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sidrec.cli.fuse import main as fuse
from sidrec.cli.ids import main as make_ids
from sidrec.cli.train import MONITOR, SidrecCLI, lightning_classes
from sidrec.comparison.plan.cells import cells_of
from sidrec.comparison.plan.comparison_settings import read_comparison
from sidrec.comparison.plan.stages import in_order
from sidrec.runs.from_run import allow_known_classes_only

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ENCODER = CONFIGS / "multitask.yaml"
GENERATOR = CONFIGS / "generator.yaml"
FROM_RUN = ["--data.corpus=c", "--model.semantic_ids=s", "--model.encoder_run=e"]  # as --from does
IDS = [*sorted((CONFIGS / "ids").glob("*.yaml")), CONFIGS / "paper" / "ids.yaml"]
TABLES = [CONFIGS / "benchmarks" / f"{name}.yaml" for name in ("beauty", "sports", "toys")]
LETTER = CONFIGS / "benchmarks" / "beauty-letter.yaml"  # its plan needs a file of codes
COMPARE = [*sorted((CONFIGS / "compare").glob("*.yaml")), *TABLES]
SWEEP = CONFIGS / "sweep.yaml"
OWN_IDS = sorted((CONFIGS / "ids" / "task").glob("*.yaml"))  # IDs of each task's own
TRAINING = sorted(set(CONFIGS.rglob("*.yaml")) - {*IDS, *OWN_IDS, *COMPARE, LETTER, SWEEP})


def name(path):
    return str(path.relative_to(CONFIGS))


@functools.cache
def content(path):
    return yaml.safe_load(path.read_text())


def is_overlay(path):
    """An overlay changes some keys of a stage's configuration."""
    settings = content(path)
    return not {"model", "data", "trainer"} <= settings.keys()


def assert_holds(shown, given, place):
    """Every value that a configuration gives is the resolved one."""
    if isinstance(given, dict):
        for key, value in given.items():
            assert_holds(shown[key], value, f"{place}.{key}")
    else:
        assert shown == given, place


def printed(capsys, *arguments):
    """Return what ``sidrec fit … --print_config`` prints, as plain types."""
    allow_known_classes_only(lightning_classes())  # as the command does
    with pytest.raises(SystemExit) as stop:
        SidrecCLI(["fit", *map(str, arguments), "--print_config"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    return yaml.safe_load(shown.out)


@pytest.fixture(autouse=True)
def _clean_argv(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sidrec"])


@pytest.mark.parametrize("config", [path for path in TRAINING if not is_overlay(path)], ids=name)
def test_stage_config_parses_whole(config, capsys):
    given = content(config)
    extra = FROM_RUN if given["model"]["class_path"].endswith("JointGenerator") else []
    shown = printed(capsys, "--config", config, *extra)
    for part in ("model", "data"):
        for key, value in given[part].get("init_args", {}).items():
            if f"--{part}.{key}" not in " ".join(extra):
                assert_holds(shown[part]["init_args"][key], value, f"{part}.{key}")


@pytest.mark.parametrize("config", [path for path in TRAINING if is_overlay(path)], ids=name)
def test_overlay_parses_over_the_encoder(config, capsys):
    shown = printed(capsys, "--config", ENCODER, "--config", config)
    assert shown["model"]["class_path"] == "sidrec.BiEncoder"
    assert shown["trainer"]["callbacks"], "an overlay must not drop the Semantic-ID callback"
    for key, value in content(config).get("trainer", {}).items():
        if not isinstance(value, dict):
            assert shown["trainer"][key] == value
    for part in ("model", "data"):
        for key, value in content(config).get(part, {}).get("init_args", {}).items():
            assert_holds(shown[part]["init_args"][key], value, f"{part}.{key}")


@pytest.mark.parametrize("machine", ["cpu", "gpu", "ddp", "wandb"])
def test_machine_parses_over_the_generator(machine, capsys):
    overlay = CONFIGS / "machines" / f"{machine}.yaml"
    shown = printed(capsys, "--config", GENERATOR, "--config", overlay, *FROM_RUN)
    assert shown["model"]["class_path"] == "sidrec.JointGenerator"


def test_wandb_stays_offline_and_resumes():
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    from lightning.pytorch.loggers import WandbLogger

    settings = content(CONFIGS / "machines" / "wandb.yaml")["trainer"]["logger"]
    assert settings["class_path"] == "lightning.pytorch.loggers.WandbLogger"
    logger = WandbLogger(**settings["init_args"])
    assert logger._offline is True
    assert logger._wandb_init["resume"] == "allow"  # Lightning's own default, which we rely on
    assert logger._wandb_init["id"] is None  # so that WANDB_RUN_ID decides


@pytest.mark.parametrize("config", IDS, ids=name)
def test_ids_config_parses(config, capsys):
    with pytest.raises(SystemExit) as stop:
        make_ids(["--config", str(config), "--out", "ids", "--print_config"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    settings = yaml.safe_load(shown.out)
    given = content(config)["quantizer"].get("init_args", {})
    assert_holds(settings["quantizer"]["init_args"], given, "quantizer")
    assert settings["policy"]["class_path"] == content(config)["policy"]["class_path"]


@pytest.mark.parametrize("config", OWN_IDS, ids=name)
def test_own_ids_config_parses(config, capsys):
    where = ["--from", "search", "--and", "rec", "--out", "ids", "--fusion", config.stem]
    with pytest.raises(SystemExit) as stop:
        fuse(["--config", str(config), *where, "--print_config"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    assert yaml.safe_load(shown.out)["prefix_share"] == content(config)["prefix_share"]


@pytest.mark.parametrize(
    ("training", "ids"),
    [("multitask.yaml", "ids/default.yaml"), ("paper/encoder.yaml", "paper/ids.yaml")],
)
def test_callback_makes_the_ids_that_the_command_makes(training, ids, capsys):
    (callback,) = printed(capsys, "--config", CONFIGS / training)["trainer"]["callbacks"]
    with pytest.raises(SystemExit):
        make_ids(["--config", str(CONFIGS / ids), "--out", "ids", "--print_config"])
    alone = yaml.safe_load(capsys.readouterr().out)
    for key in ("quantizer", "policy"):
        assert callback["init_args"][key] == {"init_args": {}} | alone[key]


def test_paper_has_one_set_of_semantic_ids():
    assert content(CONFIGS / "ids" / "paper.yaml") == content(CONFIGS / "paper" / "ids.yaml")


@pytest.mark.parametrize(
    ("config", "group", "right", "wrong"),
    [
        (ENCODER, "loss", "temperature", "temprature"),
        (ENCODER, "optimizer", "learning_rate", "lerning_rate"),
        (GENERATOR, "loss", "label_smoothing", "label_smothing"),
        (GENERATOR, "search", "num_beams", "num_bems"),
    ],
)
@pytest.mark.parametrize("is_flag", [True, False], ids=["flag", "file"])
def test_typo_is_refused_and_the_nearest_key_named(
    config, group, right, wrong, is_flag, tmp_path, capsys
):
    extra = FROM_RUN if config == GENERATOR else []
    if is_flag:
        extra = [*extra, f"--model.{group}.{wrong}=0.1"]
    else:
        settings = yaml.safe_load(config.read_text())
        settings["model"]["init_args"] = {group: {wrong: 0.1}}
        config = tmp_path / "typo.yaml"
        config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        SidrecCLI(["fit", "--config", str(config), *extra, "--run_dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert wrong in error
    assert right in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", COMPARE, ids=name)
def test_comparison_plans_stages_that_parse(config, capsys, monkeypatch):
    """Every training of the plan, with the flags that the comparison adds, parses whole."""
    monkeypatch.chdir(ROOT)
    comparison = read_comparison(config)
    assert comparison.report.publish is None  # whoever has the package has no docs/results
    cells = cells_of(comparison, fingerprint="f" * 64)
    stages, reference = in_order(cells), comparison.report.reference
    assert {cell.seed for cell in cells if cell.system == reference} == {1234, 1235, 1236}
    kinds = {}
    for stage in stages:
        if stage.command == "fit":
            kinds.setdefault(stage.label, stage)
    for stage in kinds.values():
        arguments = stage.arguments(Path("out"))[1:]
        shown = printed(capsys, *arguments)
        options = dict(stage.options)
        assert str(shown["seed_everything"]) == options.get("--seed_everything", "1234")
        if "--seed_everything" in options:
            assert str(shown["data"]["init_args"]["seed"]) == options["--data.seed"]
        if "--trainer.max_steps" in options:
            assert str(shown["trainer"]["max_steps"]) == options["--trainer.max_steps"]
    made = {stage.label: stage for stage in stages if stage.command == "ids"}
    for stage in made.values():
        with pytest.raises(SystemExit) as stop:
            make_ids([*stage.arguments(Path("out"))[1:], "--print_config"])
        shown = yaml.safe_load(capsys.readouterr().out)["quantizer"]["init_args"]
        assert stop.value.code == 0
        for flag, value in stage.options:
            assert str(shown[flag.removeprefix("--quantizer.init_args.")]) == value


def test_sweep_expands_to_a_command_that_parses(capsys, tmp_path):
    utils = pytest.importorskip(
        "wandb.sdk.launch.sweeps.utils", reason="the extra `wandb` is not installed"
    )
    sweep = content(SWEEP)
    kinds = sweep["parameters"].items()
    chosen = {key: kind.get("values", [kind.get("min")])[-1] for key, kind in kinds}
    made = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
    words = [
        word
        for part in utils.create_sweep_command(sweep["command"])
        for word in (made[part[2:-1]] if part.startswith("${") else [part])
    ]
    (tmp_path / "sidrec").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "sidrec").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "WANDB_RUN_ID": "abc"}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    command, *arguments = done.stdout.splitlines()
    assert command == "fit"
    assert "runs/sweep/abc" in arguments
    shown = printed(capsys, *(str(ROOT / w) if w.startswith("configs/") else w for w in arguments))
    assert shown["model"]["init_args"]["loss"]["temperature"] == chosen["model.loss.temperature"]
    window_size = shown["data"]["init_args"]["item_pairs"]["window_size"]
    assert window_size == chosen["data.item_pairs.window_size"]
    assert sweep["metric"]["name"] == MONITOR


def test_help_takes_less_than_a_processor_second():
    def taken() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = taken()
    command = [sys.executable, "-m", "sidrec", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "prepare" in shown.stdout
    assert taken() - before < 1.0
