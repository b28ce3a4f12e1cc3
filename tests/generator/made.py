"""A bundle of random vectors for a small corpus, and tiny generators that read it."""

import torch

from sidrec.generator.model.batch import batch_of_requests
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary, vocabularies_of
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.generator.model.t5 import t5_from_config, train_tokenizer
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import TASKS, ItemEmbeddings, Request, SemanticIdTable

SIZES = (4, 3, 5)  # levels that differ, so that nobody can mix them up
DIM = 16
T5 = {
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
    "initializer_factor": 0.7,
}
TEXTS = ["a heist film in paris", "space opera", "slow drama by the sea with rain", "search for"]


def random_codes(num_items, *, seed=0):
    """Distinct Semantic IDs in random order."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.randperm(SIZES[0] * SIZES[1] * SIZES[2], generator=generator)[:num_items]
    return torch.stack([number // 15, number // 5 % 3, number % 5], dim=1)


def make_bundle(corpus, *, encoder_hash="none", seed=0):
    """Semantic IDs of a corpus of at most 60 items."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(corpus.num_items, DIM, generator=generator)
    return SemanticIdBundle(
        table=SemanticIdTable(random_codes(corpus.num_items, seed=seed), SIZES),
        embeddings=ItemEmbeddings(
            vectors / vectors.norm(dim=1, keepdim=True), encoder_hash, corpus.fingerprint
        ),
        item_ids=corpus.item_ids(),
        titles=corpus.item_titles(),
        codebooks={},
        quantizer={"name": "random"},
        policy={"name": "none"},
        source={},
        quality={"ids/collision_rate": 0.0},
    )


def input_settings(**changes):
    return InputSettings(
        **{
            "search_prompt": "search: {query} please",
            "recommendation_prompt": "after {history} comes",
            "text_input": "tokens",
            "history_input": "codes",
            "max_query_tokens": 6,
            "max_history_items": 4,
            "query_token_dropout": 0.0,
            **changes,
        }
    )


def tiny_generator(*, num_items=20, tower=None, dim=DIM, t5=None, seed=0, **inputs):
    """A generator with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    settings = input_settings(**inputs)
    prompts = [settings.search_prompt, settings.recommendation_prompt]
    tokenizer = train_tokenizer(prompts + TEXTS, vocabulary_size=60)
    vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), SIZES)
    model = t5_from_config(T5 | (t5 or {}), vocabulary=vocabulary)
    table = SemanticIdTable(random_codes(num_items), SIZES)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, dim), dim=1)
    popularity = torch.arange(num_items)
    spaces = dict.fromkeys(TASKS, CodeSpace(vocabulary, table, popularity))
    return GeneratorModel(model, settings, tokenizer, spaces, vectors, popularity, tower).eval()


def generator_of_own_ids(*, num_items=20, num_shared_levels=0, seed=0):
    """A generator in which each task has Semantic IDs of its own, but for the shared levels."""
    torch.manual_seed(seed)
    settings = input_settings()
    prompts = [settings.search_prompt, settings.recommendation_prompt]
    tokenizer = train_tokenizer(prompts + TEXTS, vocabulary_size=60)
    sizes = {"search": SIZES, "recommendation": (SIZES[0], 5, 6)}
    codes = {"search": random_codes(num_items)}
    last = torch.arange(num_items)
    own = torch.stack([last % 4, last // 4 % 5, last % 6], dim=1)
    own[:, :num_shared_levels] = codes["search"][:, :num_shared_levels]
    codes["recommendation"] = own
    vocabularies = vocabularies_of(
        tokenizer.get_vocab_size(), sizes, num_shared_levels=num_shared_levels
    )
    model = t5_from_config(T5, vocabulary=vocabularies["recommendation"])
    popularity = torch.arange(num_items)
    spaces = {
        task: CodeSpace(vocabularies[task], SemanticIdTable(codes[task], sizes[task]), popularity)
        for task in TASKS
    }
    vectors = torch.nn.functional.normalize(torch.randn(num_items, DIM), dim=1)
    return GeneratorModel(model, settings, tokenizer, spaces, vectors, popularity, None).eval()


def searches(*queries, answers=None):
    """A batch of search requests."""
    answers = answers or [0] * len(queries)
    requests = [
        Request(str(row), "search", query, (), (answer,))
        for row, (query, answer) in enumerate(zip(queries, answers, strict=True))
    ]
    return batch_of_requests(
        requests,
        task="search",
        request_rows=range(len(requests)),
        max_history_items=4,
        exclude_history=True,
    )


def histories(*rows, answers=None):
    """A batch of recommendation requests."""
    answers = answers or [0] * len(rows)
    requests = [
        Request(str(row), "recommendation", "", tuple(history), (answer,))
        for row, (history, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    return batch_of_requests(
        requests,
        task="recommendation",
        request_rows=range(len(requests)),
        max_history_items=4,
        exclude_history=True,
    )
