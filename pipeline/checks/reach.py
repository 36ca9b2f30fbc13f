"""Whether an address can be reached at all; an address of a cluster cannot from outside of it."""

import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO
from urllib.parse import urlsplit

from components.adapters.teachers.http import proxy_for
from components.core.errors import InvalidInput, Transient
from components.core.redact import redact

SECONDS = 5.0
"""Longest wait for a connection, and for a piece of an answer."""
MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Answer:
    """What came back; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None  # A key must not follow to another host.


def get(url: str, headers: Mapping[str, str] | None = None, seconds: float = SECONDS) -> Answer:
    """Return the answer to a GET, whatever its status; redirects are not followed.

    Raises:
        InvalidInput: it is no http address, or its certificate cannot be verified.
        Transient: nothing answers there.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InvalidInput(f"{redact(url)} is no address that can be called; write http:// or https://")
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=seconds) as response:  # noqa: S310
            return _answer(response.status, response.headers, response.read(MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error.headers, error.read(MOST_BYTES))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InvalidInput(
                f"the certificate of {redact(url)} cannot be verified ({reason.verify_message}); point SSL_CERT_FILE "
                "to the authority that signed it"
            ) from error
        raise Transient(f"{redact(url)} does not answer: {reason or type(reason).__name__}") from error


def _answer(status: int, headers: Message, body: bytes) -> Answer:
    return Answer(status, {name.lower(): value for name, value in headers.items()}, body)


def connect(url: str, seconds: float = SECONDS) -> None:
    """Return if something listens at this address, or if a proxy stands before it. Raises Transient otherwise."""
    parts = urlsplit(url)
    if proxy_for(url) or not parts.hostname:
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), seconds).close()
    except (OSError, ValueError) as error:
        raise Transient(f"{redact(url)} does not answer: {error}") from error


def is_inside(url: str) -> bool:
    """Say whether an address means something inside a cluster, and this process is outside of one."""
    host = urlsplit(url).hostname or ""
    if os.environ.get("KUBERNETES_SERVICE_HOST") or host in ("", "localhost"):
        return False
    return ("." not in host and ":" not in host) or host.endswith((".svc", ".cluster.local"))
