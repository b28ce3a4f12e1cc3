"""Token stores: texts tokenized once on disk, so a batch needs only gathering and padding."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64

from sidrec.console import track
from sidrec.errors import DataError
from sidrec.files import atomic_folder, read_json, write_json
from sidrec.types import TextTokens

_TEXTS_AT_ONCE = 4_096


def token_rows(
    tokenizer: Any,  # noqa: ANN401
    texts: list[str],
    *,
    max_tokens: int,
    prompt: str,
) -> list[list[int]]:
    """Return the token ids of texts, each behind the prompt.

    Args:
        tokenizer: A transformers tokenizer.
        texts: Texts without prompt.
        max_tokens: Longer texts are cut; special tokens count, those of the prompt do not.
        prompt: Text before every text.
    """
    limit = max_tokens + num_prompt_tokens(tokenizer, prompt)
    behind = [prompt + text for text in texts] if prompt else texts
    rows = tokenizer(behind, truncation=True, max_length=limit, verbose=False)
    ids: list[list[int]] = rows["input_ids"]
    return ids


def num_prompt_tokens(tokenizer: Any, prompt: str) -> int:  # noqa: ANN401
    """Return the number of tokens that a prompt takes."""
    return len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Token ids of many texts, memory-mapped; text ``i`` is ``ids[starts[i] : starts[i + 1]]``.

    Pickling keeps only the folder, so a loader's worker maps the files itself.

    Attributes:
        folder: Folder of the files.
        ids: Token ids of all texts, one after the other, special tokens included.
        starts: First place of each text, and the end of the last one.
        padding: Token id that fills short texts.
    """

    folder: Path
    ids: Int32[np.ndarray, " token"]
    starts: Int64[np.ndarray, " text_plus_1"]
    padding: int

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Open a token store that ``tokenize_once`` wrote, memory-mapped.

        Raises:
            DataError: If its files do not fit together.
        """
        facts = read_json(folder / "tokens.json")
        starts = np.load(folder / "starts.npy", mmap_mode="r")
        num_tokens = (folder / "ids.bin").stat().st_size // 4
        if len(starts) != facts["num_texts"] + 1 or num_tokens != starts[-1]:
            raise DataError(f"{folder} is damaged; delete it and run the same command again.")
        ids = (
            np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
            if num_tokens
            else np.empty(0, np.int32)
        )
        return cls(folder, ids, starts, facts["padding"])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.folder,)

    def gather(self, rows: Int64[np.ndarray, " text"]) -> TextTokens:
        """Return the tokens of some texts, padded to the longest of them."""
        first = np.asarray(self.starts[rows])
        lengths = np.asarray(self.starts[rows + 1]) - first
        offsets = np.arange(max(1, int(lengths.max()) if len(rows) else 1))
        mask = offsets < lengths[:, None]
        places = np.where(mask, first[:, None] + offsets, 0)
        ids = np.where(mask, self.ids[places], self.padding).astype(np.int64)
        return TextTokens(torch.from_numpy(ids), torch.from_numpy(mask), tuple(lengths.tolist()))


def tokenize_once(
    texts: Iterable[str],
    *,
    num_texts: int,
    tokenizer: Any,  # noqa: ANN401
    max_tokens: int,
    prompt: str,
    what: str,
    corpus_fingerprint: str,
    cache: Path,
) -> TokenStore:
    """Return the tokens of ``texts``, from ``cache`` if an earlier call wrote them.

    Several processes may call this together: each writes its own copy, and the copy of the first to
    finish remains.

    Args:
        texts: Read once, in order, only when the cache holds nothing.
        num_texts: Number of ``texts``.
        tokenizer: A transformers tokenizer.
        max_tokens: Longer texts are cut, see ``token_rows``.
        prompt: Text before every text; part of the cache's key.
        what: ``items`` or ``train queries``: part of the cache's key, and shown to the user.
        corpus_fingerprint: Part of the cache's key.
        cache: Folder of all token stores.
    """
    key = _key(tokenizer_fingerprint(tokenizer), str(max_tokens), prompt, what, corpus_fingerprint)
    folder = cache / f"{what.replace(' ', '-')}-{key}"
    if not (folder / "tokens.json").exists():
        with atomic_folder(folder, first_wins=True) as temporary:
            _write(temporary, texts, num_texts, tokenizer, max_tokens, prompt, what)
    return TokenStore.open(folder)


def tokenizer_fingerprint(tokenizer: Any) -> str:  # noqa: ANN401
    """Return a hash that changes whenever the tokenizer would split a text differently."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _key(type(tokenizer).__name__, repr(sorted(tokenizer.get_vocab().items())))
    no_limits = type(backend).from_str(backend.to_str())  # a copy: truncation is set at each call
    no_limits.no_truncation()
    no_limits.no_padding()
    return _key(no_limits.to_str())


def _write(
    folder: Path,
    texts: Iterable[str],
    num_texts: int,
    tokenizer: Any,  # noqa: ANN401
    max_tokens: int,
    prompt: str,
    what: str,
) -> None:
    starts = np.zeros(num_texts + 1, dtype=np.int64)
    done = 0
    with (folder / "ids.bin").open("wb") as stream:
        for chunk in track(
            _chunks(texts), f"Tokenizing {what}", total=-(-num_texts // _TEXTS_AT_ONCE)
        ):
            for row in token_rows(tokenizer, chunk, max_tokens=max_tokens, prompt=prompt):
                stream.write(np.asarray(row, dtype=np.int32).tobytes())
                starts[done + 1] = starts[done] + len(row)
                done += 1
    if done != num_texts:
        raise DataError(f"Expected {num_texts} {what}, read {done}; run `sidrec prepare` again.")
    np.save(folder / "starts.npy", starts)
    padding = tokenizer.pad_token_id
    facts = {"num_texts": num_texts, "padding": 0 if padding is None else int(padding)}
    write_json(
        folder / "tokens.json", facts | {"max_tokens": max_tokens, "prompt": prompt, "what": what}
    )


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _TEXTS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _key(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]
