"""A pretrained causal model by hub name: fit, resume, test, retrieve, serve, export, generate."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch

from sidrec.corpus.store import Corpus
from sidrec.runs.directory import RunDirectory
from tests.generator.causal.models import FAMILIES, store_lm
from tests.hub import serve
from tests.tiny import generator_settings, sidrec, write_yaml

NAME = "small/lm"
LORA = {"r": 2, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
STOP = ("--trainer.callbacks+=tests.stops.StopAt", "--trainer.callbacks.reason=machine")
TOP_K = 10


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_hub_name_to_the_answers_of_other_programs(family, tiny, tmp_path):
    pytest.importorskip("starlette", reason="NOT TESTED: the extra `serve`")
    corpus = Corpus.load(tiny.corpus)
    store_lm(tmp_path / "stored", family, [*corpus.item_texts(), *corpus.queries["text"]])
    code = f"import sys; from {__name__} import story; story(*sys.argv[1:])"
    with serve({NAME: tmp_path / "stored"}) as hub:  # whose address is read when Python starts
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, tiny.encoder_run],
            env=os.environ
            | hub.environment(tmp_path / "cache")
            | {"SIDREC_ALLOW_IMPORTS": "tests"},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{NAME}/model.safetensors" in hub.fetched


def story(folder, encoder_run):
    folder = Path(folder)
    settings = generator_settings()
    arguments = settings["model"]["init_args"]
    del arguments["t5"]
    arguments["causal_lm"] = {"pretrained": NAME, "lora": LORA, "activation_checkpointing": True}
    arguments["inputs"] |= {"text_input": "tokens", "history_input": "codes"}
    arguments["prior"] = None
    config = write_yaml(folder / "causal.yaml", settings)
    run = RunDirectory(folder / "run")
    fit = ("fit", "--config", config, "--from", encoder_run, "--run_dir")
    refuse_a_wrong_module(*fit, folder / "wrong")
    assert sidrec(*fit, run.root, *STOP, "--trainer.callbacks.step=2") == 85
    stored = torch.load(run.last_checkpoint, weights_only=True)
    assert stored["global_step"] == 2
    assert any("lora_B" in name for name in stored["state_dict"])
    assert not any("base_layer" in name for name in stored["state_dict"])
    assert sidrec(*fit, run.root) == 0
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 4
    assert sidrec("test", "--from", run.root) == 0
    assert json.loads(run.metrics.read_text())["decoding/valid_fraction"] == 1.0

    source, target, out = (folder / name for name in ("in.jsonl", "out.jsonl", "exported"))
    requests = [{"id": str(row), "task": "search", "query": f"item {row}"} for row in range(3)]
    source.write_text("".join(json.dumps(one) + "\n" for one in requests))
    size = ("--top_k", TOP_K, "--batch_size", 8, "--device", "cpu")
    assert sidrec("retrieve", "--from", run.root, "--input", source, "--output", target, *size) == 0
    the_server_gives_the_same(run, source, target)
    assert sidrec("export", "--from", run.root, "--out", out) == 0
    the_card_gives_the_same(out, requests, target)


def refuse_a_wrong_module(*fit):
    shown = io.StringIO()
    with redirect_stderr(shown):
        assert sidrec(*fit, "--model.causal_lm.lora.target_modules", "[query]") == 2
    line = shown.getvalue().splitlines()[-1]
    assert "lora.target_modules names 'query', which is not a linear layer of" in line
    assert not RunDirectory(fit[-1]).last_checkpoint.exists()


def the_server_gives_the_same(run, source, target):
    from starlette.testclient import TestClient

    from sidrec.generator.retrieval.retriever import Retriever
    from sidrec.generator.serving.answer_queue import AnswerQueue
    from sidrec.generator.serving.web_app import web_app

    queue = AnswerQueue(Retriever.load(run.root, device="cpu"), top_k=TOP_K, batch_size=8)
    app = web_app(queue, run="runs/gen", hosts=["localhost"])
    with TestClient(app, base_url="http://localhost") as client:
        content = source.read_bytes()
        assert client.post("/retrieve", content=content).content == target.read_bytes()
        explained = client.post("/explain", content=content.splitlines()[0]).json()
    items = explained["answer"]["items"]
    path = [[tuple(one["codes"]) for one in level["prefixes"]] for level in explained["levels"]]
    assert [len(level[0]) for level in path] == [1, 2, 3]
    assert all(tuple(item["semantic_id"]) in path[-1] for item in items)


def the_card_gives_the_same(out, requests, target):
    card = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    asked = [f"search: {one['query']}" for one in requests]
    shown = {}
    exec(re.sub(r"^requests = .*$", f"requests = {asked!r}", code, flags=re.M), shown)  # noqa: S102
    lines = [json.loads(line)["items"] for line in target.read_text().splitlines()]
    items = [item for line in lines for item in line]
    names = ["".join(f"<{a}_{c}>" for a, c in zip("abc", i["semantic_id"])) for i in items]  # noqa: B905
    assert shown["answers"] == names
    scores = torch.tensor([item["score"] for item in items])
    torch.testing.assert_close(shown["found"].sequences_scores, scores, atol=1e-4, rtol=0)
