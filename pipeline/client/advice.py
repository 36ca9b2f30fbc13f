"""What a KFP server's answers say in words, and what to do about them."""

import json
import re
from typing import Any
from urllib.parse import urlsplit

from components.core.redact import redact
from pipeline.client import proxy

HOST, UI_HOST, NAMESPACE = "REASRM_KFP_HOST", "REASRM_KFP_UI", "REASRM_KFP_NAMESPACE"
TOKEN, TOKEN_FILE, COOKIE, CA_FILE = (
    "REASRM_KFP_TOKEN",
    "REASRM_KFP_TOKEN_FILE",
    "REASRM_KFP_COOKIE",
    "REASRM_KFP_CA_FILE",
)
AUDIENCE = "pipelines.kubeflow.org"
_FORWARD = "kubectl port-forward -n kubeflow svc/ml-pipeline 8888, then --host http://localhost:8888"
EXCERPT = 400
_LOGIN = re.compile(r"\b(log[ -]?in|sign[ -]?in|dex|oauth2?)\b")


def for_identity(host: str, namespace: str, *, given: bool) -> str:
    """Return what to do where the server does not know who asks; `given`: a token was sent."""
    advice = for_login(host, namespace)
    return f"the token that was sent is not accepted: is it expired? {advice}" if given else advice


def for_login(host: str, namespace: str) -> str:
    """Return how one becomes known to the server at `host`."""
    token = f"set ${TOKEN} to a token of an account that is bound to kubeflow-edit, {for_token(namespace)}"
    if _is_local(host):
        return token
    return (
        f"{token}. Where Istio and dex take only a login, set ${COOKIE} to the browser's cookie, or go around them, "
        f"with that token: {_FORWARD}"
    )


def for_token(namespace: str) -> str:
    """Return the command that makes a token."""
    return f"as: kubectl create token default-editor --namespace {namespace or 'NAMESPACE'} --audience {AUDIENCE}"


def for_address(host: str) -> str:
    """Return where KFP's API may be instead."""
    if _is_local(host):
        return "is another program on that port? KFP's API is the service ml-pipeline, port 8888"
    return f"within Kubeflow's dashboard it is https://HOST/pipeline; else try: {_FORWARD}"


def for_connection(host: str) -> str:
    """Return what to look at where nothing answers."""
    if _is_local(host):
        return (
            "is the port-forward running (kubectl port-forward -n kubeflow svc/ml-pipeline 8888)? Then run this again"
        )
    return "is it up, and the address right? Then run this again"


def _is_local(host: str) -> bool:
    return urlsplit(host).hostname in proxy.LOCAL


def is_login(page: str) -> bool:
    """Say whether a web page, in small letters, asks for a login."""
    return bool(_LOGIN.search(page))


def message(error: Any) -> str:
    """Return what a server says of an error: the gateway's JSON, an upload's JSON, or plain text."""
    body = error.body or ""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    try:
        data = json.loads(text)
        told = data.get("error_message") or data.get("message") or data.get("error") or text
    except (ValueError, AttributeError):
        told = error.reason if is_html(error.headers or {}) else text or error.reason
    return short(str(told or "no reason given"))


def short(text: object) -> str:
    """Return the first line of an error: the server appends its stack."""
    line = redact(" ".join(str(text).strip().splitlines()[:1]))
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT]}..."


def is_html(headers: Any) -> bool:
    """Say whether an answer is a web page."""
    found = {str(name).lower(): str(value) for name, value in dict(headers).items()}
    return "text/html" in found.get("content-type", "")


def place(location: str) -> str:
    """Return where a redirect leads, without its parameters: they may hold secrets."""
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path or "nowhere"
