"""Joint generator -> folder of transformers: model, and tokenizer that knows the codes."""

from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from sidrec.generator.model.code_space import CodeVocabulary
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.t5 import END, PAD, UNKNOWN
from sidrec.types import TASKS, Task


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
    load it. The tokenizer reads and writes Semantic IDs as text, ``<a_17><b_203><c_9>``.

    Args:
        model: Trained generator, adapters merged.
        folder: Folder to write into.
    """
    model.t5.save_pretrained(folder)
    names = code_names({task: model.space(task).vocabulary for task in TASKS})
    with_codes_as_tokens(model.embedder.tokenizer, names).save_pretrained(folder)


def with_codes_as_tokens(tokenizer: Tokenizer, names: Mapping[int, str]) -> Any:  # noqa: ANN401
    """Return a tokenizer of transformers whose vocabulary ends with the codes.

    Args:
        tokenizer: Tokenizer of the texts.
        names: Names of the codes by token id; the first one is right behind the texts' tokens.
    """
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_str(tokenizer.to_str())
    # lstrip: the blank between a prompt and the codes is no token
    own.add_tokens([AddedToken(name, normalized=False, lstrip=True) for name in names.values()])
    wrong = [name for token, name in names.items() if own.token_to_id(name) != token]
    if wrong:
        raise AssertionError(f"the tokenizer has another number for {wrong[0]}")
    end = own.token_to_id(END)
    if own.post_processor is None and end is not None:
        own.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, end)]
        )
    known = {
        f"{kind}_token": token
        for kind, token in (("pad", PAD), ("eos", END), ("unk", UNKNOWN))
        if own.token_to_id(token) is not None
    }
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=own, model_input_names=inputs, **known)


def missing_in_generate(model: GeneratorModel) -> list[str]:
    """Return what ``generate`` of transformers leaves out of the answers of ``sidrec retrieve``."""
    settings, lacks = model.embedder.settings, []
    if settings.text_input != "tokens":
        lacks.append("queries are read through the bi-encoder, whose states are not text tokens")
    if settings.history_input != "codes":
        lacks.append("items of a history are read as vectors, not as codes")
    if model.prior is not None:
        lacks.append("the exact prior over items, which weighs every code, is not in the model")
    if not model.t5.config.is_encoder_decoder:
        lacks.append("the positions of a causal model's prompt are made by sidrec")
    return lacks
