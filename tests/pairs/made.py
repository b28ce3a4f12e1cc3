"""A synthetic corpus and a tiny encoder, small enough for any test."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.sources.synthetic import SyntheticSettings, make_synthetic
from sidrec.corpus.store import Corpus

SIZES = SyntheticSettings(
    num_items=60,
    num_users=40,
    num_interactions=800,
    num_topics=6,
    zipf_exponent=0.8,
    queries_per_item=2,
    seed=3,
)
SETTINGS = BuildSettings(
    min_item_interactions=0,
    split="leave_last_out",
    temporal_fractions=(0.1, 0.1),
    test_query_fraction=0.2,
    valid_query_fraction=0.1,
    unknown_items="error",
)


def make_corpus(folder: Path) -> Corpus:
    raw, queries = make_synthetic(SIZES, folder.parent / "scratch")
    build_corpus(raw, queries, folder, SETTINGS)
    return Corpus.load(folder)


def make_encoder(folder: Path, corpus: Corpus, *, dropout: float = 0.1) -> Path:
    """Write a BERT of width 16 with random weights and a word tokenizer of the corpus."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = corpus.item_texts() + list(corpus.queries["text"])
    words.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    )
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=64,
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    return folder
