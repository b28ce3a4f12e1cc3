import pytest

from sidrec.configurations import copy_config, find_config, packaged_folder, packaged_names
from sidrec.errors import ConfigError
from tests.tiny import sidrec


def test_a_local_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = packaged_folder() / "ids" / "tiger.yaml"
    assert find_config("ids/tiger.yaml") == packaged
    assert find_config("configs/ids/tiger.yaml") == packaged
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids" / "tiger.yaml").touch()
    assert find_config("ids/tiger.yaml").resolve() == tmp_path / "ids" / "tiger.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ids/tigger.yaml", "did you mean 'ids/tiger.yaml'"), ("xyz", "`sidrec configs` lists")],
)
def test_the_nearest_name_is_named(name, hint):
    with pytest.raises(ConfigError, match=hint):
        find_config(name)


def test_the_list_holds_every_name_and_its_first_sentence(capsys):
    assert sidrec("configs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == packaged_names()
    assert all(len(line.split()) > 4 for line in lines)
    assert "generator.yaml" in packaged_names()


def test_a_copy_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sidrec("configs", "copy", "ids/tiger.yaml") == 0
    assert (tmp_path / "tiger.yaml").read_text() == find_config("ids/tiger.yaml").read_text()
    assert sidrec("configs", "copy", "ids/tiger.yaml") == 2
    assert "tiger.yaml exists and is not overwritten" in capsys.readouterr().err
    assert copy_config("generator.yaml", "mine.yaml").read_text()
