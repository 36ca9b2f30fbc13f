"""What the API refuses, as errors of ours."""

import json
from dataclasses import dataclass
from typing import Any

from components.adapters.kubernetes.kinds import Kind, Object
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.redact import redact


class Forbidden(InvalidInput):
    """The API does not let us do this (401, 403)."""


class NotServed(InvalidInput):
    """The API does not know this kind of object: its CustomResourceDefinition is not installed."""


class Conflict(Transient):
    """The object exists already, or is not any more what the change was made for (409)."""

    def __init__(self, message: str, *, exists: bool = False) -> None:
        super().__init__(message)
        self.exists = exists


class Gone(Transient):
    """The resource version is too old for a watch: list again (410)."""


class Unavailable(Transient):
    """The API cannot be reached, or asks to be left alone for `after` seconds."""

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class NotFound(ReasrmError):
    """There is no such object (404)."""


@dataclass(frozen=True)
class Question:
    """Who asked for what."""

    identity: str
    verb: str
    kind: Kind | None
    name: str
    subresource: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        what = f"{self.verb} {self.kind.name if self.kind else ''} {self.name}"
        return " ".join(f"{what} {f'in namespace {self.namespace}' if self.namespace else ''}".split())


def _status(error: Any) -> Object:
    """Read the Status object of a refusal; `is_status` is false where something else answered."""
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        status = json.loads(body)
        is_status = isinstance(status, dict) and status.get("kind") == "Status"
    except ValueError:
        is_status = False
    if not is_status:
        return {"is_status": False, "message": redact(body.strip()[:500] or str(error.reason)), "reason": ""}
    message = redact(str(status.get("message") or error.reason))
    details = status.get("details") or {}
    return {"is_status": True, "message": message, "reason": status.get("reason", ""), "details": details}


def translated(error: Any, question: Question) -> ReasrmError:
    """Return our error for a refusal (an `ApiException`)."""
    status = _status(error)
    code, said = int(error.status), status["message"]
    if code == 429 or code >= 500:
        after = str((error.headers or {}).get("Retry-After", ""))
        seconds = float(after) if after.isdecimal() else 0.0
        return Unavailable(f"the Kubernetes API cannot {question} for now ({code}): {said}", after=seconds)
    if code in (401, 403):
        return _forbidden(code, said, question)
    if code == 404 and question.kind is not None and not status["is_status"]:
        kind = question.kind
        return NotServed(
            f"the cluster has no {kind.name} ({kind.api_version}): install what defines it, the "
            f"CustomResourceDefinition {kind}, in this very version"
        )
    kinds = {404: NotFound, 410: Gone}
    if code in kinds:
        return kinds[code](said)
    if code == 409:
        return Conflict(f"cannot {question}: {said}", exists=status["reason"] == "AlreadyExists")
    return InvalidInput(f"the cluster refuses to {question} ({code}): {said}")


def _forbidden(code: int, said: str, question: Question) -> Forbidden:
    who = question.identity
    if code == 401:
        return Forbidden(f"the Kubernetes API does not accept the credentials of {who}: {said}; renew them")
    if question.kind is None or " cannot " not in said:  # admission: a quota, a policy, a webhook
        return Forbidden(f"the cluster does not let {who} {question}: {said}")
    kind = question.kind
    plural = f"{kind.plural}/{question.subresource}" if question.subresource else kind.plural
    where = f"namespace {question.namespace}" if question.namespace else "the whole cluster"
    return Forbidden(
        f"{who} may not {question.verb} {plural} of API group {kind.group or 'core'} in {where}: bind a role that "
        f"allows it to this identity (one for runs is in manifests/base, for TrainJobs in components/training); "
        f"the API says: {said}"
    )
