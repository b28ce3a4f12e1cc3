"""Queries written by a language model, cached on arrival so that no call repeats."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sidrec.console import say, track
from sidrec.corpus.queries.language_model import LanguageModel, LocalModel, Sampling
from sidrec.corpus.queries.llm_prompts import (
    ItemFacts,
    paraphrases_prompt,
    queries_prompt,
    read_list,
)
from sidrec.corpus.queries.title_match import normalize
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.errors import ConfigError, DataError


def load_language_model(
    spec: str, *, sampling: Sampling, revision: str | None = None
) -> LanguageModel:
    """Load the language model that ``spec`` names.

    Args:
        spec: ``hf:MODEL`` (a text-generation model of transformers, by hub name or folder), or
            ``openai:URL`` or ``openai:URL#MODEL`` (``URL/chat/completions`` is called; without
            MODEL the only one that the endpoint lists is taken).
        sampling: Sampling settings.
        revision: Commit, tag or branch of a model on the hub; None takes the newest.

    Raises:
        ConfigError: If ``spec`` has another form, there is no such model, or a revision is given
            for a folder or endpoint.
        SidrecError: If the endpoint or hub cannot be reached.
    """
    kind, _, rest = spec.partition(":")
    if revision is not None and (kind != "hf" or Path(rest).is_dir()):
        raise ConfigError(f"{spec} has no revisions, only a model on the hub has; leave it out.")
    if kind == "hf" and rest:
        return LocalModel(rest, sampling=sampling, revision=revision)
    if kind == "openai" and rest:
        from sidrec.corpus.queries.openai_endpoint import OpenAiEndpoint

        return OpenAiEndpoint(rest, sampling=sampling)
    raise ConfigError(
        f"write_queries is {spec!r}, expected hf:MODEL, openai:URL or openai:URL#MODEL."
    )


class _Written(NamedTuple):
    """Answers of a model for one item: queries and their paraphrases by number."""

    originals: dict[int, str]
    paraphrases: dict[int, str]


def write_queries(
    items: Sequence[ItemFacts],
    *,
    model: str,
    cache_folder: Path,
    num_queries: int,
    sampling: Sampling,
    revision: str | None = None,
) -> list[RawQuery]:
    """Write queries for every item, and a paraphrase of each, with a language model.

    Answers are cached per item under ``cache_folder``. A later call, also after an interruption,
    asks only for the missing items. Queries that name the item's title are left out.

    Args:
        items: The catalogue.
        model: ``hf:MODEL``, ``openai:URL`` or ``openai:URL#MODEL``.
        cache_folder: Folder of the cached answers, one file per model and settings.
        num_queries: Queries asked for per item, ``>= 1``; as many paraphrases.
        sampling: Sampling settings.
        revision: Revision of a model on the hub; each revision has its own answers.

    Returns:
        The queries in the order of the items, without a split; a query and its paraphrase share
        a group.

    Raises:
        ConfigError: If there is no such model, or ``num_queries`` is less than 1.
        SidrecError: If the endpoint stops answering; earlier answers stay in the cache.
        DataError: If the model wrote no usable query for any item.
    """
    if num_queries < 1:
        raise ConfigError(f"num_queries must be at least 1, got {num_queries}.")
    writer = load_language_model(model, sampling=sampling, revision=revision)
    settings = [writer.fingerprint, str(sampling.temperature), str(sampling.seed)]
    digest = hashlib.sha256("\0".join([*settings, str(sampling.max_new_tokens)]).encode())
    cache = _Cache(cache_folder / "written_queries" / f"{digest.hexdigest()[:16]}.jsonl")
    prompts = [queries_prompt(item, num_queries=num_queries) for item in items]
    missing = [place for place, prompt in enumerate(prompts) if cache.get(prompt) is None]
    if len(missing) < len(items):
        say(f"{len(items) - len(missing):,} of {len(items):,} items were written before")
    batches = [
        missing[start : start + sampling.batch_size]
        for start in range(0, len(missing), sampling.batch_size)
    ]
    for batch in track(batches, f"{writer.name} writes queries", total=len(batches)):
        asked = [(items[place], prompts[place]) for place in batch]
        for (_, prompt), answer in zip(asked, _ask(writer, asked, num_queries), strict=True):
            if answer.originals:  # an empty answer is asked for again the next time
                cache.put(prompt, answer)
    queries = [
        query
        for item, prompt in zip(items, prompts, strict=True)
        if (written := cache.get(prompt))
        for query in _as_queries(item, written, writer.name)
    ]
    _report(queries, items, writer.name)
    return queries


def _ask(
    writer: LanguageModel, asked: Sequence[tuple[ItemFacts, str]], num_queries: int
) -> list[_Written]:
    answers = writer.complete([prompt for _, prompt in asked])
    originals = [
        read_list(answer, title=item.title, limit=num_queries)
        for (item, _), answer in zip(asked, answers, strict=True)
    ]
    full = [place for place, found in enumerate(originals) if found]
    again = writer.complete([paraphrases_prompt(originals[place]) for place in full])
    paraphrases: list[dict[int, str]] = [{} for _ in asked]
    for place, answer in zip(full, again, strict=True):
        found = read_list(answer, title=asked[place][0].title, limit=num_queries)
        paraphrases[place] = {
            number: text
            for number, text in found.items()
            if number in originals[place] and normalize(text) != normalize(originals[place][number])
        }
    return [_Written(*pair) for pair in zip(originals, paraphrases, strict=True)]


def _as_queries(item: ItemFacts, written: _Written, source: str) -> list[RawQuery]:
    queries = []
    for number, text in sorted(written.originals.items()):
        group = f"written-{item.item_id}-{number}"
        queries.append(RawQuery(f"{group}-o", text, (item.item_id,), group, "", source))
        if paraphrase := written.paraphrases.get(number):
            queries.append(RawQuery(f"{group}-p", paraphrase, (item.item_id,), group, "", source))
    return queries


def _report(queries: list[RawQuery], items: Sequence[ItemFacts], name: str) -> None:
    served = len({query.item_ids for query in queries})
    say(f"{name}: {len(queries):,} queries for {served:,} of {len(items):,} items")
    if items and not queries:
        raise DataError(
            f"{name} wrote no usable query for any of {len(items):,} items; take a model that "
            "follows instructions, or raise max_new_tokens."
        )


class _Cache:
    """Cache of answers by prompt in an append-only JSONL file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[str, _Written] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                self._read(line)

    def get(self, prompt: str) -> _Written | None:
        return self._written.get(_key(prompt))

    def put(self, prompt: str, written: _Written) -> None:
        self._written[_key(prompt)] = written
        row = {"key": _key(prompt), **written._asdict()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            # The newline comes first: it ends a line that an interrupted run left incomplete.
            stream.write(b"\n" + json.dumps(row, ensure_ascii=False).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            written = _Written(_numbers(row["originals"]), _numbers(row["paraphrases"]))
            self._written[row["key"]] = written
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # an incomplete line: its item is written again


def _numbers(texts: dict[str, Any]) -> dict[int, str]:
    return {int(number): str(text) for number, text in texts.items()}


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
