"""Settings of the service that are not the judge's."""

from pydantic import Field

from components.core.records import MAX_LINE_BYTES
from components.core.schema import Record

RETRY_SECONDS = 2
"""What Retry-After says: callers wait longer each time by themselves."""


class ServiceSettings(Record):
    """Where the service listens and what it refuses."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    """0 takes a free one."""
    token: str = Field("", repr=False)
    """What a caller has to show as bearer token; empty asks for none."""
    max_body_bytes: int = Field(2**20, ge=1024, le=MAX_LINE_BYTES)
    """Largest body of a request."""
    max_answers: int = Field(16, ge=2, le=256)
    """Most answers in one /rank."""
    max_votes: int = Field(8, ge=1, le=64)
    """Most votes that a request may ask for."""
    max_judgments: int = Field(1024, ge=2)
    """Most judgments that are promised and not there yet, over all requests."""
    request_seconds: float = Field(600, gt=0)
    """After this a request is answered with 504, and what it waits for is dropped."""
    shutdown_seconds: int = Field(30, ge=0)
    """After SIGTERM, how long requests under way may go on."""
