"""What a check says."""

from dataclasses import dataclass
from typing import Literal

from components.core.redact import redact

Status = Literal["ok", "warning", "missing", "unknown"]
Cause = Literal["", "unreachable", "unset"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `what` was found there; `remedy` is a command or a place, where something is to do.

    `unknown` is whatever could not be looked at from here, with the reason; it never stands for ok.
    """

    name: str
    status: Status
    what: str
    remedy: str = ""
    cause: Cause = ""
    """Of what is missing: `unreachable` did not answer, so another try may find it; `unset` is a variable of this very
    process, which says nothing about others."""

    def __post_init__(self) -> None:
        for name in ("what", "remedy"):
            object.__setattr__(self, name, redact(getattr(self, name)))


def ok(name: str, what: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(name, "ok", what)


def missing(name: str, what: str, remedy: str, cause: Cause = "") -> Finding:
    """Return that a run would fail."""
    return Finding(name, "missing", what, remedy, cause)


def warning(name: str, what: str, remedy: str = "") -> Finding:
    """Return that something is worse than it could be."""
    return Finding(name, "warning", what, remedy)


def unknown(name: str, what: str, remedy: str = "") -> Finding:
    """Return that something could not be looked at."""
    return Finding(name, "unknown", what, remedy)
