"""Teachers: whoever answers a judge prompt. The only file that calls a language model over HTTP.

A row ends as a Reply or as a Failure with its reason, never as silence. What concerns one row is a Failure; what
concerns all of them (a wrong key, an endpoint that is down) is raised.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx
import tenacity

from components.adapters.sources import local_copy, open_lines
from components.core.errors import InvalidInput, Transient
from components.core.records import BadRecord, explain, parse_strict, read_rows
from components.core.redact import redact
from components.core.schema import Message, Trace
from components.core.teachers import CallLimits, EndpointTeacher, RecordedTeacher

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
FIRST_WAIT_SECONDS = 0.5
MAX_ANSWER_BYTES = 4 * 2**20
REFUSED_FOR_ALL = {401, 403, 404}
WORTH_ANOTHER_TRY = {408, 409, 425, 429}


@dataclass(frozen=True)
class Request:
    """One prompt; `temperature` None leaves it to the endpoint."""

    key: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = None


@dataclass(frozen=True)
class Reply:
    """What the teacher wrote; `reasoning` is what its server kept apart from the text."""

    key: str
    teacher: str
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""


@dataclass(frozen=True)
class Failure:
    """A row without a reply: the endpoint could not be reached, refused it, wrote nonsense, or has no record of it."""

    key: str
    kind: Literal["transport", "refused", "malformed", "missing"]
    reason: str


Outcome = Reply | Failure


class Teacher(Protocol):
    """Answers requests; calls `on_outcome` exactly once for each, as soon as it is known and in any order.

    Raises:
        InvalidInput: the endpoint refuses all calls (key, model, address).
        Transient: the endpoint is down. Outcomes reported until then stand.
    """

    async def ask(self, requests: Iterable[Request], on_outcome: Callable[[Outcome], None]) -> None:
        """Answer all requests."""


def open_teacher(
    settings: RecordedTeacher | EndpointTeacher, calls: CallLimits, storage: "Storage", directory: Path
) -> Teacher:
    """Return the teacher that the settings describe; `directory` keeps local copies.

    Raises:
        InvalidInput: the recording is missing or broken, or the key's variable is not set.
    """
    if isinstance(settings, RecordedTeacher):
        return Recording.load(settings.uri, local_copy(settings.uri, storage, directory))
    return Endpoint(settings, calls)


class Recording:
    """Plays back traces that were written earlier."""

    def __init__(self, uri: str, traces: dict[str, Trace]) -> None:
        self.uri = uri
        self.traces = traces

    @classmethod
    def load(cls, uri: str, path: Path) -> "Recording":
        """Read a file of Trace rows. Raises InvalidInput with the place of the first row that is none."""
        traces: dict[str, Trace] = {}
        for row in read_rows(open_lines(path, uri), uri):
            if isinstance(row, BadRecord):
                raise InvalidInput(f"{row.place}: {row.reason}; give a file of traces")
            place, value = row
            try:
                trace = Trace.model_validate(value)
            except ValueError as error:
                raise InvalidInput(f"{place} is not a trace: {explain(error)}; give a file of traces") from error
            traces[trace.key] = trace
        return cls(uri, traces)

    async def ask(self, requests: Iterable[Request], on_outcome: Callable[[Outcome], None]) -> None:
        """Answer all requests from the recording."""
        for request in requests:
            trace = self.traces.get(request.key)
            if trace is None:
                on_outcome(Failure(request.key, "missing", f"{request.key} is not in {self.uri}"))
                continue
            tokens = (trace.prompt_tokens, trace.completion_tokens)
            on_outcome(Reply(trace.key, trace.teacher, trace.text, trace.finish_reason, *tokens))


class _Unreachable(Exception):
    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Malformed(Exception):
    pass


class _Refused(Exception):
    pass


class _Gate:
    """Lets calls through: as many at once as the endpoint bears, none while it asked for a pause."""

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self.num_active = self.num_cuts = self.num_good = 0
        self.closed_until = 0.0
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def call(self) -> AsyncIterator[int]:
        """Wait for a place; yields how often the limit had been cut when the call began."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.num_active < self.limit)
            self.num_active += 1
        try:
            while (pause := self.closed_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            yield self.num_cuts
        finally:
            self.num_active -= 1
            async with self.changed:
                self.changed.notify_all()

    def slow_down(self, num_cuts_before: int, pause_seconds: float) -> None:
        """Halve the limit, once for all the calls that were under way together, and pause."""
        self.closed_until = max(self.closed_until, time.monotonic() + pause_seconds)
        if num_cuts_before == self.num_cuts:
            self.limit = max(1, self.limit // 2)
            self.num_cuts += 1
            self.num_good = 0
            logger.info("the teacher asks to slow down: %s calls at once now", self.limit)

    def speed_up(self) -> None:
        """Count a good answer; a whole round of them earns one more call at once."""
        self.num_good += 1
        if self.num_good >= self.limit and self.limit < self.most:
            self.limit, self.num_good = self.limit + 1, 0


class Endpoint:
    """Asks an OpenAI-compatible chat endpoint."""

    def __init__(self, settings: EndpointTeacher, calls: CallLimits) -> None:
        self.settings, self.calls = settings, calls
        self.url = settings.base_url.rstrip("/") + "/chat/completions"
        self.headers = {"Accept": "application/json"}
        if calls.api_key_env:
            key = os.environ.get(calls.api_key_env, "").strip()
            if not key:
                raise InvalidInput(
                    f"the environment variable {calls.api_key_env} is not set; put the teacher's key into it"
                )
            self.headers["Authorization"] = f"Bearer {key}"

    async def ask(self, requests: Iterable[Request], on_outcome: Callable[[Outcome], None]) -> None:
        """Answer all requests, some at once."""
        limits = httpx.Limits(max_connections=self.calls.concurrency)
        timeout = httpx.Timeout(self.calls.call_seconds, connect=min(CONNECT_SECONDS, self.calls.call_seconds))
        async with httpx.AsyncClient(
            headers=self.headers, timeout=timeout, limits=limits, follow_redirects=False
        ) as client:
            session = _Session(self, client, iter(requests), on_outcome)
            workers = [asyncio.create_task(session.work()) for _ in range(self.calls.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


class _Session:
    """One round of questions: what its workers share."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: httpx.AsyncClient,
        requests: Iterator[Request],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.endpoint, self.client, self.requests, self.on_outcome = endpoint, client, requests, on_outcome
        self.calls = endpoint.calls
        self.gate = _Gate(self.calls.concurrency)
        self.num_unreached = 0

    async def work(self) -> None:
        """Take rows until there are none left. Raises Transient when too many in a row could not reach the teacher."""
        for request in self.requests:
            outcome = await self._ask_row(request)
            self.on_outcome(outcome)
            lost = isinstance(outcome, Failure) and outcome.kind == "transport"
            self.num_unreached = self.num_unreached + 1 if lost else 0
            if isinstance(outcome, Failure) and self.num_unreached >= self.calls.breaker_rows:
                raise Transient(
                    f"the teacher at {self.endpoint.url} failed {self.num_unreached} rows in a row, the last with: "
                    f"{outcome.reason}; run again when it is back, its answers so far are kept"
                )

    async def _ask_row(self, request: Request) -> Outcome:
        num_malformed = 0

        def worth_another(error: BaseException) -> bool:
            nonlocal num_malformed
            num_malformed += isinstance(error, _Malformed)
            return isinstance(error, _Unreachable) or (isinstance(error, _Malformed) and num_malformed < 2)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(worth_another),
            stop=tenacity.stop_after_attempt(self.calls.attempts) | tenacity.stop_before_delay(self.calls.row_seconds),
            wait=self._wait,
            before_sleep=_report,
            reraise=True,
        )
        try:
            return await retrying(self._call, request)
        except _Refused as error:
            return Failure(request.key, "refused", redact(str(error)))
        except _Malformed as error:
            return Failure(request.key, "malformed", redact(str(error)))
        except _Unreachable as error:
            return Failure(request.key, "transport", redact(str(error)))

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Full jitter under a doubling ceiling; what Retry-After asks for, within reason, comes on top."""
        error = state.outcome.exception() if state.outcome else None
        ceiling = min(self.calls.max_wait_seconds, FIRST_WAIT_SECONDS * 2 ** (state.attempt_number - 1))
        jitter = random.uniform(0, ceiling)  # noqa: S311 - spreads calls, guards nothing
        asked = error.retry_after if isinstance(error, _Unreachable) else None
        return jitter if asked is None else min(asked, self.calls.max_wait_seconds) + jitter

    async def _call(self, request: Request) -> Reply:
        async with self.gate.call() as num_cuts:
            try:
                async with asyncio.timeout(self.calls.call_seconds):
                    status, headers, body = await self._post(request)
            except TimeoutError as error:
                raise _Unreachable(f"no whole answer within {self.calls.call_seconds:g} seconds") from error
            except httpx.HTTPError as error:
                raise _Unreachable(f"{type(error).__name__} {error}".strip()) from error
            if status == 429:
                wait = min(_retry_after(headers) or 0.0, self.calls.max_wait_seconds)
                self.gate.slow_down(num_cuts, wait)
        self._raise_for(status, headers, body)
        reply = _read_reply(request.key, self.endpoint.settings.model, body)
        self.gate.speed_up()
        return reply

    async def _post(self, request: Request) -> tuple[int, httpx.Headers, bytes]:
        settings = self.endpoint.settings
        question: dict[str, Any] = {
            "model": settings.model,
            "messages": [message.model_dump() for message in request.messages],
            settings.token_field: request.max_tokens,
        }
        if request.temperature is not None:
            question["temperature"] = request.temperature
        body = bytearray()
        async with self.client.stream("POST", self.endpoint.url, json=question | settings.extra_body) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise _Malformed(f"an answer of over {MAX_ANSWER_BYTES} bytes")
            return response.status_code, response.headers, bytes(body)

    def _raise_for(self, status: int, headers: httpx.Headers, body: bytes) -> None:
        if status == 200:
            return
        said = f"HTTP {status}: {_excerpt(body)}"
        if status in REFUSED_FOR_ALL:
            env = self.calls.api_key_env or "no key was sent; set calls.api_key_env"
            raise InvalidInput(
                f"the teacher at {self.endpoint.url} refuses all calls for the model {self.endpoint.settings.model!r} "
                f"with {said}. Check address, model and key ({env})"
            )
        if 300 <= status < 400:
            target = redact(headers.get("location", "nowhere"))
            raise InvalidInput(
                f"the teacher at {self.endpoint.url} redirects to {target}; redirects are not followed, "
                "set base_url to the address that answers"
            )
        if status in WORTH_ANOTHER_TRY or status >= 500:
            raise _Unreachable(said, _retry_after(headers))
        raise _Refused(said)


def _report(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.info("row %s, try %s: %s", state.args[0].key, state.attempt_number, error)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that a Retry-After header asks for, which may be a number or a date."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _read_reply(key: str, model: str, body: bytes) -> Reply:
    try:
        value = parse_strict(body)
        choice = value["choices"][0]
        message, finish_reason = choice["message"], choice["finish_reason"]
        text, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning") or ""
        usage = value.get("usage") or {}
        tokens = [max(0, int(usage.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Malformed(f"not a chat completion ({type(error).__name__}): {_excerpt(body)}") from error
    if finish_reason == "length" and text is None:
        text = ""  # The limit was used up by reasoning.
    if finish_reason not in ("stop", "length") and finish_reason is not None:
        raise _Refused(f"finish_reason {finish_reason!r}")
    if finish_reason is None or not isinstance(text, str) or not isinstance(reasoning, str):
        raise _Malformed(f"no text or no finish_reason: {_excerpt(body)}")
    if finish_reason == "stop" and not text.strip():
        raise _Malformed("an empty text")
    return Reply(key, model, text, finish_reason, tokens[0], tokens[1], reasoning)


def _excerpt(body: bytes) -> str:
    text = redact(body[:2000].decode("utf-8", errors="backslashreplace"))
    return " ".join(text.split())[:300] or "no text"
