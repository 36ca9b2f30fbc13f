"""A Kubernetes API server as far as the launcher speaks to one: objects with versions, watches as streams, logs.

Beside that it fails on demand: refusals, cut connections, forgotten versions, restarts.
"""

import copy
import json
import re
import socket
import struct
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TRAINER = "trainer.kubeflow.org/v1alpha1"
SERVED = {
    "v1": {
        "pods": "Pod", "events": "Event", "configmaps": "ConfigMap", "secrets": "Secret", "nodes": "Node",
        "namespaces": "Namespace", "resourcequotas": "ResourceQuota",
    },
    TRAINER: {"trainjobs": "TrainJob", "trainingruntimes": "TrainingRuntime"},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}  # fmt: skip
CLUSTER_WIDE = {"nodes", "namespaces", "selfsubjectaccessreviews"}
PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)


class Refused(Exception):
    def __init__(self, code, reason, message, headers=()):
        super().__init__(message)
        self.code, self.reason, self.headers = code, reason, dict(headers)


@dataclass
class Fault:
    method: str
    path: str
    code: int | None
    """None: the connection is cut instead of an answer."""
    times: int
    reason: str = "InternalError"
    message: str = "made to fail"
    headers: dict = field(default_factory=dict)
    is_status: bool = True
    after: bool = False
    """Do what was asked, then fail."""


@dataclass
class Change:
    version: int
    plural: str
    namespace: str
    kind: str
    item: dict


