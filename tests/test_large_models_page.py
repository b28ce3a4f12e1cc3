"""The commands of docs/how-to/large-models.md, from an encoder with adapters to answers."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sidrec.corpus.store import Corpus
from tests.generator.causal.models import store_lm
from tests.pairs.made import make_encoder
from tests.test_paper_settings import make_flan
from tests.tiny import encoder_settings, generator_settings, sidrec, write_yaml

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "large-models.md"
ENCODER, T5 = "sentence-transformers/all-roberta-large-v1", "google/flan-t5-xl"
CAUSAL = "Qwen/Qwen3-4B"


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    words = [shlex.split(line) for line in "".join(blocks).replace("\\\n", " ").splitlines()]
    return [line[1:] for line in words if line[0] == "sidrec"]


@pytest.fixture
def _here(tiny, tmp_path, monkeypatch):
    """A folder with small files under the names of the page."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.corpus, "corpora/movies")
    corpus = Corpus.load(Path("corpora/movies"))
    make_encoder(Path(ENCODER), corpus)
    make_flan(Path(T5), corpus.item_texts())
    write_yaml(Path("multitask.yaml"), encoder_settings(tiny.corpus, tiny.encoder))
    store_lm(Path(CAUSAL), "qwen3", corpus.item_texts())
    settings = generator_settings()
    write_yaml(Path("generator.yaml"), settings)
    settings["model"]["init_args"]["causal_lm"] = {"all_positions": True}
    del settings["model"]["init_args"]["t5"]
    write_yaml(Path("generator-causal.yaml"), settings)
    requests = [
        {"id": "a", "task": "search", "query": "a film"},
        {"id": "b", "task": "recommendation", "history": corpus.item_ids()[:3]},
    ]
    Path("requests.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))


@pytest.mark.slow
@pytest.mark.usefixtures("_here")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_commands_of_the_page_run(capsys):
    lines = commands()
    of_generator = ["fit", "test", "retrieve"]
    assert [line[0] for line in lines] == ["fit", *of_generator, *of_generator, "export"]
    wrong = [*lines[0], "--model.tower.lora.target_modules", "[q_proj]", "--run_dir", "runs/wrong"]
    assert sidrec(*wrong) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "lora.target_modules names 'q_proj', which is not a linear layer of BertModel" in last
    for line in lines:
        assert sidrec(*line) == 0, capsys.readouterr().err
    for run in ("enc", "gen", "causal"):
        stored = torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert any("lora_B" in name for name in stored)
        assert not any("base_layer" in name for name in stored)
    for file in ("results.jsonl", "causal.jsonl"):
        answers = [json.loads(line) for line in Path(file).read_text().splitlines()]
        assert [len(answer["items"]) for answer in answers] == [30, 30]
    merged = AutoModelForCausalLM.from_pretrained("exported/causal")
    assert not any("lora" in name for name in merged.state_dict())
    shutil.rmtree(T5)
    assert sidrec(*lines[3][:-1], "again.jsonl") == 2
    assert "cannot be loaded from the hub or a folder" in capsys.readouterr().err.splitlines()[-1]
