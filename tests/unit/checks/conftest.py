"""Small HTTP servers that the checks ask: a Kubernetes API with a few objects, and one that answers as it is told."""

import functools
import importlib.util
import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from components.adapters.kubernetes import Patience, connect
from pipeline.config import load_recipe
from pipeline.profile import load_profile

NAMESPACE = "team"


@contextmanager
def serving(answer):
    """Serve `answer(handler) -> (status, headers, body)` on a free port; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self):
            length = int(self.headers.get("Content-Length", 0))
            self.body = self.rfile.read(length)
            status, headers, body = answer(self)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Said:
    """A server that answers every path from a table, and what it was asked."""

    url: str
    table: dict
    asked: list = field(default_factory=list)


@pytest.fixture
def said():
    """A server whose answers a test writes into `table`: path -> (status, headers, body)."""
    known = Said("", {})

    def answer(handler):
        known.asked.append((handler.path, dict(handler.headers)))
        return known.table.get(handler.path, (404, {}, {"error": "no such path"}))

    with serving(answer) as known.url:
        yield known


@dataclass
class KubernetesApi:
    """A namespace's objects by (plural, name), the kinds that are served, and who may do what."""

    url: str = ""
    version: str = "v1.34.1"
    kinds: dict = field(
        default_factory=lambda: {
            "argoproj.io/v1alpha1": ["Workflow"],
            "trainer.kubeflow.org/v1alpha1": ["TrainJob", "TrainingRuntime"],
            "jobset.x-k8s.io/v1alpha2": ["JobSet"],
        }
    )
    objects: dict = field(default_factory=dict)
    refused: set = field(default_factory=set)
    """Permissions as "verb resource" that access reviews deny, for everybody."""
    forbidden: set = field(default_factory=set)
    """Plurals that are answered with 403."""
    reviews: list = field(default_factory=list)

    def put(self, plural, name, **content):
        self.objects[plural, name] = {"metadata": {"name": name, "namespace": NAMESPACE}, **content}

    def answer(self, handler):
        parts = urlsplit(handler.path).path.strip("/").split("/")
        if parts == ["version"]:
            return 200, {}, {"gitVersion": self.version}
        plural = next((part for part in parts if part.endswith("reviews")), "")
        if plural:
            return self.review(json.loads(handler.body), plural)
        group_version = "/".join(parts[1:3])
        if parts[0] == "apis" and len(parts) == 3:
            return self.discovery(group_version)
        if parts[0] == "apis" and group_version not in self.kinds:
            return 404, {}, b"404 page not found\n"
        return self.read(parts[parts.index(NAMESPACE) + 1 :] if NAMESPACE in parts else parts[2:])

    def discovery(self, group_version):
        if group_version not in self.kinds:
            return status(404, "not found")
        kinds = self.kinds[group_version]
        return 200, {}, {"resources": [{"name": f"{kind.lower()}s", "kind": kind} for kind in kinds]}

    def review(self, body, plural):
        self.reviews.append(body["spec"])
        if plural in self.forbidden:
            return status(403, f'{plural} is forbidden: User "dev" cannot create resource')
        wanted = body["spec"]["resourceAttributes"]
        said = f"{wanted['verb']} {wanted['resource']}" + (
            f"/{wanted['subresource']}" if wanted.get("subresource") else ""
        )
        return 201, {}, {**body, "status": {"allowed": said not in self.refused}}

    def read(self, parts):
        plural, name = [*parts, ""][:2]
        if plural in self.forbidden:
            return status(403, f'{plural} is forbidden: User "dev" cannot list resource')
        if not name:
            items = [value for (kind, _), value in self.objects.items() if kind == plural]
            return 200, {}, {"items": items, "metadata": {"resourceVersion": "1"}}
        found = self.objects.get((plural, name))
        return (200, {}, found) if found else status(404, f'{plural} "{name}" not found')


def status(code, message):
    return code, {}, {"kind": "Status", "code": code, "message": message, "reason": ""}


@pytest.fixture
def api():
    """A Kubernetes API with all that a run of the profile trainjob needs."""
    known = KubernetesApi()
    known.put("serviceaccounts", "reasrm")
    known.put("trainingruntimes", "reasrm-torch")
    known.put("secrets", "reasrm-s3", data={"AWS_ACCESS_KEY_ID": "eA==", "AWS_SECRET_ACCESS_KEY": "eA=="})
    known.put("secrets", "reasrm-mlflow", data={"MLFLOW_TRACKING_URI": "eA=="})
    for number in range(2):
        known.put("nodes", f"node-{number}", status={"allocatable": {"nvidia.com/gpu": "8"}})
    with serving(known.answer) as known.url:
        yield known


@pytest.fixture
def kubeconfig(api, tmp_path):
    path = tmp_path / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def cluster(kubeconfig):
    return connect(kubeconfig=str(kubeconfig), patience=Patience(0.1, 0.01, 0.01))


@pytest.fixture
def smoke(tmp_path):
    """Return the smoke recipe with settings changed; its base model is a folder that looks like one."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"weights")

    def load(*settings):
        return load_recipe("smoke", [f"base_model={model}", *settings])

    return load


@pytest.fixture
def profile():
    return load_profile("trainjob")


@pytest.fixture
def http_server():
    """`serving`, for answers that a table cannot say."""
    return serving


@functools.cache
def _kfp_server_type():
    path = Path(__file__).parents[1] / "kubeflow" / "kfp_server.py"
    spec = importlib.util.spec_from_file_location("checks_kfp_server", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.KfpServer


@pytest.fixture
def kfp_server():
    """A Kubeflow Pipelines server; see tests/unit/kubeflow/kfp_server.py."""
    with _kfp_server_type()() as server:
        yield server
