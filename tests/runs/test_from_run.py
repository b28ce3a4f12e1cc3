import pytest
import yaml

from sidrec.errors import ConfigError, RunError
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import (
    absolute_paths,
    arguments_from_run,
    is_finished_with,
    read_config,
    refuse_contradictions,
    refuse_sharded_weights,
    take_from,
)

SETTINGS = {
    "seed_everything": 1,
    "trainer": {"max_steps": 4},
    "model": {"init_args": {"width": 2, "names": ["a"]}},
    "data": {"init_args": {"corpus": "films"}},
}


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "enc")
    run.write_manifest(state="finished", stage="encoder")
    run.config.write_text(yaml.safe_dump(SETTINGS))
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    return run


@pytest.mark.parametrize(
    ("given", "folder", "rest"),
    [
        (["--a", "1"], None, ["--a", "1"]),
        (["--from", "r", "--a", "1"], "r", ["--a", "1"]),
        (["--a", "1", "--from=r"], "r", ["--a", "1"]),
        (["--a", "--from", "r", "b"], "r", ["--a", "b"]),
    ],
)
def test_from_is_taken_off_the_line(given, folder, rest):
    found, left = take_from(given)
    assert (found and str(found), left) == (folder, rest)


def test_fit_takes_corpus_ids_and_encoder_from_the_run(run):
    assert arguments_from_run("fit", ["--from", str(run.root), "--x", "1"]) == [
        *("--x", "1"),
        *("--data.corpus", "films"),
        *("--model.semantic_ids", str(run.semantic_ids)),
        *("--model.encoder_run", str(run.root)),
    ]


@pytest.mark.parametrize("flag", ["--data.corpus", "--data.init_args.corpus", "--data.corpus=o"])
def test_explicit_flags_win(run, flag):
    given = [flag] if "=" in flag else [flag, "o"]
    arguments = arguments_from_run("fit", ["--from", str(run.root), *given])
    assert "films" not in arguments
    assert arguments[: len(given)] == given


def test_other_commands_take_the_runs_own_configuration(run):
    given = ["--from", str(run.root), "--trainer.devices", "1"]
    assert arguments_from_run("test", given) == [
        *("--config", str(run.config), "--run_dir", str(run.root)),
        *("--trainer.devices", "1"),
    ]
    assert arguments_from_run("test", ["--config", "c"]) == ["--config", "c"]


def test_a_generator_is_no_source_of_a_fit(run):
    run.write_manifest(stage="generator")
    with pytest.raises(RunError, match="made by stage 'generator'; `sidrec fit --from` needs"):
        arguments_from_run("fit", ["--from", str(run.root)])


def test_folders_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {
        "model": {
            "init_args": {
                "encoder": "sentence-transformers/x",
                "t5": {"pretrained": "films"},
                "causal_lm": {"pretrained": "films"},
            }
        },
        "data": {"init_args": {"corpus": "films", "name": "films", "encoder": "package:x/films"}},
        "trainer": {"callbacks": None},
    }
    assert absolute_paths(given) is given
    assert given["data"]["init_args"] == {
        "corpus": str(tmp_path / "films"),
        "name": "films",
        "encoder": "package:x/films",
    }
    assert given["model"]["init_args"] == {
        "encoder": "sentence-transformers/x",
        "t5": {"pretrained": str(tmp_path / "films")},
        "causal_lm": {"pretrained": str(tmp_path / "films")},
    }
    assert absolute_paths({"model": None}) == {"model": None}


def test_a_run_begun_with_relative_paths_may_go_on(run, tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path)
    now = SETTINGS | {"data": {"init_args": {"corpus": str(tmp_path / "films")}}}
    refuse_contradictions(run, now)
    assert is_finished_with(run, now)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [1", ""])
def test_a_damaged_configuration_is_refused(run, text):
    run.config.write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml"):
        read_config(run.config)
    run.config.unlink()
    with pytest.raises(RunError, match=r"cannot be read \(FileNotFoundError\)"):
        read_config(run.config)


def changed(**model):
    return SETTINGS | {"model": {"init_args": SETTINGS["model"]["init_args"] | model}}


def test_changed_settings_are_refused_with_a_table(run):
    with pytest.raises(ConfigError) as refused:
        refuse_contradictions(run, changed(width=3, names=["b"], depth=1))
    for part in ("width: given 3, in run 2", "names: given ['b'], in run ['a']", "depth: given 1"):
        assert part in str(refused.value)


def test_an_option_that_came_later_counts_as_its_default(run):
    enmf = {"class_path": "sidrec.UserDataModule"}
    older = {"corpus": "films", "batch_size": 2, "seed": 1}
    run.config.write_text(yaml.safe_dump(SETTINGS | {"data": enmf | {"init_args": older}}))
    for num_workers in (0, 2):
        now = SETTINGS | {"data": enmf | {"init_args": older | {"num_workers": num_workers}}}
        assert is_finished_with(run, now) == (num_workers == 0)
        if num_workers == 0:
            refuse_contradictions(run, now)
            continue
        with pytest.raises(ConfigError, match=r"num_workers: given 2, in run None\)"):
            refuse_contradictions(run, now)


def test_trainer_settings_may_change(run):
    refuse_contradictions(run, SETTINGS | {"trainer": {"max_steps": 9}})


def test_a_run_without_a_checkpoint_may_begin_with_other_settings(run):
    run.last_checkpoint.unlink()
    refuse_contradictions(run, changed(width=3))


def test_finished_means_the_same_settings_to_the_end(run):
    assert is_finished_with(run, SETTINGS)
    assert not is_finished_with(run, SETTINGS | {"trainer": {"max_steps": 9}})
    run.write_manifest(state="interrupted")
    assert not is_finished_with(run, SETTINGS)
    assert not is_finished_with(RunDirectory(run.root / "new"), SETTINGS)


@pytest.mark.parametrize(
    ("strategy", "settings", "problem"),
    [
        ("ddp", {}, None),
        ({"class_path": "sidrec.ShardedStrategy"}, {}, None),
        ("fsdp", {}, "over GPUs, and there is none to use; use ddp, or sidrec.ShardedStrategy"),
        ("deepspeed_stage_2", {}, "in a way that is not supported; use fsdp"),
        ("fsdp", {"t5": {"lora": {"r": 8}}}, "model.t5.lora does not support; use ddp"),
        ("fsdp", {"causal_lm": {"lora": {"r": 8}}}, "model.causal_lm.lora does not support"),
        ("fsdp", {"t5": {"torch_compile": True}}, "model.t5.torch_compile does not support"),
    ],
)
def test_weights_are_sharded_where_it_works(strategy, settings, problem):
    resolved = {
        "trainer": {"strategy": strategy, "accelerator": "cpu"},
        "model": {"class_path": "sidrec.JointGenerator", "init_args": settings},
    }
    if problem is None:
        refuse_sharded_weights(resolved)
        return
    with pytest.raises(ConfigError, match=problem):
        refuse_sharded_weights(resolved)


@pytest.mark.parametrize("text", ["whole", "words"])
def test_an_option_within_a_group_that_came_later_counts_as_its_default(run, text):
    module = {"class_path": "sidrec.GeneratorDataModule"}
    older = {"corpus": "films", "tasks": {"search_share": 0.7, "indexing_share": 0.2}}
    run.config.write_text(yaml.safe_dump(SETTINGS | {"data": module | {"init_args": older}}))
    newer = older | {"tasks": older["tasks"] | {"indexing_text": text}}
    now = SETTINGS | {"data": module | {"init_args": newer}}
    assert is_finished_with(run, now) == (text == "whole")
