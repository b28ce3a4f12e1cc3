"""What `generator_speed.py` trains and on what, for sidrec and for a plain transformers loop."""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor

from sidrec.generator.decoding.beam_search import over_children
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.generator_settings import GeneratorTaskSettings, HistorySettings
from sidrec.generator.model.request_embedder import HistoryInput, InputSettings
from sidrec.generator.model.t5 import t5_from_config, train_tokenizer
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.types import TASKS, SemanticIdTable

SIZES = (256, 256, 256)
TIGER = {
    "d_model": 128,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 6,
    "dropout_rate": 0.1,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": False,
}
ITEM_DIM = 384  # of MiniLM's embeddings


class PlainBatch(NamedTuple):
    """What a transformers loop reads: both tasks, padded to the longest input there is."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def data_of(arguments: argparse.Namespace) -> GeneratorDataModule:
    """Both tasks by halves, lengths sorted in pools."""
    return GeneratorDataModule(
        corpus=str(arguments.corpus),
        tasks=GeneratorTaskSettings(indexing_share=0.0),
        histories=HistorySettings(max_history_items=arguments.history, targets_per_user=None),
        batch_size=arguments.batch,
        bucket_batches=arguments.pool_batches,
        seed=1,
    )


def model_of(
    data: GeneratorDataModule, arguments: argparse.Namespace, *, history_input: HistoryInput
) -> GeneratorModel:
    """A generator with random weights and random distinct Semantic IDs."""
    torch.manual_seed(0)
    num_items = data.corpus.num_items
    texts = [*data.corpus.item_texts(), *data.train_queries()]
    tokenizer = train_tokenizer(texts, vocabulary_size=4_000)
    vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), SIZES)
    number = torch.randperm(SIZES[0] * SIZES[1] * SIZES[2])[:num_items]
    codes = torch.stack([number // 65_536, number // 256 % 256, number % 256], dim=1)
    popularity = torch.zeros(num_items, dtype=torch.long)
    inputs = InputSettings(
        search_prompt="search: {query}",
        recommendation_prompt="recommend: {history}",
        text_input="tokens",
        history_input=history_input,
        max_query_tokens=arguments.query_tokens,
        max_history_items=arguments.history,
        query_token_dropout=0.0,
    )
    return GeneratorModel(
        t5_from_config(TIGER, vocabulary=vocabulary),
        inputs,
        tokenizer,
        dict.fromkeys(TASKS, CodeSpace(vocabulary, SemanticIdTable(codes, SIZES), popularity)),
        torch.randn(num_items, ITEM_DIM),
        popularity,
        None,
    )


def inputs_of(model: GeneratorModel, batch: GeneratorBatch) -> list[list[int]]:
    """Return each request's tokens, without padding: the same that sidrec reads."""
    embedder, settings = model.embedder, model.embedder.settings
    cut = embedder.tokenizer.encode
    prompt = cut(settings.around(batch.task)[0].strip(), add_special_tokens=False).ids
    if batch.task == "search":
        middles = [
            cut(text, add_special_tokens=False).ids[: settings.max_query_tokens]
            for text in batch.texts
        ]
    else:
        space = model.space("recommendation")
        middles = [space.tokens_of(row[row >= 0]).flatten().tolist() for row in batch.history]
    return [[*prompt, *middle, 1] for middle in middles]


def no_history(batches: list[GeneratorBatch]) -> GeneratorBatch:
    """Return a recommendation batch whose histories are empty: its prompt alone."""
    batch = next(one for one in batches if one.task == "recommendation")
    return batch._replace(history=torch.full_like(batch.history, -1))


def padded(model: GeneratorModel, batches: list[GeneratorBatch], *, width: int) -> PlainBatch:
    """Return all examples as a transformers loop reads them, all of one width."""
    rows = [row for batch in batches for row in inputs_of(model, batch)]
    targets = torch.cat([batch.target for batch in batches])
    return PlainBatch(
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        model.space("search").tokens_of(targets),
    )


@torch.no_grad()
def same_function(model: GeneratorModel, batch: GeneratorBatch, *, width: int) -> float:
    """Return the largest difference between sidrec's losses and those from T5's own forward."""
    model.eval()
    ours = model(batch, label_smoothing=0.0)
    space = model.space(batch.task)
    codes, theirs = space.codes[batch.target], []
    ids, mask, labels = padded(model, [batch], width=width)
    logits = model.t5(input_ids=ids, attention_mask=mask, labels=labels).logits
    low = codes.new_zeros((len(codes), 1), dtype=torch.int32)
    high = low + space.trie.num_items
    even = torch.arange(space.trie.num_items + 1).double().expand(len(codes), -1)
    for level, tokens in enumerate(space.vocabulary.level_token_ids()):
        bounds = space.trie.child_bounds(low, high, level=level)
        code = codes[:, level, None]
        own = over_children(logits[:, level, None, tokens], bounds, even)
        theirs.append(-own[:, 0].gather(1, code).mean())
        low, high = bounds[:, 0].gather(1, code), bounds[:, 0].gather(1, code + 1)
    model.train()
    return float((ours - torch.stack(theirs)).abs().max())
