"""Whatever a user hands over: it works, or one line says what is wrong and nothing is left."""

import pytest

from tests.fuzz.families import FAMILIES
from tests.fuzz.known import KNOWN
from tests.fuzz.tally import Tally

NUM_CASES = {
    "retrieve": 60,
    "prepare table": 15,
    "prepare movielens": 12,
    "ids": 15,
    "compare": 40,
    "fit": 12,
    "times": 10,
    "quoting": 12,
    "names": 10,
    "types": 10,
    "texts": 10,
    "markup": 100,
    "arguments": 200,
}


def fuzz(name, num_cases, folder, tiny):
    tally = Tally(name)
    FAMILIES[name](tiny, folder / "case" / "folder", tally, num_cases)
    assert not tally.wrong, tally.wrong[0]
    return tally


@pytest.mark.parametrize("name", ["retrieve", "prepare table", "prepare movielens", "ids", *KNOWN])
def test_spoiled_files_are_answered(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    tally = fuzz(name, NUM_CASES[name], tmp_path, None)
    assert sum(tally.counts.values()) == NUM_CASES[name]
    assert tally.counts["0"]  # some are in order after all: the good input is good


@pytest.mark.parametrize("name", ["compare", "fit"])
def test_spoiled_configurations_of_runs_are_answered(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    tally = fuzz(name, NUM_CASES[name], tmp_path, tiny)
    assert tally.counts["0"]
    assert tally.counts["2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_many_more_are_answered(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    fuzz(name, 10 * NUM_CASES[name], tmp_path, tiny)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]\n", "an anchor contains itself"),
        ("a: &a [x, x]\n" + "".join(
            f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(10))}]\n"
            for old, new in zip("abcdef", "bcdefg", strict=True)
        ), "its anchors unfold to more than 100,000 values"),
        ("a: !!bool maybe\n", "not valid YAML"),
        ("a: !!timestamp 2001-99-99\n", "not valid YAML"),
        ("[" * 1_200, "not valid YAML"),
    ],
)  # fmt: skip
def test_yaml_that_would_not_end_is_refused(tmp_path, capsys, text, said):
    from tests.tiny import sidrec

    (tmp_path / "bad.yaml").write_text(text)
    for command in ("fit", "ids", "compare"):
        capsys.readouterr()
        assert sidrec(command, "--config", tmp_path / "bad.yaml") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert len(line) <= 300
