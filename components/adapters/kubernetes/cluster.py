"""Requests to the Kubernetes API.

Every call that fails for now (no connection, 429, 5xx) is tried again for a while before it raises Transient.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tenacity

from components.adapters.kubernetes.errors import Gone, NotFound, Question, Unavailable, translated
from components.adapters.kubernetes.kinds import EVENTS, NODES, PODS, SECRETS, Kind, Object, event_time
from components.adapters.kubernetes.streams import Stream, Watch
from components.core.errors import InvalidInput

logger = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAGE = 500
"""Objects that one answer to a list holds."""
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_STREAM_GRACE_SECONDS = 30.0
"""How much longer than it was asked to last a watch is waited for before the connection counts as dead."""

Propagation = Literal["Background", "Foreground", "Orphan"]
_ACCESS_REVIEWS = Kind(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
_METHODS = {
    "get": "GET", "list": "GET", "watch": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE",
}  # fmt: skip


@dataclass(frozen=True)
class Patience:
    """How long calls are tried again, in seconds."""

    total: float = 120.0
    first: float = 0.5
    longest: float = 15.0


@dataclass(frozen=True)
class Listing:
    """The objects of a list, and the version from which a watch goes on."""

    items: list[Object]
    version: str


@dataclass(frozen=True)
class Access:
    """What the API says to `can_i`."""

    allowed: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.allowed


def in_cluster() -> bool:
    """Say whether this process runs in a pod that may talk to the API."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def connect(
    context: str | None = None, namespace: str = "", *, kubeconfig: str | None = None, patience: Patience | None = None
) -> "Cluster":
    """Connect as this pod's service account, or as kubeconfig says; `namespace` wins over theirs.

    Raises:
        InvalidInput: there is neither, or it cannot be used.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    settings.retries = False
    try:
        if in_cluster() and context is None and kubeconfig is None:
            config.load_incluster_config(client_configuration=settings)
            own = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
            identity = "the service account of this pod"
        else:
            config.load_kube_config(kubeconfig, context, client_configuration=settings)
            contexts, current = config.list_kube_config_contexts(kubeconfig)
            found = next((one for one in contexts if one["name"] == context), current)
            own = found["context"].get("namespace", "default")
            identity = f"the user of kubeconfig's context {found['name']}"
    except (config.ConfigException, OSError) as error:
        raise InvalidInput(
            f"no Kubernetes cluster to talk to: {error}; in a pod mount the service account's token "
            "(automountServiceAccountToken), elsewhere set KUBECONFIG or give a context of it"
        ) from error
    return Cluster(client.ApiClient(settings), namespace or own, identity, patience or Patience())


@dataclass
class Cluster:
    """The API of one cluster, with one namespace in mind; may be used by several threads.

    Every method raises Forbidden or NotServed (InvalidInput), or Transient where it says nothing else.
    """

    client: Any
    namespace: str
    identity: str = "this process"
    patience: Patience = field(default_factory=Patience)

    def get(self, kind: Kind, name: str, *, namespace: str = "") -> Object | None:
        """Return an object, or None where there is none."""
        return self._object("get", kind, name, namespace=namespace)

    def list(self, kind: Kind, *, labels: str = "", fields: str = "", namespace: str = "") -> Listing:
        """Return all objects that the selectors leave."""
        items: list[Object] = []
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE), "continue": ""}
        while True:
            try:
                page = self._object("list", kind, query=query, namespace=namespace) or {}
            except Gone:  # the list was too slow for its own pages
                items, query = [], query | {"limit": "", "continue": ""}
                continue
            items += page.get("items") or []
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                return Listing(items, page["metadata"]["resourceVersion"])

    def create(self, kind: Kind, body: Object, *, namespace: str = "") -> Object:
        """Create an object. Raises Conflict where one of that name exists, InvalidInput where the API refuses it."""
        return self._object("create", kind, body=body, namespace=namespace) or {}

    def patch(
        self, kind: Kind, name: str, change: Object, *, subresource: str = "", namespace: str = ""
    ) -> Object | None:
        """Apply a JSON merge patch and return the object, or None where there is none.

        A `metadata.resourceVersion` in the change makes it conditional: Conflict where the object is another by now.
        """
        return self._object("patch", kind, name, body=change, subresource=subresource, namespace=namespace)

    def delete(
        self,
        kind: Kind,
        name: str,
        *,
        uid: str = "",
        propagation: Propagation = "Background",
        grace_seconds: int | None = None,
        namespace: str = "",
    ) -> bool:
        """Ask for an object's end; say whether there was one. Raises Conflict where its uid is another."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return self._object("delete", kind, name, body=options, namespace=namespace) is not None

    @contextmanager
    def watch(
        self,
        kind: Kind,
        version: str,
        *,
        labels: str = "",
        fields: str = "",
        seconds: float = 240.0,
        namespace: str = "",
    ) -> Iterator[Watch]:
        """Open the changes since a version, for some seconds; they are read outside of any retry.

        Raises Gone (list again) or Unavailable when opened or read.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        response = self._call("watch", kind, query=query, namespace=namespace, read=seconds + _STREAM_GRACE_SECONDS)
        stream = Stream(response)
        try:
            yield Watch(stream)
        finally:
            stream.discard()

    def logs(
        self,
        pod: str,
        *,
        container: str = "",
        follow: bool = False,
        tail: int | None = None,
        since: str = "",
        previous: bool = False,
        timestamps: bool = False,
        namespace: str = "",
        seconds: float = _READ_SECONDS,
    ) -> Stream | None:
        """Return a pod's log, or None where there is no such pod.

        `since` is an RFC 3339 time; `seconds` is how long a followed log may be silent. InvalidInput says that the
        container has not started yet.
        """
        query = {
            "container": container,
            "follow": "true" if follow else "",
            "tailLines": "" if tail is None else str(tail),
            "sinceTime": since,
            "previous": "true" if previous else "",
            "timestamps": "true" if timestamps else "",
        }
        try:
            return Stream(
                self._retried(
                    lambda: self._call("get", PODS, pod, "log", query=query, namespace=namespace, read=seconds)
                )
            )
        except NotFound:
            return None

    def events(self, name: str, *, uid: str = "", namespace: str = "") -> Sequence[Object]:
        """Return what was noted of an object of that name, oldest first."""
        fields = f"involvedObject.name={name}" + (f",involvedObject.uid={uid}" if uid else "")
        found = self.list(EVENTS, fields=fields, namespace=namespace).items
        return sorted(found, key=event_time)

    def secret_keys(self, name: str, *, namespace: str = "") -> set[str] | None:
        """Return the names of a secret's keys, never their values, or None where there is no such secret."""
        found = self.get(SECRETS, name, namespace=namespace)
        return None if found is None else set(found.get("data") or {})

    def allocatable(self, resource: str) -> dict[str, float]:
        """Return how much of a resource (`nvidia.com/gpu`, `cpu`, `memory` in bytes) each node offers to pods."""
        nodes = self.list(NODES).items
        return {node["metadata"]["name"]: quantity(node["status"]["allocatable"].get(resource, "0")) for node in nodes}

    def can_i(
        self, verb: str, group: str, resource: str, *, subresource: str = "", name: str = "", namespace: str = ""
    ) -> Access:
        """Ask whether this identity may do something (SelfSubjectAccessReview)."""
        attributes = {
            "namespace": namespace or self.namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "name": name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }
        answer = self.create(_ACCESS_REVIEWS, review)["status"]
        return Access(bool(answer.get("allowed")), str(answer.get("reason") or answer.get("evaluationError") or ""))

    def has_api(self, group_version: str, kind: str) -> bool:
        """Say whether the API serves a kind, such as `TrainJob` of `trainer.kubeflow.org/v1alpha1`."""
        root = "/apis" if "/" in group_version else "/api"
        try:
            found = self._json(lambda: self._send("GET", f"{root}/{group_version}"))
        except NotFound:
            return False
        return any(resource["kind"] == kind and "/" not in resource["name"] for resource in found["resources"])

    def version(self) -> str:
        """Return the version of the API server, such as v1.33.2."""
        return str(self._json(lambda: self._send("GET", "/version"))["gitVersion"])

    def _object(self, verb: str, kind: Kind, name: str = "", **values: Any) -> Object | None:
        subresource = values.pop("subresource", "")
        try:
            return self._json(lambda: self._call(verb, kind, name, subresource, **values))
        except NotFound as error:
            if name:
                return None
            raise InvalidInput(f"cannot {verb} {kind}: {error}; see that the namespace exists") from error

    def _json(self, call: Callable[[], Any]) -> Object:
        found: Object = self._retried(lambda: _parse(call()))
        return found

    def _retried(self, call: Callable[[], Any]) -> Any:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=tenacity.stop_after_delay(self.patience.total),
            wait=self._wait,
            before_sleep=_say,
            reraise=True,
        )
        return retrying(call)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, Unavailable) else 0.0
        patience = self.patience
        grown = tenacity.wait_random_exponential(multiplier=patience.first, max=patience.longest)(state)
        return max(grown, min(asked, patience.longest))

    def _call(
        self,
        verb: str,
        kind: Kind,
        name: str = "",
        subresource: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        namespace: str = "",
        read: float = _READ_SECONDS,
    ) -> Any:
        """Send one request about a kind and return the open answer."""
        place = (namespace or self.namespace) if kind.namespaced else ""
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        parts = [root, *(["namespaces", place] if place else []), kind.plural, name, subresource]
        question = Question(self.identity, verb, kind, name, subresource, place)
        return self._send(_METHODS[verb], "/".join(part for part in parts if part), question, query, body, read)

    def _send(
        self,
        method: str,
        path: str,
        question: Question | None = None,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        read: float = _READ_SECONDS,
    ) -> Any:
        """Send one request and return the open answer. Raises what its status stands for."""
        import urllib3
        from kubernetes.client import ApiException

        host = self.client.configuration.host
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            response, *_ = self.client.call_api(
                path,
                method,
                query_params=[(key, value) for key, value in (query or {}).items() if value],
                header_params={"Accept": "application/json", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(_CONNECT_SECONDS, read),
            )
        except ApiException as error:
            if not error.status:
                raise InvalidInput(
                    f"the certificate of the Kubernetes API at {host} is not accepted: {error.reason}; see "
                    "certificate-authority in kubeconfig"
                ) from error
            raise translated(error, question or Question(self.identity, "get", None, path)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"the Kubernetes API at {host} cannot be reached: {error}") from error
        return response


def quantity(text: str | float) -> float:
    """Return a resource quantity (`500m`, `96Gi`) as a number. Raises InvalidInput for anything else."""
    from kubernetes.utils.quantity import parse_quantity

    try:
        return float(parse_quantity(str(text)))
    except (ValueError, ArithmeticError) as error:
        raise InvalidInput(f"{text!r} is no quantity of Kubernetes; write it as in 500m, 2, 96Gi") from error


def _parse(response: Any) -> Object:
    import urllib3

    try:
        found: Object = json.loads(response.data)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise Unavailable(f"the answer of the Kubernetes API broke off or is no JSON: {error}") from error
    return found


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    logger.warning("%s; trying again in %.1f s", error, wait)
