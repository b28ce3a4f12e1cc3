"""Client of OpenAI-compatible endpoints: chat completions with retries."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from sidrec.corpus.queries.language_model import Sampling
from sidrec.errors import ConfigError, SidrecError

KEY_VARIABLE = "OPENAI_API_KEY"

_ATTEMPTS = 5
_TIMEOUT_S = 120.0
_MAX_WAIT_S = 60.0
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


class OpenAiEndpoint:
    """Language model behind ``URL/chat/completions``.

    The key is read from ``OPENAI_API_KEY`` when a request is sent, goes only to this endpoint
    (redirects are not followed), and is written nowhere.

    Args:
        address: ``URL`` or ``URL#MODEL``, e.g. ``http://localhost:8000/v1#qwen``.
        sampling: Sampling settings; ``batch_size`` HTTP requests run at once.

    Raises:
        ConfigError: If the address is invalid, holds a password, or names no single model.
        SidrecError: If the endpoint cannot be reached.
    """

    def __init__(self, address: str, *, sampling: Sampling) -> None:
        self._url, _, model = address.partition("#")
        self._url = self._url.rstrip("/")
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"openai:{address}: expected openai:http(s)://HOST/v1#MODEL.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"The address of the endpoint on {parts.hostname} carries a login or a query "
                f"string; put the key into the environment variable {KEY_VARIABLE}."
            )
        self._sampling = sampling
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._answered = False
        self.name = model or self._only_model()
        self.fingerprint = f"openai:{self._url}#{self.name}"

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Return one answer per prompt; several HTTP requests run at once.

        Raises:
            SidrecError: If the endpoint gives no valid answer after several attempts.
        """
        pool = ThreadPoolExecutor(max_workers=max(1, min(self._sampling.batch_size, len(prompts))))
        try:
            return list(pool.map(self._answer, prompts))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, prompt: str) -> str:
        reply = self._ask(
            "/chat/completions",
            {
                "model": self.name,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": self._sampling.max_new_tokens,
                "temperature": self._sampling.temperature,
                "seed": self._sampling.seed,
            },
        )
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise SidrecError(
                f"{self._url} answered without choices[0].message.content; give the "
                "address of an OpenAI-compatible endpoint."
            ) from None
        return content if isinstance(content, str) else ""

    def _only_model(self) -> str:
        reply = self._ask("/models", None)
        try:
            names = [str(model["id"]) for model in reply["data"]]
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            raise ConfigError(
                f"{self._url} offers {', '.join(names[:5]) or 'no list of models'}; name one: "
                f"openai:{self._url}#MODEL."
            )
        return names[0]

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:  # noqa: ANN401
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = self._send(path, body)
            except urllib.error.HTTPError as error:
                wait_s = self._wait_after(error, attempt)
            except ValueError:
                raise SidrecError(
                    f"{self._url}{path} did not answer with JSON; check the address."
                ) from None
            except (OSError, http.client.HTTPException) as error:  # refused, timed out, interrupted
                if attempt == _ATTEMPTS or not self._answered:
                    raise SidrecError(
                        f"{self._url} cannot be reached ({_reason(error)}); check the address "
                        "and the network, then run again to resume."
                    ) from None
                wait_s = 2.0**attempt
            else:
                self._answered = True
                return answer
            time.sleep(min(wait_s, _MAX_WAIT_S))
        raise AssertionError  # the last attempt returns or raises

    def _send(self, path: str, body: dict[str, Any] | None) -> Any:  # noqa: ANN401
        headers = {"Content-Type": "application/json", "User-Agent": "sidrec"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key.strip()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)  # noqa: S310
        with self._opener.open(request, timeout=_TIMEOUT_S) as response:
            return json.loads(response.read())

    def _wait_after(self, error: urllib.error.HTTPError, attempt: int) -> float:
        """Return the wait before the next attempt, in seconds, or raise."""
        with error:
            code, asked = error.code, error.headers.get("Retry-After", "")
        if code in (401, 403):
            raise ConfigError(
                f"{self._url} refused the request ({code}); set {KEY_VARIABLE} to a valid key."
            )
        if code not in _AGAIN:
            raise ConfigError(
                f"{self._url} answered {code} for model {getattr(self, 'name', '?')}; check the "
                "address (it often ends in /v1) and the model's name."
            )
        if attempt == _ATTEMPTS:
            raise SidrecError(
                f"{self._url} answered {code} {_ATTEMPTS} times; run the command again later "
                "to resume."
            )
        return float(asked) if asked.isdigit() else 2.0**attempt


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Follow no redirect: it would send the key to another host."""


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error or type(error).__name__)
