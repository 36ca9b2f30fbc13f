"""A real API server: the one that the kubeconfig in REASRM_TEST_KUBECONFIG reaches; all of it skips without.

The tests live in namespaces `reasrm-test-...` of their own, which they delete. Custom kinds that the server lacks are
installed for the session, from the CustomResourceDefinitions in the folder REASRM_TEST_CRDS or else from
tests/schemas, and removed after it; those that it has stay as they are. Nothing else is touched, and where the
cluster has nodes nothing is applied that would start a pod.
"""

import base64
import importlib.util
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.adapters.kubernetes import NODES, Cluster, Patience, connect

ROOT = Path(__file__).parents[2]
VARIABLE, CRDS = "REASRM_TEST_KUBECONFIG", "REASRM_TEST_CRDS"
WAIT_SECONDS = 90.0
SERVED_SECONDS = 30.0
"""Longest until a new kind is served."""
APPLY = (1, 22)
"""From when on server-side apply is good: before, it wants fields that have defaults, as a port's protocol."""
CONFLICT = 409
MANAGER = "reasrm-test"

Json = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@dataclass(frozen=True)
class Answer:
    """What the server said to one request."""

    status: int
    body: Json

    @property
    def taken(self) -> bool:
        return self.status < 300

    def __str__(self) -> str:
        return f"{self.status} {self.body.get('message', '')}"


