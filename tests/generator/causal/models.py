"""Tiny causal language models with random weights, and a generator on one of them."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from sidrec.generator.model.causal.causal_generator import CausalGenerator
from sidrec.generator.model.causal.causal_lm import causal_lm_from_config, causal_lm_from_hub
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary
from sidrec.generator.model.t5 import load_tokenizer_of, train_tokenizer
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
SPARE = 9  # rows of a stored model behind its tokens
BEGIN, END = "<|begin|>", "<|end|>"


def store_lm(folder, family, texts=TEXTS, **changes):
    """Write a model and its tokenizer as hubs give them; return both.

    The tokenizer reads bytes, puts a token before each text, and has none that pads; ``generate``
    draws and punishes repetition.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[BEGIN, "$A"], special_tokens=[(BEGIN, 0)]
    )
    again = Tokenizer.from_str(tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=again, eos_token=END).save_pretrained(folder)
    words = tokenizer.get_vocab_size()
    own = {"vocab_size": words + SPARE, "eos_token_id": [1, 2], "pad_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **(SHAPE | changes), **own)
    )
    model.generation_config = GenerationConfig(do_sample=True, top_k=3, repetition_penalty=1.5)
    model.save_pretrained(folder)
    return model, tokenizer


def tiny_lm(family, *, sizes=SIZES, first_code=FIRST_CODE, seed=0, **changes):
    """A model in evaluation mode whose tokens beyond ``first_code`` are the codes."""
    torch.manual_seed(seed)
    shape = SHAPE | {"model_type": family} | changes
    vocabulary = CodeVocabulary(first_code, tuple(sizes))
    return causal_lm_from_config(shape, vocabulary=vocabulary).eval()


def causal_generator(
    *, family="qwen3", stored=None, num_items=20, tower=None, dim=DIM, seed=0, **changes
):
    """A generator with random weights, or those of a stored model, in evaluation mode."""
    torch.manual_seed(seed)
    options = {k: changes.pop(k) for k in ("input_dropout", "all_positions") if k in changes}
    settings = input_settings(**changes)
    prompts = [settings.search_prompt, settings.recommendation_prompt]
    if stored is None:
        tokenizer = train_tokenizer(prompts + TEXTS, vocabulary_size=60)
        vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), SIZES)
        lm = tiny_lm(family, first_code=vocabulary.first_token, seed=seed)
    else:
        tokenizer = load_tokenizer_of(str(stored), revision=None)
        vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), SIZES)
        lm = causal_lm_from_hub(str(stored), revision=None, vocabulary=vocabulary)
    table = SemanticIdTable(random_codes(num_items), SIZES)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, dim), dim=1)
    popularity = torch.arange(num_items)
    spaces = dict.fromkeys(TASKS, CodeSpace(vocabulary, table, popularity))
    made = (lm, settings, tokenizer, spaces, vectors, popularity, tower)
    return CausalGenerator(*made, **options).eval()
