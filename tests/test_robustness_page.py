"""The figures of docs/results/robustness.md are those of the files that it names."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "results" / "robustness.md").read_text()


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def rows():
    lines = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
    return {first: [int(one.replace(",", "")) for one in rest if one[0].isdigit()]
            for first, *rest in lines}  # fmt: skip


def test_every_row_is_that_of_its_file():
    shown, counts = rows(), ("possible", "tried", "killed", "equivalent")
    for room, found in result("mutants")["rooms"].items():
        open_ones = found["tried"] - found["killed"] - found["equivalent"]
        assert shown[room] == [*(found[one] for one in counts), open_ones]
    fuzzed = result("fuzz")
    for family, found in fuzzed["families"].items():
        assert shown[family] == [found["tried"], found["answered"]]
    assert shown["all"] == [fuzzed["tried"], fuzzed["answered"]]
    kills = result("kills")
    assert f"{kills['survived']} of {kills['kills']} kills" in TEXT
    matrix = result("two_rank_matrix")
    runs = sum(matrix.get(end, 0) for end in ("passed", "hung", "failed"))
    assert f"{matrix['passed']} of {runs} runs passed; {matrix.get('hung', 0)} hung" in TEXT
