"""A causal generator through the command line: fit, test, and the retriever on its run."""

import pyarrow.parquet as pq
import pytest
import yaml

from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.generator.model.causal.causal_generator import CausalGenerator
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.runs.directory import RunDirectory
from tests.tiny import sidrec, write_yaml

CAUSAL = {
    "text_vocabulary_size": 200,
    "all_positions": True,
    "shape": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
}


@pytest.mark.slow
def test_the_retriever_answers_as_sidrec_test_does(tiny, tmp_path):
    settings = yaml.safe_load(tiny.generator_config.read_text())
    arguments = settings["model"]["init_args"]
    del arguments["t5"]
    arguments["causal_lm"] = CAUSAL
    config = write_yaml(tmp_path / "causal.yaml", settings)
    run = tmp_path / "run"
    assert sidrec("fit", "--config", config, "--from", tiny.encoder_run, "--run_dir", run) == 0
    assert sidrec("test", "--from", run) == 0
    retriever, corpus = Retriever.load(run, device="cpu"), Corpus.load(tiny.corpus)
    assert isinstance(retriever.generator.model, CausalGenerator)
    stored = {
        (row["task"], row["request_id"]): row["items"]
        for row in pq.read_table(RunDirectory(run).predictions).to_pylist()
    }
    item_ids = corpus.item_ids()
    requests = [*search_requests(corpus, "test"), *recommendation_requests(corpus, "test")]
    for request, answer in zip(requests, retriever.answer(requests, top_k=10), strict=True):
        expected = [item_ids[item] for item in stored[request.task, request.request_id]]
        assert [item.item_id for item in answer] == expected
