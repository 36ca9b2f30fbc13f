"""What every request passes before a route sees it: its token, its size, its JSON; and what counts it."""

import asyncio
import hmac
import json
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.core.records import explain, parse_strict
from pipeline.serving.gauges import Gauges
from pipeline.serving.settings import ServiceSettings

OPEN = ("/health", "/ready", "/metrics", "/openapi.json", "/docs")
GUARDED = ("/compare", "/rank")
BODY_SECONDS = 30.0
"""How long a body may take to arrive."""


class Refused(Exception):
    """A status and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Gate:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, gauges: Gauges) -> None:
        self.app, self.settings, self.gauges = app, settings, gauges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in (*OPEN, *GUARDED) else "other"
        began, status = time.perf_counter(), "500"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            body = b"" if path in OPEN else await self._admit(scope, receive)
            await self.app(scope, _replayed(body, receive), noted)
        except Refused as refused:
            await _answer(refused, noted)
        finally:
            self.gauges.add("reasrm_requests_total", route=route, status=status)
            if route in GUARDED:
                self.gauges.observe("reasrm_request_seconds", time.perf_counter() - began, route=route)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request that may pass. The token comes first: nobody else's bytes are read."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"authorization", b"")
        if self.settings.token and not hmac.compare_digest(given, f"Bearer {self.settings.token}".encode()):
            raise Refused(401, "no or a wrong bearer token; send the header `Authorization: Bearer <token>`")
        try:
            body = await asyncio.wait_for(self._read(headers.get(b"content-length", b""), receive), BODY_SECONDS)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
        if body:
            try:
                parse_strict(
                    body
                )  # no NaN, no lone surrogate, no key twice: what JSON lines of ours may not have either
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
                raise Refused(400, "the caller went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise Refused(413, f"a body of over {most} bytes (--max-body-bytes)")
            if not message.get("more_body"):
                return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, and then what comes after it."""
    left = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return again


async def _answer(refused: Refused, send: Send) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status in {408, 413}:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
