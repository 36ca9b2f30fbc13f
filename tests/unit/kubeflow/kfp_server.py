"""Kubeflow Pipelines' REST API (v2beta1) on a free port of this machine, as far as reasrm uses it.

Bodies are read and written with the generated models of `kfp_server_api`, so both ends agree with the published API: an
unknown field, a wrong type or an unknown enum value is answered with 400. What the backend does beside that (2.16 and
2.17: its checks, case-insensitive filters, page tokens, left out empty fields, 1970 for "not yet") is imitated where a
client can trip over it. Tests move runs on with `set_state` and `set_tasks`, and break things with `fail`, `reset`,
`slow`, `forbid` and `login_page`.
"""

import base64
import datetime
import email
import email.policy
import json
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml
from kfp_server_api import models

PREFIX = "/apis/v2beta1"
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 200
MAX_PARAMETER_BYTES = 10_000
RUNNING = ("PENDING", "RUNNING", "PAUSED", "CANCELING")
LOGIN_PAGE = b"<!DOCTYPE html><html><title>dex</title><body>Log in to Your Account</body></html>"
GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 501: 12, 503: 14}
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OPERATIONS = {1: "EQUALS", 2: "NOT_EQUALS", 8: "IN", 9: "IS_SUBSTRING"}
SORTABLE = {
    "experiments": {"experiment_id", "display_name", "created_at", "last_run_created_at"},
    "pipelines": {"pipeline_id", "display_name", "name", "created_at"},
    "versions": {"pipeline_version_id", "display_name", "name", "created_at"},
    "runs": {"run_id", "display_name", "created_at", "scheduled_at", "finished_at", "state", "storage_state"},
    "recurringruns": {"recurring_run_id", "display_name", "created_at", "updated_at", "status"},
}


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Request:
    """What a client asked; `body` is parsed JSON, or the bytes of an uploaded file."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any


@dataclass
class Fault:
    """What happens to the next requests that match, instead of or before their answer."""

    pattern: str
    times: int
    status: int = 0
    seconds: float = 0.0
    reset: bool = False
    after: bool = False
    """Do the work first and then break off, so that the client cannot know whether it was done."""


@dataclass
class KfpServer:
    """The server and all it knows. `with KfpServer() as server:` serves at `server.url`."""

    token: str = ""
    """If set, requests need `Authorization: Bearer <token>`, else 401."""
    multi_user: bool = True
    version: str = "2.17.0"
    experiments: dict[str, models.V2beta1Experiment] = field(default_factory=dict)
    pipelines: dict[str, models.V2beta1Pipeline] = field(default_factory=dict)
    versions: dict[str, models.V2beta1PipelineVersion] = field(default_factory=dict)
    runs: dict[str, models.V2beta1Run] = field(default_factory=dict)
    recurring_runs: dict[str, models.V2beta1RecurringRun] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    """Version id -> the file that was uploaded."""
    requests: list[Request] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)
    login_page: bool = False
    """Answer everything with a login page, as an identity-aware proxy does."""
    page: bytes = LOGIN_PAGE
    """What that page says; one of another content is sent without `login_page`."""
    other: Any = None
    """Answer everything with this JSON, as another service does."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of the last request, their names in lower case."""
    redirect: str = ""
    """Send everybody there, as Istio with dex does."""
    steps: list[Callable[[str], None]] = field(default_factory=list)
    """What happens to a run: each time one is asked for, the next of these is called with its id first."""
    page_size: int = MAX_PAGE_SIZE
    """The server's own bound on a page; set it low to see a client page."""

    def __post_init__(self) -> None:
        self._faults: list[Fault] = []
        self._clock = datetime.datetime(2026, 11, 2, 8, 0, tzinfo=datetime.UTC)
        self._namespaces: dict[str, str] = {}
        self._lock = threading.RLock()
        self._api = kfp_server_api.ApiClient()
        self._http: ThreadingHTTPServer | None = None

    def __enter__(self) -> "KfpServer":
        handler = type("Handler", (_Handler,), {"kfp": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()

    @property
    def url(self) -> str:
        """Where it listens; give it to a client as its host."""
        assert self._http is not None
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    # ---- what a test does to it

    def fail(self, pattern: str, status: int = 503, times: int = 1, *, after: bool = False) -> None:
        """Answer the next `times` requests that match with an error; `after` having done what they asked."""
        self._faults.append(Fault(pattern, times, status=status, after=after))

    def reset(self, pattern: str, times: int = 1, *, after: bool = False) -> None:
        """Break the connection of the next `times` requests that match; `after` having done what they asked."""
        self._faults.append(Fault(pattern, times, reset=True, after=after))

    def slow(self, pattern: str, seconds: float, times: int = 1) -> None:
        """Let the next `times` requests that match wait."""
        self._faults.append(Fault(pattern, times, seconds=seconds))

    def forbid(self, pattern: str) -> None:
        """Answer requests that match with 403, as RBAC does."""
        self.forbidden.append(pattern)

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests so far whose "METHOD /path" matches."""
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]

    def set_state(self, run_id: str, state: str, error: str = "") -> None:
        """Move a run on."""
        with self._lock:
            run, now = self.runs[run_id], self.tick()
            run.state = state
            run.error = models.GoogleRpcStatus(code=13, message=error) if error else None
            run.finished_at = EPOCH if state in RUNNING else now
            run.state_history = [
                *(run.state_history or []),
                models.V2beta1RuntimeStatus(update_time=now, state=state, error=run.error),
            ]

    def set_tasks(self, run_id: str, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Say what a run's tasks are now, as dicts in the API's JSON form (display_name, state, ...)."""
        with self._lock:
            details = [
                self.parse(
                    {"run_id": run_id, "task_id": str(uuid.uuid4()), "create_time": "2026-11-02T08:00:00Z"}
                    | {"start_time": "2026-11-02T08:00:00Z", "end_time": "1970-01-01T00:00:00Z"}
                    | dict(task),
                    "V2beta1PipelineTaskDetail",
                )
                for task in tasks
            ]
            self.runs[run_id].run_details = models.V2beta1RunDetails(task_details=details)

    def tick(self) -> datetime.datetime:
        """Return the server's time, a second later at each call."""
        with self._lock:
            self._clock += datetime.timedelta(seconds=1)
            return self._clock

    # ---- models

    def parse(self, data: Any, kind: str, at: str = "") -> Any:
        """Return JSON data as a generated model. Raises Refused with 400 on what the published API does not have."""
        _check(data, kind, at)
        response = type("Response", (), {"data": json.dumps(data)})
        try:
            return self._api.deserialize(response, kind)
        except (ValueError, TypeError, kfp_server_api.OpenApiException) as error:
            raise Refused(400, f"proto: cannot parse {kind}: {error}") from error

    def to_json(self, value: Any) -> Any:
        """Return a model as the gateway writes it: empty fields are left out, times end in Z."""
        if isinstance(value, list):
            return [self.to_json(item) for item in value]
        if isinstance(value, dict):
            return {name: self.to_json(item) for name, item in value.items()}
        if isinstance(value, datetime.datetime):
            return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
        if hasattr(value, "openapi_types"):
            pairs = ((json_name, getattr(value, name)) for name, json_name in value.attribute_map.items())
            return {name: self.to_json(item) for name, item in pairs if item not in (None, "", [], {}, 0, False)}
        return value

    # ---- requests

    def answer(self, request: Request) -> Any:
        """Return the JSON of the answer. Raises Refused."""
        with self._lock:
            for pattern in self.forbidden:
                if re.search(pattern, f"{request.method} {request.path}"):
                    raise Refused(
                        403,
                        "Failed to authorize with API: PermissionDenied: User 'user@example.com' is not authorized "
                        "with reason:  (request: &ResourceAttributes{Namespace:team,Group:pipelines.kubeflow.org,})",
                    )
            path = request.path.removeprefix(PREFIX)
            for method, pattern, name in _ROUTES:
                found = re.fullmatch(pattern, path)
                if method == request.method and found:
                    return self.to_json(getattr(self, f"_{name}")(request, *found.groups()))
        raise Refused(404, "Not Found")

    def _healthz(self, request: Request) -> Any:
        return {
            "commit_sha": "0123456789abcdef",
            "tag_name": self.version,
            "multi_user": self.multi_user,
            "pipeline_store": "database",
        }

    def _create_experiment(self, request: Request) -> Any:
        made = self.parse(request.body, "V2beta1Experiment")
        self._need_name(made, "Experiment")
        made.namespace = self._namespace(made.namespace)
        if any(
            (old.display_name, old.namespace) == (made.display_name, made.namespace)
            for old in self.experiments.values()
        ):
            raise Refused(
                409, f"Already exist error: Failed to create a new experiment. The name {made.display_name} exists"
            )
        made.experiment_id, made.storage_state, made.created_at = str(uuid.uuid4()), "AVAILABLE", self.tick()
        made.last_run_created_at = EPOCH
        self.experiments[made.experiment_id] = made
        return made

    def _get_experiment(self, request: Request, key: str) -> Any:
        return self._find(self.experiments, key, "Experiment")

    def _list_experiments(self, request: Request) -> Any:
        namespace = self._namespace(request.query.get("namespace"))
        rows = [row for row in self.experiments.values() if row.namespace == namespace]
        return self._page(request, "experiments", rows, models.V2beta1ListExperimentsResponse)

    def _create_pipeline(self, request: Request) -> Any:
        made = self.parse(request.body, "V2beta1Pipeline")
        self._need_name(made, "Pipeline")
        return self._add_pipeline(made)

    def _add_pipeline(self, made: Any) -> Any:
        made.namespace = (made.namespace or "") if self.multi_user else ""
        made.name = made.name or made.display_name
        made.display_name = made.display_name or made.name
        for old in self.pipelines.values():
            if (old.name, old.namespace) == (made.name, made.namespace):
                raise Refused(
                    409, f"Already exist error: Failed to create a new pipeline. The name {made.name} already exists"
                )
        made.pipeline_id, made.created_at = str(uuid.uuid4()), self.tick()
        self.pipelines[made.pipeline_id] = made
        return made

    def _get_pipeline(self, request: Request, key: str) -> Any:
        return self._find(self.pipelines, key, "Pipeline")

    def _list_pipelines(self, request: Request) -> Any:
        namespace = request.query.get("namespace", "")
        rows = [row for row in self.pipelines.values() if not self.multi_user or row.namespace == namespace]
        return self._page(request, "pipelines", rows, models.V2beta1ListPipelinesResponse)

    def _delete_pipeline(self, request: Request, key: str) -> Any:
        self._find(self.pipelines, key, "Pipeline")
        mine = [version for version in self.versions.values() if version.pipeline_id == key]
        if mine and request.query.get("cascade") != "true":
            raise Refused(400, f"Failed to delete pipeline {key} as it still has {len(mine)} versions")
        for version in mine:
            del self.versions[version.pipeline_version_id]
        del self.pipelines[key]
        return {}

    def _upload(self, request: Request) -> Any:
        spec = _read_package(request.body)
        query = request.query
        made = models.V2beta1Pipeline(
            name=query.get("name") or query.get("display_name"),
            display_name=query.get("display_name"),
            description=query.get("description"),
            namespace=query.get("namespace"),
            tags=json.loads(query.get("tags", "{}")),
        )
        self._need_name(made, "Pipeline", of="name")
        made = self._add_pipeline(made)
        self._add_version(made.pipeline_id, made.name, made.display_name, made.description, request.body, spec)
        return made

    def _upload_version(self, request: Request) -> Any:
        spec = _read_package(request.body)
        query = request.query
        self._find(self.pipelines, query.get("pipelineid", ""), "Pipeline")
        name = query.get("name") or query.get("display_name") or "pipeline.yaml"
        display = query.get("display_name") or name
        return self._add_version(query["pipelineid"], name, display, query.get("description"), request.body, spec)

    def _add_version(self, pipeline_id: str, name: str, display: str, description: Any, body: bytes, spec: Any) -> Any:
        for old in self.versions.values():
            if (old.pipeline_id, old.name) == (pipeline_id, name):
                raise Refused(409, "Failed to create a pipeline version")
        made = models.V2beta1PipelineVersion(
            pipeline_id=pipeline_id,
            pipeline_version_id=str(uuid.uuid4()),
            name=name,
            display_name=display,
            description=description,
            created_at=self.tick(),
            pipeline_spec=spec,
        )
        self.versions[made.pipeline_version_id] = made
        self.packages[made.pipeline_version_id] = body
        return made

    def _list_versions(self, request: Request, pipeline_id: str) -> Any:
        self._find(self.pipelines, pipeline_id, "Pipeline")
        rows = [row for row in self.versions.values() if row.pipeline_id == pipeline_id]
        return self._page(request, "versions", rows, models.V2beta1ListPipelineVersionsResponse, "pipeline_versions")

    def _get_version(self, request: Request, pipeline_id: str, key: str) -> Any:
        found = self._find(self.versions, key, "PipelineVersion")
        if found.pipeline_id != pipeline_id:
            raise Refused(404, f"ResourceNotFoundError: PipelineVersion {key} not found.")
        return found

    def _delete_version(self, request: Request, pipeline_id: str, key: str) -> Any:
        del self.versions[self._get_version(request, pipeline_id, key).pipeline_version_id]
        return {}

    def _create_run(self, request: Request) -> Any:
        made = self.parse(request.body, "V2beta1Run")
        self._need_name(made, "Run")
        self._check_source(made, need_version=True)
        made.run_id, made.state, made.storage_state = str(uuid.uuid4()), "PENDING", "AVAILABLE"
        made.experiment_id = self._experiment_of(made).experiment_id
        made.created_at = made.scheduled_at = self.tick()
        made.finished_at = EPOCH
        made.state_history = [models.V2beta1RuntimeStatus(update_time=made.created_at, state="PENDING")]
        self.runs[made.run_id] = made
        return made

    def _get_run(self, request: Request, key: str) -> Any:
        found = self._find(self.runs, key, "Run")
        if self.steps:
            self.steps.pop(0)(key)
        return found

    def _list_runs(self, request: Request) -> Any:
        rows = self._in_scope(request, self.runs.values())
        return self._page(request, "runs", rows, models.V2beta1ListRunsResponse)

    def _terminate_run(self, request: Request, key: str) -> Any:
        run = self._find(self.runs, key, "Run")
        if run.state not in ("PENDING", "RUNNING", "PAUSED"):
            raise Refused(400, f"Failed to terminate a run {key}. Row not found")  # also one that is CANCELING
        self.set_state(key, "CANCELING")
        return {}

    def _retry_run(self, request: Request, key: str) -> Any:
        run = self._find(self.runs, key, "Run")
        if run.state != "FAILED":
            raise Refused(400, f"Bad request error: workflow must be Failed/Error to retry; run {key} is {run.state}")
        self.set_state(key, "RUNNING")
        return {}

    def _delete_run(self, request: Request, key: str) -> Any:
        self._find(self.runs, key, "Run")
        del self.runs[key]
        return {}

    def _create_recurring(self, request: Request) -> Any:
        made = self.parse(request.body, "V2beta1RecurringRun")
        self._need_name(made, "Recurring run")
        self._check_source(made, need_version=False)
        count = made.max_concurrency
        if not str(count or "").isdigit() or not 1 <= int(count) <= 10:
            raise Refused(
                400, f"Max concurrency of a recurring run must be at leas 1 and at most 10. Received {count or 0}"
            )
        trigger = made.trigger
        if trigger and trigger.cron_schedule and not _cron(trigger.cron_schedule.cron or ""):
            raise Refused(
                400,
                "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). "
                f"Error: {trigger.cron_schedule.cron}",
            )
        made.experiment_id = self._experiment_of(made).experiment_id
        made.namespace = self._namespaces[made.experiment_id] if self.multi_user else ""
        made.recurring_run_id = str(uuid.uuid4())
        made.created_at = made.updated_at = self.tick()
        made.status, made.mode = ("ENABLED" if made.mode == "ENABLE" else "DISABLED"), None
        self.recurring_runs[made.recurring_run_id] = made
        return made

    def _get_recurring(self, request: Request, key: str) -> Any:
        return self._find(self.recurring_runs, key, "RecurringRun")

    def _list_recurring(self, request: Request) -> Any:
        rows = self._in_scope(request, self.recurring_runs.values())
        return self._page(request, "recurringruns", rows, models.V2beta1ListRecurringRunsResponse, "recurring_runs")

    def _switch_recurring(self, request: Request, key: str, mode: str) -> Any:
        found = self._find(self.recurring_runs, key, "RecurringRun")
        found.status, found.updated_at = f"{mode.upper()}D", self.tick()
        return {}

    def _delete_recurring(self, request: Request, key: str) -> Any:
        self._find(self.recurring_runs, key, "RecurringRun")
        del self.recurring_runs[key]
        return {}

    # ---- what several of them check

    def _find(self, rows: Mapping[str, Any], key: str, kind: str) -> Any:
        if key not in rows:
            raise Refused(404, f"ResourceNotFoundError: {kind} {key} not found.")
        return rows[key]

    def _need_name(self, made: Any, kind: str, of: str = "display_name") -> None:
        if not getattr(made, of):
            raise Refused(400, f"Invalid input error: {kind} name is empty. Please specify a valid name.")

    def _namespace(self, namespace: str | None) -> str:
        if not self.multi_user:
            return ""
        if not namespace:
            raise Refused(400, "Invalid input error: Namespace is empty")
        return namespace

    def _experiment_of(self, made: Any) -> Any:
        if made.experiment_id:
            found = self._find(self.experiments, made.experiment_id, "Experiment")
            self._namespaces[found.experiment_id] = found.namespace
            return found
        if self.multi_user:
            raise Refused(400, "Invalid input error: a run needs an experiment in multi-user mode")
        for found in self.experiments.values():
            if found.display_name == "Default":
                return found
        body = {"display_name": "Default"}
        return self._create_experiment(Request("POST", f"{PREFIX}/experiments", {}, body))

    def _check_source(self, made: Any, *, need_version: bool) -> None:
        reference, spec = made.pipeline_version_reference, made.pipeline_spec
        if (reference is None) == (spec is None):
            raise Refused(400, "Invalid input error: give either pipeline_version_reference or pipeline_spec")
        if reference is not None:
            self._find(self.pipelines, reference.pipeline_id or "", "Pipeline")
            mine = [row for row in self.versions.values() if row.pipeline_id == reference.pipeline_id]
            if reference.pipeline_version_id:
                version = self._find(self.versions, reference.pipeline_version_id, "PipelineVersion")
                if version not in mine:
                    raise Refused(404, f"PipelineVersion {version.pipeline_version_id} is not of that pipeline")
            elif need_version or not mine:
                raise Refused(400, "Invalid input error: Cannot find a pipeline version: pipeline_version_id is empty")
            else:
                version = max(mine, key=lambda row: row.created_at)
            spec = version.pipeline_spec
        given = (made.runtime_config.parameters if made.runtime_config else None) or {}
        if len(json.dumps(given).encode()) > MAX_PARAMETER_BYTES:
            raise Refused(400, f"The input parameter length exceed maximum size of {MAX_PARAMETER_BYTES}.")
        spec = spec.get("pipeline_spec", spec)
        known = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
        for name in given:
            if name not in known:
                raise Refused(400, f"Invalid input error: parameter {name} is not an input of the pipeline")
        for name, definition in known.items():
            if name not in given and "defaultValue" not in definition and not definition.get("isOptional"):
                raise Refused(400, f"Invalid input error: parameter {name} has neither a value nor a default")

    def _in_scope(self, request: Request, rows: Iterable[Any]) -> list[Any]:
        experiment = request.query.get("experiment_id")
        if experiment:
            self._find(self.experiments, experiment, "Experiment")
            return [row for row in rows if row.experiment_id == experiment]
        namespace = self._namespace(request.query.get("namespace"))
        mine = {key for key, row in self.experiments.items() if row.namespace == namespace}
        return [row for row in rows if row.experiment_id in mine]

    def _page(self, request: Request, kind: str, rows: list[Any], answer: Any, name: str = "") -> Any:
        query = request.query
        order, filters = query.get("sort_by", ""), query.get("filter", "")
        start = 0
        if query.get("page_token"):
            try:
                token = json.loads(base64.b64decode(query["page_token"], validate=True))
            except ValueError:
                raise Refused(400, "Invalid input error: Invalid package token.") from None
            if (order or filters) and [order, filters] != token[1:]:
                raise Refused(400, "page token does not match the supplied sort by and/or filtering criteria.")
            start, order, filters = token
        rows = self._sort(kind, self._filter(filters, rows), order)
        size = min(int(query.get("page_size") or DEFAULT_PAGE_SIZE), self.page_size)
        page, following = rows[start : start + size], start + size
        more = base64.b64encode(json.dumps([following, order, filters]).encode()).decode()
        return answer(
            **{
                name or kind: page,
                "total_size": len(rows),
                "next_page_token": more if following < len(rows) else None,
            }
        )

    def _sort(self, kind: str, rows: list[Any], order: str) -> list[Any]:
        words = order.lower().split() or ["created_at"]
        if len(words) > 2 or words[1:] not in ([], ["asc"], ["desc"]):
            raise Refused(400, f"Invalid input error: Received invalid sort by format {order!r}")
        if words[0] not in SORTABLE[kind]:
            raise Refused(400, f"Invalid input error: Invalid sorting field: {words[0]!r}")
        return sorted(rows, key=lambda row: getattr(row, words[0]), reverse=words[1:] == ["desc"])

    def _filter(self, text: str, rows: list[Any]) -> list[Any]:
        if not text:
            return rows
        try:
            data = json.loads(text)
        except ValueError:
            raise Refused(400, f"failed to parse valid filter from {text!r}") from None
        for predicate in data.get("predicates", []):
            operation = OPERATIONS.get(predicate.get("operation"), predicate.get("operation"))
            body = {_snake(key): value for key, value in predicate.items()} | {"operation": operation}
            parsed = self.parse(body, "V2beta1Predicate")
            if parsed.operation not in OPERATIONS.values() or not parsed.key:
                raise Refused(400, f"invalid predicate: {predicate}")
            rows = [row for row in rows if _matches(row, parsed)]
        return rows


def _matches(row: Any, predicate: Any) -> bool:
    if not hasattr(row, predicate.key):
        raise Refused(400, f'no support for filtering on unrecognized field "{predicate.key}"')
    value = str(getattr(row, predicate.key)).lower()
    wanted = (predicate.string_value or "").lower()
    match predicate.operation:
        case "EQUALS":
            return value == wanted
        case "NOT_EQUALS":
            return value != wanted
        case "IS_SUBSTRING":
            return wanted in value
    return value in {text.lower() for text in predicate.string_values.values}


def _snake(name: str) -> str:
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _check(data: Any, kind: str, at: str) -> None:
    """Refuse what the generated models would pass over: unknown fields, wrong types, unknown enum values."""
    listed, mapped = re.fullmatch(r"list\[(.*)\]", kind), re.fullmatch(r"dict\(str, (.*)\)", kind)
    if data is None or kind == "object":
        return
    if listed or mapped:
        if not isinstance(data, list if listed else dict):
            raise Refused(400, f"proto: {at or 'body'}: {kind} expected, got {data!r}")
        for item in data if listed else data.values():
            _check(item, (listed or mapped).group(1), at)
        return
    plain = {"str": str, "int": int, "bool": bool, "datetime": str}.get(kind)
    if plain is not None:
        if not isinstance(data, plain):
            raise Refused(400, f"proto: invalid value for {kind} field {at}: {data!r}")
        return
    model = getattr(models, kind)
    if not model.openapi_types:
        if data not in model.allowable_values:
            raise Refused(400, f"proto: invalid value for enum field {at}: {data!r}")
        return
    if not isinstance(data, dict):
        raise Refused(400, f"proto: {at or kind}: object expected, got {data!r}")
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for json_name, item in data.items():
        if json_name not in names:
            raise Refused(400, f'proto: (line 1:2): unknown field "{json_name}"')
        _check(item, model.openapi_types[names[json_name]], json_name)


def _cron(text: str) -> bool:
    return text.startswith("@") or len(text.split()) in (5, 6)


def _read_package(data: bytes) -> Any:
    try:
        documents = list(yaml.load_all(data, Loader=_YAML))
        spec = documents[0]
        if "pipelineInfo" not in spec or "root" not in spec:
            raise ValueError("no pipelineInfo")
    except (ValueError, TypeError, IndexError, yaml.YAMLError):
        raise Refused(400, "Failed to read a pipeline spec file") from None
    return {"pipeline_spec": spec, "platform_spec": documents[1]} if len(documents) > 1 else spec


_ROUTES = [
    ("GET", "/healthz", "healthz"),
    ("POST", "/experiments", "create_experiment"),
    ("GET", "/experiments", "list_experiments"),
    ("GET", "/experiments/([^/:]+)", "get_experiment"),
    ("POST", "/pipelines/upload", "upload"),
    ("POST", "/pipelines/upload_version", "upload_version"),
    ("POST", "/pipelines", "create_pipeline"),
    ("GET", "/pipelines", "list_pipelines"),
    ("GET", "/pipelines/([^/:]+)", "get_pipeline"),
    ("DELETE", "/pipelines/([^/:]+)", "delete_pipeline"),
    ("GET", "/pipelines/([^/:]+)/versions", "list_versions"),
    ("GET", "/pipelines/([^/:]+)/versions/([^/:]+)", "get_version"),
    ("DELETE", "/pipelines/([^/:]+)/versions/([^/:]+)", "delete_version"),
    ("POST", "/runs", "create_run"),
    ("GET", "/runs", "list_runs"),
    ("GET", "/runs/([^/:]+)", "get_run"),
    ("DELETE", "/runs/([^/:]+)", "delete_run"),
    ("POST", "/runs/([^/:]+):terminate", "terminate_run"),
    ("POST", "/runs/([^/:]+):retry", "retry_run"),
    ("POST", "/recurringruns", "create_recurring"),
    ("GET", "/recurringruns", "list_recurring"),
    ("GET", "/recurringruns/([^/:]+)", "get_recurring"),
    ("DELETE", "/recurringruns/([^/:]+)", "delete_recurring"),
    ("POST", "/recurringruns/([^/:]+):(enable|disable)", "switch_recurring"),
]


class _Handler(BaseHTTPRequestHandler):
    """Speaks HTTP; what is answered is decided in KfpServer."""

    kfp: KfpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self._body(raw)
        request = Request(self.command, parts.path, query, body)
        self.kfp.requests.append(request)
        self.kfp.headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self._fault(f"{request.method} {request.path}")
        if fault:
            time.sleep(fault.seconds)
            if fault.after:
                with suppress(Refused):
                    self.kfp.answer(request)
            if fault.reset:
                return self._break()
            if fault.status:
                return self._json(fault.status, {"error": "upstream connect error", "code": 14, "message": "injected"})
        if self.kfp.redirect:
            return self._send(302, b"", "text/html", {"Location": self.kfp.redirect})
        if self.kfp.login_page or self.kfp.page != LOGIN_PAGE:
            return self._send(200, self.kfp.page, "text/html; charset=utf-8")
        if self.kfp.other is not None:
            return self._json(200, self.kfp.other)
        if not parts.path.startswith(PREFIX):
            return self._send(
                200, b"<!doctype html><html><title>Kubeflow Central Dashboard</title></html>", "text/html"
            )
        if self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
            return self._refuse(request, Refused(401, "Request header error: there is no user identity header."))
        if isinstance(body, ValueError):
            return self._refuse(request, Refused(400, f"proto: syntax error: {body}"))
        try:
            return self._json(200, self.kfp.answer(request))
        except Refused as refused:
            return self._refuse(request, refused)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_CONNECT = _serve

    def _body(self, raw: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):
            message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw, policy=email.policy.HTTP)
            parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
            return parts["uploadfile"].get_payload(decode=True) if "uploadfile" in parts else b""
        try:
            return json.loads(raw) if raw else None
        except ValueError as error:
            return error

    def _fault(self, line: str) -> Fault | None:
        with self.kfp._lock:
            for fault in self.kfp._faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def _refuse(self, request: Request, refused: Refused) -> None:
        if request.path.endswith(("/upload", "/upload_version")):
            return self._json(refused.status, {"error_message": refused.message, "error_details": refused.message})
        code = GRPC.get(refused.status, 2)
        detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": refused.message}
        body = {"error": refused.message, "code": code, "message": refused.message, "details": [detail]}
        return self._json(refused.status, body)

    def _json(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        with suppress(OSError):  # a client that no longer waits
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _break(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *args: object) -> None:
        pass
