"""Joint generator -> folder of transformers: model, and tokenizer that knows the codes."""

from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, processors

from sidrec.generator.model.batch import batch_of_requests
from sidrec.generator.model.code_space import CodeVocabulary
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.t5 import UNKNOWN
from sidrec.types import TASKS, Request, Task

_PROBE = "a b"


def code_names(vocabularies: Mapping[Task, CodeVocabulary]) -> dict[int, str]:
    """Return the name of each code's token, by token id, ascending.

    A name has the level as a letter and the code as a number. Levels that only recommendation has
    begin with ``r``.

    >>> both = dict.fromkeys(TASKS, CodeVocabulary(100, (2, 1)))
    >>> code_names(both)
    {100: '<a_0>', 101: '<a_1>', 102: '<b_0>'}
    """
    names: dict[int, str] = {}
    for task in TASKS:
        own = vocabularies[task]
        levels = zip(ascii_lowercase, own.level_starts, own.codebook_sizes, strict=False)
        for letter, start, size in levels:
            prefix = letter if task == TASKS[0] else f"r{letter}"
            for code in range(size):
                names.setdefault(start + code, f"<{prefix}_{code}>")
    return dict(sorted(names.items()))


def write_generator_folder(model: GeneratorModel, folder: Path) -> None:
    """Write the model of a joint generator and its tokenizer as a folder of transformers.

    ``AutoModelForSeq2SeqLM`` (``AutoModelForCausalLM`` for a causal model) and ``AutoTokenizer``
    load it. The tokenizer reads and writes Semantic IDs as text, ``<a_17><b_203><c_9>``, and ends
    each prompt as sidrec does. ``generate`` has no sampling or penalties of a pretrained model.

    Args:
        model: Trained generator, adapters merged.
        folder: Folder to write into.
    """
    from transformers import GenerationConfig

    config, end = model.t5.config, model.embedder.end_token
    pad = end if config.pad_token_id is None else config.pad_token_id
    start = config.decoder_start_token_id if config.is_encoder_decoder else None
    model.t5.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=pad, decoder_start_token_id=start
    )
    model.t5.save_pretrained(folder)
    names = code_names({task: model.space(task).vocabulary for task in TASKS})
    with_codes_as_tokens(
        model.embedder.tokenizer,
        names,
        end=end,
        pad=pad,
        padding_side="right" if config.is_encoder_decoder else "left",
    ).save_pretrained(folder)


def with_codes_as_tokens(
    tokenizer: Tokenizer, names: Mapping[int, str], *, end: int, pad: int, padding_side: str
) -> Any:  # noqa: ANN401
    """Return a tokenizer of transformers whose vocabulary ends with the codes.

    Args:
        tokenizer: Tokenizer of the texts.
        names: Names of the codes by token id; the first one is right behind the texts' tokens.
        end: Token that ends each text.
        pad: Token that pads a batch.
        padding_side: ``left`` or ``right``.
    """
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_str(tokenizer.to_str())
    # lstrip: the blank between a prompt and the codes is no token
    own.add_tokens([AddedToken(name, normalized=False, lstrip=True) for name in names.values()])
    wrong = [name for token, name in names.items() if own.token_to_id(name) != token]
    if wrong:
        raise AssertionError(f"the tokenizer has another number for {wrong[0]}")
    ending = own.id_to_token(end)
    own.post_processor = processors.TemplateProcessing(
        single=["$A", ending], special_tokens=[(ending, end)]
    )
    known = {"unk_token": UNKNOWN} if own.token_to_id(UNKNOWN) is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        model_input_names=["input_ids", "attention_mask"],
        padding_side=padding_side,
        eos_token=ending,
        pad_token=own.id_to_token(pad),
        **known,
    )


def missing_in_generate(model: GeneratorModel, folder: Path) -> list[str]:
    """Return what ``generate`` of transformers leaves out of the answers of ``sidrec retrieve``.

    Args:
        model: Generator in evaluation mode.
        folder: Its folder, from ``write_generator_folder``.
    """
    settings, lacks = model.embedder.settings, []
    if settings.text_input != "tokens":
        lacks.append("queries are read through the bi-encoder, whose states are not text tokens")
    if settings.history_input != "codes":
        lacks.append("items of a history are read as vectors, not as codes")
    if model.prior is not None:
        lacks.append("the exact prior over items, which weighs every code, is not in the model")
    if not lacks and not _reads_alike(model, folder):
        lacks.append("`AutoTokenizer` splits a prompt into other tokens than sidrec")
    return lacks


def _reads_alike(model: GeneratorModel, folder: Path) -> bool:
    """Return whether the tokenizer of the folder gives the tokens that sidrec reads.

    Some families have a class of their own that ``AutoTokenizer`` takes whatever the folder says;
    and sidrec reads a prompt in parts, which a tokenizer can split otherwise than the whole.
    """
    from transformers import AutoTokenizer

    request = Request("probe", "search", _PROBE, (), ())
    batch = batch_of_requests(
        [request], task="search", request_rows=[0], max_history_items=1, exclude_history=False
    )
    text = model.embedder.settings.search_prompt.format(query=_PROBE)
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model.t5.get_input_embeddings()(tokens.to(model.popularity.device))
        found = model.embedder(batch).positions
    return torch.equal(found, expected)
