"""Asks a judge that `reasrm serve` serves."""

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.ranking import Method
from components.core.records import explain, parse_strict
from components.core.redact import redact

Prompt = str | Sequence[dict[str, str]]
"""A conversation that ends with a user's turn: its text, or its messages with role and content."""

PASSING = {429, 500, 502, 503, 504}
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
BUSY, BUSY_WAIT_SECONDS = 429, 5.0
"""A judge that is busy has room again at any moment: whoever waits for long finds it taken by others."""


@dataclass
class JudgeClient:
    """A served judge. `token_env` names the variable that holds its token; `patience_seconds` bounds all attempts."""

    url: str
    token_env: str = ""
    call_seconds: float = 600.0
    patience_seconds: float = 900.0
    _headers: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InvalidInput(f"{self.url!r} is no address of a judge; give http://host:port")
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if self.token_env:
            token = os.environ.get(self.token_env, "").strip()
            if not token:
                raise InvalidInput(f"{self.token_env} is not set; put the judge's token into it")
            self._headers["authorization"] = f"Bearer {token}"

    def compare(self, prompt: Prompt, response_a: str, response_b: str, votes: int | None = None) -> dict[str, Any]:
        """Return the answer of /compare. Raises as `post` does."""
        return self.post(
            "/compare", _conversation(prompt, votes) | {"response_a": response_a, "response_b": response_b}
        )

    def rank(
        self, prompt: Prompt, answers: Sequence[str], method: Method = "round_robin", votes: int | None = None
    ) -> dict[str, Any]:
        """Return the answer of /rank. Raises as `post` does."""
        return self.post("/rank", _conversation(prompt, votes) | {"answers": list(answers), "method": method})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call the judge, again while it is busy or away.

        Raises:
            InvalidInput: it refuses the request or the token.
            Transient: it did not answer for `patience_seconds`.
            ReasrmError: what answers is no judge.
        """
        wait, began = FIRST_WAIT_SECONDS, time.monotonic()
        data = json.dumps(body, ensure_ascii=False).encode()
        while True:
            asked_to_wait, longest, reason = 0.0, LONGEST_WAIT_SECONDS, ""
            request = urllib.request.Request(self.url.rstrip("/") + path, data, self._headers)  # noqa: S310 - http(s)
            try:
                with urllib.request.urlopen(request, timeout=self.call_seconds) as answer:  # noqa: S310
                    return self._read(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"HTTP {error.code}: {_words(error.read(2000))}"
                if error.code not in PASSING:
                    raise InvalidInput(f"the judge at {redact(self.url)} refuses {path}: {reason}") from error
                asked_to_wait = _seconds(error.headers.get("retry-after"))
                longest = BUSY_WAIT_SECONDS if error.code == BUSY else longest
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            wait = min(max(wait, asked_to_wait), longest)
            pause = random.uniform(0.5, 1) * wait  # noqa: S311 - callers who were refused together must not come together
            if time.monotonic() - began + pause > self.patience_seconds:
                raise Transient(
                    f"the judge at {redact(self.url)} gave no answer to {path} within {self.patience_seconds:.0f} s; "
                    f"the last attempt: {reason}. Look at its /ready and its log, then run again"
                )
            time.sleep(pause)
            wait *= 2

    def _read(self, body: bytes) -> dict[str, Any]:
        try:
            value = parse_strict(body, len(body))  # many long judgments are more than a row may have
        except ValueError as error:
            raise ReasrmError(f"what answers at {redact(self.url)} is no judge: {explain(error)}") from error
        if not isinstance(value, dict):
            raise ReasrmError(f"what answers at {redact(self.url)} is no judge: not an object")
        return value


def _conversation(prompt: Prompt, votes: int | None) -> dict[str, Any]:
    turns = [] if isinstance(prompt, str) else [{"role": m["role"], "content": m["content"]} for m in prompt]
    conversation = prompt if isinstance(prompt, str) else turns
    return {"conversation": conversation} | ({} if votes is None else {"votes": votes})


def _words(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace")[:200]


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdigit() else 0.0