@dataclass
class Server:
    """One identity at the API server."""

    kubeconfig: Path
    cluster: Cluster
    _kinds: dict[str, list[Json]] = field(default_factory=dict)

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor, *_ = self.cluster.version().lstrip("v").split(".")
        return int(major), int(minor)

    def ask(self, method: str, path: str, body: Any = None, content: str = "application/json", **query: str) -> Answer:
        """Send one request as it is."""
        from kubernetes.client import ApiException

        try:
            found, status, _ = self.cluster.client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
            )
        except ApiException as error:
            try:
                return Answer(error.status, yaml.safe_load(error.body))
            except yaml.YAMLError:
                return Answer(error.status, {"message": str(error.body)})
        return Answer(status, found)

    def path(self, item: Json, namespace: str) -> str | None:
        """Where an object lives; None where its kind is not served."""
        version = item["apiVersion"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if version not in self._kinds:
            answer = self.ask("GET", root)
            if not answer.taken:
                return None
            self._kinds[version] = answer.body["resources"]
        kind = next(
            (one for one in self._kinds[version] if one["kind"] == item["kind"] and "/" not in one["name"]), None
        )
        if kind is None:
            del self._kinds[version]
            return None
        place = f"/namespaces/{namespace}" if kind["namespaced"] else ""
        return f"{root}{place}/{kind['name']}/{item['metadata']['name']}"

    def apply(self, item: Json, namespace: str, *, dry_run: bool = False) -> Answer | None:
        """Apply an object, strictly where the server can; None where its kind is not served."""
        path = self.path(item, namespace)
        if path is None:
            return None
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        if self.version >= APPLY:
            return self.ask("PATCH", path, item, "application/apply-patch+yaml", **query, force="true")
        answer = self.ask("POST", path.rpartition("/")[0], item, **query)
        if answer.status == CONFLICT:
            return self.ask("PATCH", path, item, "application/merge-patch+json", **query)
        return answer

    def get(self, item: Json, namespace: str) -> Json | None:
        path = self.path(item, namespace)
        answer = self.ask("GET", path) if path else None
        return answer.body if answer and answer.taken else None

    @cached_property
    def has_nodes(self) -> bool:
        return bool(self.cluster.list(NODES).items)


def wait_until(reached: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def server() -> Server:
    """The server, as the user of the kubeconfig."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        pytest.skip(f"no API server to test against: {VARIABLE} names the kubeconfig of one (`make cluster-test`)")
    return Server(Path(path), connect(kubeconfig=path, namespace="default", patience=Patience(total=20)))


@pytest.fixture(scope="session")
def new_namespace(server: Server) -> Iterator[Callable[[], str]]:
    """A function that makes a namespace, which goes with the session."""
    made: list[str] = []

    def new() -> str:
        name = f"reasrm-test-{uuid.uuid4().hex[:8]}"
        answer = server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        assert answer.taken, answer
        made.append(name)
        return name

    yield new
    for name in made:
        server.ask("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def schemas() -> Any:
    """tests/schemas/validation.py."""
    path = ROOT / "tests/schemas/validation.py"
    spec = importlib.util.spec_from_file_location("reasrm_test_validation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kinds(server: Server, schemas: Any) -> Iterator[dict[str, str]]:
    """Every custom kind that we use is served: kind -> where its definition is from, or why the server refused it."""
    found, made = {}, []
    upstream = _definitions(os.environ.get(CRDS, ""))
    for version, kind in schemas.custom_kinds():
        sample = {"apiVersion": version, "kind": kind, "metadata": {"name": "any"}}
        if server.path(sample, "default"):
            found[kind] = "the server's own"
            continue
        definition = _fitted(upstream.get((version.partition("/")[0], kind)) or schemas.crd(kind))
        answer = server.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        if not answer.taken:
            found[kind] = f"refused: {answer}"
            continue
        made.append(definition["metadata"]["name"])
        wait_until(lambda sample=sample: server.path(sample, "default"), f"{kind} is served", SERVED_SECONDS)
        found[kind] = "the file" if (version.partition("/")[0], kind) in upstream else "tests/schemas"
    yield found
    for name in made:
        server.ask("DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")


def _definitions(folder: str) -> dict[tuple[str, str], Json]:
    items: list[Json] = []
    for path in sorted(Path(folder).glob("*.yaml")) if folder else ():
        items += [item for item in yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader) if item]
    wanted = (item for item in items if item["kind"] == "CustomResourceDefinition")
    return {(item["spec"]["group"], item["spec"]["names"]["kind"]): item for item in wanted}


def _fitted(definition: Json) -> Json:
    """A CRD as a server takes it that runs no conversion webhook of its project."""
    spec = {key: part for key, part in definition["spec"].items() if key != "conversion"}
    metadata = {"name": definition["metadata"]["name"], "annotations": definition["metadata"].get("annotations", {})}
    return {"apiVersion": definition["apiVersion"], "kind": definition["kind"], "metadata": metadata, "spec": spec}


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[Json]]:
    """A function that builds a folder of manifests/ into a namespace; a component is built upon the prod overlay."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")

    def objects(folder: str, namespace: str) -> list[Json]:
        around = tmp_path_factory.mktemp("kustomization").resolve()

        def inside(name: str) -> str:
            return os.path.relpath(ROOT / "manifests" / name, around)

        part = folder.startswith("components/")
        upon = "overlays/prod" if part else folder
        prod = yaml.safe_load((ROOT / "manifests/overlays/prod/kustomization.yaml").read_text(encoding="utf-8"))
        built: Json = {"namespace": namespace, "resources": [inside(upon)]}
        if part and f"../../{folder}" not in prod["components"]:
            built["components"] = [inside(folder)]
        text = yaml.safe_dump(built)
        (around / "kustomization.yaml").write_text(text, encoding="utf-8")
        done = subprocess.run([*command, str(around)], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [item for item in yaml.safe_load_all(done.stdout) if item]

    return objects


@pytest.fixture(scope="session")
def account(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Server]:
    """A function that logs in as a service account, with a token as its pods get one."""

    def login(namespace: str, name: str = "reasrm") -> Server:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = server.ask("POST", path, {"spec": {"expirationSeconds": 3600}})
        assert answer.taken, answer
        settings = server.cluster.client.configuration
        cluster: Json = {"server": settings.host}
        if settings.ssl_ca_cert:
            text = Path(settings.ssl_ca_cert).read_bytes()
            cluster["certificate-authority-data"] = base64.b64encode(text).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "account",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": answer.body["status"]["token"]}}],
            "contexts": [{"name": "account", "context": {"cluster": "test", "user": name, "namespace": namespace}}],
        }
        file = tmp_path_factory.mktemp("account") / "kubeconfig"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        return Server(file, connect(kubeconfig=str(file), patience=Patience(total=20)))

    return login
