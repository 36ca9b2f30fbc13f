"""Teachers and judges behind addresses: whether they answer and know the key. No call here is paid for."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from components.adapters.teachers.http import Refused, Unreachable, excerpt, headers_with_key, raise_for
from components.core.errors import InvalidInput, Transient
from components.core.judges import EndpointJudge, ScalarEndpointJudge
from components.core.teachers import BatchTeacher, EndpointTeacher
from pipeline.checks import reach
from pipeline.checks.finding import Finding, missing, ok, unknown, warning
from pipeline.config import RunConfig

OTHER_KEY = ("api.anthropic.com",)
"""Hosts whose list of models wants the key in another header than their chat endpoint does."""


@dataclass(frozen=True)
class Address:
    """Something that a run will call. `path` is what is asked for without cost; `model` is looked up in the answer."""

    role: str
    url: str
    path: str = "/models"
    model: str = ""
    api_key_env: str = ""

    @property
    def asked(self) -> str:
        """The whole address that is asked."""
        return self.url.rstrip("/") + self.path


def addresses(config: RunConfig) -> list[Address]:
    """Return the addresses that a run calls, each once: teachers if it distils, judges, the server of rollouts."""
    found: dict[Address, None] = {}
    if config.prepare.distil_share > 0:
        for teacher in config.traces.teacher:
            if isinstance(teacher, EndpointTeacher | BatchTeacher):
                key = teacher.calls.api_key_env
                found[Address("teacher", teacher.base_url, model=teacher.model, api_key_env=key)] = None
    for judge in config.benchmark.judges:
        if isinstance(judge, EndpointJudge):
            found[Address("judge", judge.base_url, model=judge.model, api_key_env=judge.calls.api_key_env)] = None
        elif isinstance(judge, ScalarEndpointJudge):
            path = "/" if judge.protocol == "openrlhf" else "/health"
            found[Address("judge", judge.base_url, path, api_key_env=judge.calls.api_key_env)] = None
    if config.grpo.rollouts.server_url is not None:
        found[Address("rollout server", config.grpo.rollouts.server_url, "/health")] = None
    return list(found)


def check_address(address: Address, secret: str) -> Iterator[Finding]:
    """Ask an address without cost, with its key; `secret` is where a pod's key comes from."""
    name = f"{address.role} {address.model or address.url}"
    try:
        headers = headers_with_key(address.api_key_env)
    except InvalidInput as error:
        yield missing(name, str(error), f"put {address.api_key_env} into the secret {secret}, or export it", "unset")
        return
    try:
        answer = reach.get(address.asked, headers)
    except Transient as error:
        yield missing(name, str(error), f"see that it is up; is base_url {address.url} right?", "unreachable")
        return
    yield _judge(name, address, answer, secret)


def _judge(name: str, address: Address, answer: reach.Answer, secret: str) -> Finding:
    """Return what an answer says of an address."""
    said = f"{address.asked} answers HTTP {answer.status}"
    if answer.status in (404, 405) or address.path == "/":
        return unknown(name, f"{said}, so it is there; whether it takes the key shows with the first call")
    if answer.status == 403 or (answer.status == 401 and urlsplit(address.url).hostname in OTHER_KEY):
        return unknown(name, f"{said}: this key may not ask that; whether it may ask the model shows the first call")
    try:
        raise_for(answer.status, answer.headers, answer.body, name, address.api_key_env)
    except InvalidInput as error:
        return missing(name, str(error), f"correct base_url, or {address.api_key_env or 'the key'} in {secret}")
    except (Refused, Unreachable) as error:
        return missing(name, f"{said}: {error}", "see that it is up, then run this again", "unreachable")
    if address.path != "/models":
        return ok(name, f"{address.url} answers")
    return _lists(name, address, answer.body)


def _lists(name: str, address: Address, body: bytes) -> Finding:
    try:
        models = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError):
        return unknown(name, f"{address.asked} answers, but with no list of models: {excerpt(body)}")
    if address.model in models:
        return ok(name, f"{address.url} answers and has {address.model}")
    return warning(
        name,
        f"{address.url} answers, but does not list {address.model}; it has {_some(models)}",
        "correct the model's name, unless the endpoint takes names that it does not list",
    )


def _some(models: Iterable[str]) -> str:
    names = sorted(models)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