class ApiServer:
    """The server; `validate(item)` returns what is wrong with a custom object."""

    def __init__(self, validate):
        self.validate = validate
        self.served = copy.deepcopy(SERVED)
        self.items = {}
        """(plural, namespace, name) -> object."""
        self.changes = []
        self.version = 100
        self.compacted = 0
        self.lock = threading.Condition()
        self.faults = []
        self.logs = {}
        """Pod -> lines, each a pair of its RFC 3339 time and its text."""
        self.requests = []
        self.denied = set()
        """(verb, plural) that nobody may do."""
        self.watching = 0
        self.port = 0
        self._server = None
        self._sockets = set()
        self._closing = False

    # Faults

    def fail(self, method, path, code, times=1, **values):
        """Let the next requests whose path matches fail."""
        with self.lock:
            self.faults.append(Fault(method, path, code, times, **values))

    def forget(self):
        """Forget all changes: versions before now are too old."""
        with self.lock:
            self.compacted = self.version
            self.changes.clear()
            self.version += 1

    def cut(self):
        """Cut every open connection, in the middle of whatever it says."""
        with self.lock:
            for connection in list(self._sockets):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def start(self):
        self._closing = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # an answer is written in two pieces

            def setup(self):
                super().setup()
                with server.lock:
                    server._sockets.add(self.connection)

            def finish(self):
                with server.lock:
                    server._sockets.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def log_message(self, *_):
                pass

            def _any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else b""
                try:
                    server.answer(self, self.command, body)
                except (ConnectionError, BrokenPipeError):
                    self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = _any

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request, client_address):
                pass  # cut connections

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        """Go away; what is stored stays."""
        with self.lock:
            self._closing = True
            self.lock.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def kubeconfig(self, path, namespace):
        """Write a kubeconfig for this server."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": "token-of-a-test"}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        }
        path.write_text(json.dumps(config))
        return path

    # Answers

    def answer(self, handler, method, body):
        url = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        with self.lock:
            self.requests.append((method, handler.path))
            fault = next(
                (f for f in self.faults if f.method == method and f.times and re.search(f.path, handler.path)), None
            )
            if fault is not None:
                fault.times -= 1
        try:
            if handler.headers.get("Authorization") != "Bearer token-of-a-test":
                raise Refused(401, "Unauthorized", "Unauthorized")
            if fault is None or fault.after:
                result = self._do(handler, method, url.path, query, body)
            if fault is not None:
                if fault.code is None:
                    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    handler.connection.close()
                    raise ConnectionError
                if not fault.is_status:
                    self._send(handler, fault.code, fault.message.encode(), "text/plain")
                    return
                raise Refused(fault.code, fault.reason, fault.message, fault.headers)
        except Refused as error:
            status = {
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": str(error),
                "reason": error.reason, "code": error.code,
            }  # fmt: skip
            self._send(handler, error.code, json.dumps(status).encode(), headers=error.headers)
            return
        if result is not None:
            code, item = result
            self._send(handler, code, json.dumps(item).encode())

    def _send(self, handler, code, data, kind="application/json", headers=()):
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def _do(self, handler, method, path, query, body):
        if path == "/version":
            return 200, {"gitVersion": "v1.34.0"}
        for group_version, kinds in self.served.items():
            if path in (f"/api/{group_version}", f"/apis/{group_version}"):
                resources = [{"name": plural, "kind": kind} for plural, kind in kinds.items()]
                return 200, {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}
        match = PATH.match(path)
        group_version = match and (match["core"] or match["group"])
        if match is None or match["plural"] not in self.served.get(group_version, ()):
            self._send(handler, 404, b"404 page not found\n", "text/plain")
            return None
        plural, namespace, name, sub = match["plural"], match["namespace"] or "", match["name"], match["sub"]
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method)
        verb = verb or ("watch" if "watch" in query else "get" if name else "list")
        full = f"{plural}/{sub}" if sub else plural
        if (verb, full) in self.denied:
            group = group_version.rpartition("/")[0]
            raise Refused(
                403, "Forbidden",
                f'{full}.{group} is forbidden: User "system:serviceaccount:team:reasrm" cannot {verb} resource '
                f'"{full}" in API group "{group}" in the namespace "{namespace}"',
            )  # fmt: skip
        if sub == "log":
            return self._log(handler, namespace, name, query)
        if verb == "watch":
            return self._watch(handler, plural, namespace, query)
        data = json.loads(body) if body else {}
        with self.lock:
            if verb == "create":
                return 201, self._create(group_version, plural, namespace, data)
            if verb == "list":
                return 200, self._list(group_version, plural, namespace, query)
            if (plural, namespace, name) not in self.items:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            if verb == "get":
                return 200, self.items[plural, namespace, name]
            if verb == "patch":
                return 200, self._patch(handler, plural, namespace, name, sub, data)
            return 200, self._delete(plural, namespace, name, data)

    def _create(self, group_version, plural, namespace, item):
        if plural == "selfsubjectaccessreviews":
            asked = item["spec"]["resourceAttributes"]
            full = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            denied = (asked["verb"], full) in self.denied
            return item | {"status": {"allowed": not denied, "reason": "no role" if denied else ""}}
        name = item["metadata"].get("name") or item["metadata"]["generateName"] + uuid.uuid4().hex[:5]
        if (plural, namespace, name) in self.items:
            raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
        wrong = self.validate(item) if "/" in group_version else []
        if wrong:
            raise Refused(422, "Invalid", f'{item["kind"]} "{name}" is invalid: {"; ".join(wrong)}')
        item = copy.deepcopy(item)
        item["metadata"] |= {
            "name": name, "namespace": namespace, "uid": str(uuid.uuid4()), "generation": 1,
            "creationTimestamp": now(),
        }  # fmt: skip
        if plural in ("trainjobs", "pods"):
            item.pop("status", None)
        if plural == "trainjobs":
            item["spec"] = {"suspend": False, "managedBy": "trainer.kubeflow.org/trainjob-controller"} | item["spec"]
        if plural == "pods":
            item["status"] = {"phase": "Pending"}
        return self._store("ADDED", plural, namespace, item)

    def _list(self, group_version, plural, namespace, query):
        found = [
            item
            for (other, place, _), item in sorted(self.items.items())
            if other == plural and (place == namespace or not namespace) and selected(item, query)
        ]
        metadata = {"resourceVersion": str(self.version)}
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 0))
        if limit and start + limit < len(found):
            metadata["continue"] = str(start + limit)
        kind = self.served[group_version][plural]
        items = found[start : start + limit] if limit else found
        return {"kind": f"{kind}List", "apiVersion": group_version, "metadata": metadata, "items": items}

    def _patch(self, handler, plural, namespace, name, sub, change):
        assert handler.headers["Content-Type"] == "application/merge-patch+json"
        old = self.items[plural, namespace, name]
        asked = change.get("metadata", {}).get("resourceVersion")
        if asked is not None and asked != old["metadata"]["resourceVersion"]:
            raise Refused(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        new = merge(copy.deepcopy(old), change)
        if plural in ("trainjobs", "pods"):
            kept = "status" if sub != "status" else "spec"
            if kept in old:
                new[kept] = old[kept]
            else:
                new.pop(kept, None)
        if plural == "trainjobs" and sub != "status":
            wrong = self.validate(
                {key: new[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": name}}
            )
            for immutable in ("trainer", "runtimeRef", "activeDeadlineSeconds"):
                if new["spec"].get(immutable) != old["spec"].get(immutable):
                    wrong.append(f"spec.{immutable}: field is immutable")
            if wrong:
                raise Refused(422, "Invalid", "; ".join(wrong))
        if old.get("immutable") and (new.get("data") != old.get("data")):
            raise Refused(422, "Invalid", "data: Forbidden: field is immutable when `immutable` is set")
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            return self._remove(plural, namespace, new)
        return self._store("MODIFIED", plural, namespace, new)

    def _delete(self, plural, namespace, name, options):
        item = copy.deepcopy(self.items[plural, namespace, name])
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != item["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"the UID in the precondition ({wanted}) does not match the UID in record")
        graceful = plural == "pods" and item["spec"].get("nodeName") and options.get("gracePeriodSeconds") != 0
        if graceful or options.get("propagationPolicy") == "Foreground" or item["metadata"].get("finalizers"):
            if not graceful:
                held = item["metadata"].get("finalizers") or []
                item["metadata"]["finalizers"] = [*held, "foregroundDeletion"]
            if "deletionTimestamp" not in item["metadata"]:
                item["metadata"]["deletionTimestamp"] = now()
                self._store("MODIFIED", plural, namespace, item)
            return item
        self._remove(plural, namespace, item)
        return {"kind": "Status", "status": "Success"}

    def _remove(self, plural, namespace, item):
        self._store("DELETED", plural, namespace, item)
        del self.items[plural, namespace, item["metadata"]["name"]]
        return item

    def _store(self, kind, plural, namespace, item):
        self.version += 1
        item = copy.deepcopy(item)
        item["metadata"]["resourceVersion"] = str(self.version)
        self.items[plural, namespace, item["metadata"]["name"]] = item
        self.changes.append(Change(self.version, plural, namespace, kind, item))
        self.lock.notify_all()
        return item

    @contextmanager
    def _stream(self, handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def write(text):
            data = text.encode()
            half = len(data) // 2  # a chunk is no line
            for part in (data[:half], data[half:]):
                if part:
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            handler.wfile.flush()

        yield write
        handler.wfile.write(b"0\r\n\r\n")

    def _watch(self, handler, plural, namespace, query):
        sent, end = int(query["resourceVersion"]), time.monotonic() + float(query["timeoutSeconds"])
        with self._stream(handler) as write:
            with self.lock:
                self.watching += 1
            try:
                while time.monotonic() < end and not self._closing:
                    with self.lock:
                        latest = self.version
                        if sent < self.compacted:
                            message = f"too old resource version: {sent} ({self.compacted})"
                            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": message}
                            lines = [{"type": "ERROR", "object": gone}]
                        else:
                            lines = [
                                {"type": change.kind, "object": change.item}
                                for change in self.changes
                                if change.version > sent
                                and change.plural == plural
                                and change.namespace == namespace
                                and selected(change.item, query)
                            ]
                            if not lines and self.version > sent:
                                mark = {"kind": "X", "metadata": {"resourceVersion": str(self.version)}}
                                lines = [{"type": "BOOKMARK", "object": mark}]
                            if not lines:
                                self.lock.wait(min(0.05, max(0.0, end - time.monotonic())))
                        sent = max(latest, sent)
                    for line in lines:
                        write(json.dumps(line) + "\n")
                    if lines and lines[0]["type"] == "ERROR":
                        return
            finally:
                with self.lock:
                    self.watching -= 1

    def _log(self, handler, namespace, name, query):
        def pod():
            return self.items.get(("pods", namespace, name))

        with self.lock:
            if pod() is None:
                raise Refused(404, "NotFound", f'pods "{name}" not found')
            statuses = pod()["status"].get("containerStatuses")
            if not statuses or "waiting" in statuses[0]["state"]:
                raise Refused(
                    400, "BadRequest", f'container "node" in pod "{name}" is waiting to start: PodInitializing'
                )
        since = query.get("sinceTime", "")
        since = since and since.partition(".")[0].removesuffix("Z") + "Z"  # the API knows whole seconds only
        lines = [line for line in self.logs.get(name, []) if not since or line[0] >= since.removesuffix("Z")]
        done = len(self.logs.get(name, []))
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :]
        with self._stream(handler) as write:
            while True:
                for moment, text in lines:
                    write(f"{moment} {text}\n" if query.get("timestamps") else f"{text}\n")
                with self.lock:
                    running = pod() is not None and "running" in pod()["status"]["containerStatuses"][0]["state"]
                    lines = self.logs.get(name, [])[done:]
                    done += len(lines)
                    if not lines:
                        if query.get("follow") != "true" or not running or self._closing:
                            return
                        self.lock.wait(0.02)


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge(item, change):
    """RFC 7396."""
    for key, value in change.items():
        if value is None:
            item.pop(key, None)
        elif isinstance(value, dict):
            item[key] = merge(item.get(key) if isinstance(item.get(key), dict) else {}, value)
        else:
            item[key] = value
    return item


def selected(item, query):
    """Say whether the selectors of a list leave an object."""
    labels = item["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if labels.get(key) != value:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = part.partition("=")
        found = item
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True
