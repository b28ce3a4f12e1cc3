"""Language models that write text: a local one, or any OpenAI-compatible endpoint."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sidrec.errors import ConfigError


class Sampling(NamedTuple):
    """Sampling settings of a language model.

    Attributes:
        max_new_tokens: Limit of an answer's length, in tokens.
        temperature: Unitless; 0 takes the most likely token each time.
        seed: Seed of a local model; an endpoint receives it too.
        batch_size: Prompts answered at once.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    batch_size: int


@runtime_checkable
class LanguageModel(Protocol):
    """Language model that answers prompts.

    Attributes:
        name: Short name, shown as the source of what it wrote.
        fingerprint: Changes when another model answers; part of cache keys. Holds no secret.
    """

    name: str
    fingerprint: str

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Return one answer per prompt."""
        ...


class LocalModel:
    """Local transformers model, decoder-only or encoder-decoder, on the GPU where there is one.

    A model without a chat template continues the text ``1.``, so that plain language models
    write numbered lists too. No code from a model repository is run.

    Args:
        model: Hub name or folder.
        sampling: Sampling settings.
        revision: Commit, tag or branch on the hub.

    Raises:
        ConfigError: If it cannot be loaded.
    """

    def __init__(self, model: str, *, sampling: Sampling, revision: str | None = None) -> None:
        import torch

        self.name = Path(model).name
        self.fingerprint = _fingerprint_of(model, revision)
        self._sampling = sampling
        self._tokenizer, self._model = _load(model, revision)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self._model.to(self._device).eval()
        self._answers_apart = bool(self._model.config.is_encoder_decoder)
        self._chats = bool(getattr(self._tokenizer, "chat_template", None))

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Return one answer per prompt; the same prompts give the same answers."""
        answers: list[str] = []
        for start in range(0, len(prompts), self._sampling.batch_size):
            answers += self._batch(prompts[start : start + self._sampling.batch_size])
        return answers

    def _batch(self, prompts: Sequence[str]) -> list[str]:
        import torch

        tokens = self._tokenizer(
            [self._framed(prompt) for prompt in prompts],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self._max_prompt_tokens(),
            add_special_tokens=not self._chats,
        ).to(self._device)
        digest = hashlib.sha256("\0".join([str(self._sampling.seed), *prompts]).encode())
        how: dict[str, Any] = {"do_sample": False}
        if self._sampling.temperature > 0:
            how = {"do_sample": True, "temperature": self._sampling.temperature}
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(int.from_bytes(digest.digest()[:8], "little") >> 1)
            written = self._model.generate(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                max_new_tokens=self._sampling.max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **how,
            )
        if not self._answers_apart:
            written = written[:, tokens["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [self._opening() + text for text in texts]

    def _framed(self, prompt: str) -> str:
        if self._chats:
            message = [{"role": "user", "content": prompt}]
            framed: str = self._tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
            return framed
        opening = self._opening()
        return f"{prompt}\n{opening}" if opening else prompt

    def _opening(self) -> str:
        return "" if self._chats or self._answers_apart else "1."

    def _max_prompt_tokens(self) -> int:
        config = self._model.config
        limit = getattr(config, "max_position_embeddings", None) or 1 << 20
        limit = min(limit, self._tokenizer.model_max_length)
        room: int = limit if self._answers_apart else limit - self._sampling.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"{self.name} reads {limit} tokens, max_new_tokens "
                f"{self._sampling.max_new_tokens} leaves no tokens for a prompt; lower it."
            )
        return room


def _load(model: str, revision: str | None) -> tuple[Any, Any]:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    local = Path(model).is_dir() or not hub_is_reachable()
    how: dict[str, Any] = {
        "local_files_only": local,
        "revision": revision or "main",
        "trust_remote_code": False,
    }
    try:
        config = AutoConfig.from_pretrained(model, **how)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(
            model, padding_side="left", truncation_side="left", **how
        )
        network = kind.from_pretrained(model, dtype="auto", **how)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        name = model if revision is None else f"{model} at {revision}"
        raise ConfigError(
            f"The model hf:{name} cannot be loaded ({reason[:200]}); give "
            "the folder of a text-generation model, or its hub name on a machine that reaches "
            "the hub or has the model in its cache."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, network


def hub_is_reachable() -> bool:
    """Return whether the model hub answers, to avoid waiting for its many retries.

    Returns:
        ``False`` when there is no network within three seconds, or ``HF_HUB_OFFLINE`` is set.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=3.0)
    except requests.RequestException:
        return False
    return True


def _fingerprint_of(model: str, revision: str | None) -> str:
    """Return the hub name, or for a folder a hash of the names, sizes and times of its files."""
    folder = Path(model)
    if not folder.is_dir():
        return f"hf:{model}" if revision is None else f"hf:{model}@{revision}"
    files = sorted(file for file in folder.iterdir() if file.is_file())
    seen = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return "hf-folder:" + hashlib.sha256("\n".join(seen).encode()).hexdigest()
