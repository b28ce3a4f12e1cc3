"""The page about the hub says only what runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from sidrec.encoder.encoder_settings import TowerSettings
from sidrec.pairs.pair_settings import TokenSettings
from tests.tiny import sidrec

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "hub.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    for name, run in (("enc", tiny.encoder_run), ("gen", tiny.generator_run)):
        (tmp_path / "runs" / name).symlink_to(run)
    monkeypatch.chdir(tmp_path)


def test_the_page_runs_from_top_to_bottom(here, capsys):
    (commands,) = blocks("sh")
    for line in commands.strip().splitlines():
        assert sidrec(*shlex.split(line)[1:]) == 0
    python = blocks("python")
    assert len(python) == 3
    with torch.no_grad():
        exec("\n".join(python), {})  # noqa: S102
    assert "<a_" in capsys.readouterr().out


def test_the_settings_of_the_page_exist():
    (text,) = blocks("yaml")
    config = yaml.safe_load(text)
    assert TowerSettings(**config["model"]["init_args"]["tower"]).item_prompt == "passage: "
    assert TokenSettings(**config["data"]["init_args"]["tokens"]).query_prompt == "query: "
