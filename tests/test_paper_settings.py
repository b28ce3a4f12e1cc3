"""The paper's configurations, whole: loaded by hub name, trained for two steps, tested."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.sources.synthetic import make_synthetic
from sidrec.corpus.store import Corpus
from sidrec.files import read_json
from sidrec.generator.model.t5 import train_tokenizer
from sidrec.runs.from_run import read_config
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import TASKS
from tests.hub import serve
from tests.pairs.made import SETTINGS, SIZES

CONFIGS = Path(__file__).parents[1] / "configs"
ENCODER, T5 = "sentence-transformers/all-mpnet-base-v2", "google/flan-t5-base"
NAMES = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "pad": "<pad>", "mask": "<mask>"}
SPECIAL = {f"{name}_token": token for name, token in (NAMES | {"unk": "<unk>"}).items()}
SPARE = 28  # rows of flan-t5's embedding behind its 32,100 tokens


def make_mpnet(folder: Path, texts: list[str]) -> None:
    """Write an MPNet of width 16 as the hub has the large one."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=512, **SPECIAL | {"unk_token": "[UNK]"}
    ).save_pretrained(folder)
    torch.manual_seed(0)
    MPNetModel(
        MPNetConfig(
            vocab_size=words.get_vocab_size(),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=514,
        )
    ).save_pretrained(folder)


def make_flan(folder: Path, texts: list[str]) -> None:
    """Write a T5 of flan's kind: gated, with a head of its own and spare rows."""
    tokenizer = train_tokenizer(texts, vocabulary_size=300)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size() + SPARE,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    # transformers ties what it saves; flan-t5's head is its own
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"]) * 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(stored))


def make_catalogue(folder: Path) -> Corpus:
    """Write a corpus with more items than the paper's codebooks have codes."""
    sizes = replace(SIZES, num_items=300, num_users=60, num_interactions=1_500, queries_per_item=1)
    raw, queries = make_synthetic(sizes, folder.parent / "scratch")
    build_corpus(raw, queries, folder, SETTINGS)
    return Corpus.load(folder)


RUN_ALL = """
import json, sys
from tests.tiny import sidrec
for words in json.loads(sys.argv[1]):
    code = sidrec(*words)
    if code:
        sys.exit(code)
"""


@pytest.mark.slow
def test_the_papers_run_in_small(tmp_path):
    """Steps, batches and requests are shrunk by flags, models by the hub; nothing else differs."""
    corpus = make_catalogue(tmp_path / "corpus")
    texts = [*corpus.item_texts(), *corpus.queries["text"]]
    make_mpnet(tmp_path / "mpnet", texts)
    make_flan(tmp_path / "flan", texts)
    encoder, generator = tmp_path / "enc", tmp_path / "gen"
    small = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.num_workers=0"]
    small += ["--trainer.check_val_every_n_epoch=null", "--data.batch_size=8"]
    few = ["--data.evaluation.valid_requests=4"]
    corpus_flags = ["--data.corpus", corpus.folder]
    paper = CONFIGS / "paper"
    fit_encoder = ["fit", "--config", paper / "encoder.yaml", *corpus_flags, *small]
    fit_generator = ["fit", "--config", paper / "generator.yaml", "--from", encoder, *small, *few]
    commands = [
        [*fit_encoder, "--run_dir", encoder],
        [*fit_generator, "--run_dir", generator],
        ["test", "--from", generator],
        ["ids", "--from", encoder, "--config", paper / "ids.yaml", "--out", tmp_path / "ids"],
    ]
    words = json.dumps([[str(word) for word in command] for command in commands])
    with serve({ENCODER: tmp_path / "mpnet", T5: tmp_path / "flan"}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", RUN_ALL, words],
            env=os.environ | hub.environment(tmp_path / "cache"),
            cwd=CONFIGS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {f"{ENCODER}/model.safetensors", f"{T5}/model.safetensors"} <= set(hub.fetched)
    written = read_config(encoder / "config.yaml"), read_config(generator / "config.yaml")
    assert written[0]["model"]["init_args"]["tower"]["encoder"] == ENCODER
    assert written[1]["model"]["init_args"]["t5"]["pretrained"] == T5
    bundle = SemanticIdBundle.load(encoder / "semantic_ids", corpus_fingerprint=corpus.fingerprint)
    assert bundle.table.codebook_sizes == (256, 256)
    assert bundle.table.codes.equal(SemanticIdBundle.load(tmp_path / "ids").table.codes)
    figures = read_json(generator / "metrics.json")
    for task in TASKS:
        assert 0 <= figures[f"{task}/recall@30"] <= 1
    assert figures["decoding/valid_fraction"] == 1
