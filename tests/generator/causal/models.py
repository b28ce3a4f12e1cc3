"""Tiny causal language models with random weights, and a generator on one of them."""

import torch

from sidrec.generator.model.causal.causal_generator import CausalGenerator
from sidrec.generator.model.causal.causal_lm import causal_lm_from_config
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary
from sidrec.generator.model.t5 import train_tokenizer
from sidrec.types import TASKS, SemanticIdTable
from tests.generator.catalogues import FIRST_CODE
from tests.generator.made import DIM, SIZES, TEXTS, input_settings, random_codes

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.4,
}
FAMILIES = ["qwen3", "llama"]


def tiny_lm(family, *, sizes=SIZES, first_code=FIRST_CODE, seed=0, **changes):
    """A model in evaluation mode whose tokens beyond ``first_code`` are the codes."""
    torch.manual_seed(seed)
    shape = SHAPE | {"model_type": family} | changes
    vocabulary = CodeVocabulary(first_code, tuple(sizes))
    return causal_lm_from_config(shape, vocabulary=vocabulary).eval()


def causal_generator(*, family="qwen3", num_items=20, tower=None, dim=DIM, seed=0, **changes):
    """A generator with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    options = {k: changes.pop(k) for k in ("input_dropout", "all_positions") if k in changes}
    settings = input_settings(**changes)
    prompts = [settings.search_prompt, settings.recommendation_prompt]
    tokenizer = train_tokenizer(prompts + TEXTS, vocabulary_size=60)
    vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), SIZES)
    lm = tiny_lm(family, first_code=vocabulary.first_token, seed=seed)
    table = SemanticIdTable(random_codes(num_items), SIZES)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, dim), dim=1)
    popularity = torch.arange(num_items)
    spaces = dict.fromkeys(TASKS, CodeSpace(vocabulary, table, popularity))
    made = (lm, settings, tokenizer, spaces, vectors, popularity, tower)
    return CausalGenerator(*made, **options).eval()
