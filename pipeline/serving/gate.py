"""What every request passes before a route sees it: its token, its size, its JSON; and what counts it."""

import asyncio
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.core.records import explain, parse_strict
from pipeline.serving.gauges import Gauges
from pipeline.serving.settings import RETRY_SECONDS, ServiceSettings

OPEN = ("/health", "/ready", "/metrics", "/openapi.json", "/docs")
DOCS_FILES = "/docs/files"
"""Where the scripts of /docs are."""
GUARDED = ("/compare", "/rank")
BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""A NUL character as JSON writes it: after an even number of backslashes."""

GONE = "499"
"""What counts a request whose caller did not wait for the answer, as nginx does."""


class Refused(Exception):
    """A status and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Gate:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, gauges: Gauges, on_cut: Callable[[], None]) -> None:
        """`on_cut` is called for each request that the end of the process cut off."""
        self.app, self.settings, self.gauges, self.on_cut = app, settings, gauges, on_cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        route = "/docs" if path.startswith(DOCS_FILES) else path if path in (*OPEN, *GUARDED) else "other"
        began, status, is_answered = time.perf_counter(), "500", False

        async def noted(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = str(message["status"]), True
            await send(message)

        try:
            body = b"" if route in OPEN else await self._admit(scope, receive)
            if not await _unless_gone(self.app(scope, _replayed(body), noted), receive):
                status = status if is_answered else GONE
        except Refused as refused:
            await _answer(refused, noted)
        except asyncio.CancelledError:  # uvicorn's, at the end of its patience; raised on, it would be a 500
            self.on_cut()
            if not is_answered:
                await _answer(Refused(503, "the judge is shutting down; ask again in a moment"), noted)
        finally:
            self.gauges.add("reasrm_requests_total", route=route, status=status)
            if route in GUARDED:
                # By status: a refusal is quick, and under load would make the service look fast.
                seconds = time.perf_counter() - began
                self.gauges.observe("reasrm_request_seconds", seconds, route=route, status=status)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request that may pass. The token comes first: nobody else's bytes are read."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        is_known = hmac.compare_digest(given.strip(), self.settings.token.encode()) and scheme.lower() == b"bearer"
        if self.settings.token and not is_known:
            raise Refused(401, "no or a wrong bearer token; send the header `Authorization: Bearer <token>`")
        try:
            body = await asyncio.wait_for(self._read(headers.get(b"content-length", b""), receive), BODY_SECONDS)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
        if body:
            # A policy in training writes anything: one such answer must not cost its group the reward.
            body = NUL.sub(rb"\1\\ufffd", body)
            try:  # no NaN, no lone surrogate, no key twice: what JSON lines of ours may not have either
                parse_strict(body)
            except (ValueError, RecursionError) as error:
                reason = explain(error) if isinstance(error, ValueError) else "nested too deeply"
                raise Refused(400, f"the body is not JSON as it should be: {reason}") from error
        return body

    async def _read(self, length: bytes, receive: Receive) -> bytes:
        most = self.settings.max_body_bytes
        if length.isdigit() and int(length) > most:
            raise Refused(413, f"a body of {int(length)} bytes; the most is {most} (--max-body-bytes)")
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(int(GONE), "the caller went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise Refused(413, f"a body of over {most} bytes (--max-body-bytes)")
            if not message.get("more_body"):
                return b"".join(parts)


async def _unless_gone(work: Awaitable[None], receive: Receive) -> bool:
    """Run the application for a caller who waits; False if the caller hung up, which cancels the work.

    A caller that asks again after its own deadline would otherwise have the same work done twice, and both wait.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # raises what it raised
            return True
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return False
    finally:
        working.cancel()
        leaving.cancel()


def _replayed(body: bytes) -> Receive:
    """Return a `receive` that gives the body that was read, and then nothing: who hangs up is seen elsewhere."""
    left = [body]

    async def again() -> Message:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return again


async def _answer(refused: Refused, send: Send) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 503:
        headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
    if refused.status in {408, 413}:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
