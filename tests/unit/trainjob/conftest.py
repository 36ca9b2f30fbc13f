"""An API server to launch TrainJobs on, and somebody who plays Trainer, its controllers and the nodes.

With REASRM_TEST_KUBECONFIG the server is a real one (with Trainer's CustomResourceDefinitions); what needs faults on
demand is skipped there.
"""

import functools
import importlib.util
import os
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from components.adapters import kubernetes
from components.adapters.kubernetes import (
    CONFIG_MAPS,
    EVENTS,
    NAMESPACES,
    PODS,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    Patience,
)
from components.adapters.launch import Job
from components.adapters.trainjob import TrainJobSettings
from components.adapters.trainjob.informer import Pace as InformerPace
from components.adapters.trainjob.launcher import TrainJobLauncher
from components.adapters.trainjob.pace import Pace
from components.adapters.trainjob.spec import PODS_LABEL, build

KEY = "0123456789abcdef0123"
NAME = "reasrm-sft-0123456789ab"
REAL = "REASRM_TEST_KUBECONFIG"
SECONDS = 60.0
IMAGE = "reasrm/train@sha256:" + "ab" * 32
FAST = Pace(
    look=0.03,
    recent=5.0,
    poll=0.01,
    gone=1.0,
    fatal=0.15,
    settle=0.4,
    overdue=0.2,
    informer=InformerPace(watch=1.0, first=0.01, longest=0.05, lost=1.0, refused=0.6),
)
PATIENCE = Patience(total=2.0, first=0.01, longest=0.05)


@functools.cache
def _load(path):
    """Import a file: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"trainjob_tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def schema_errors():
    """Return what is wrong with an object by the strict schemas of its kind."""
    return _load(Path(__file__).parents[2] / "schemas" / "validation.py").errors


def until(look, what="it", seconds=SECONDS):
    """Wait until `look` returns something, and return that."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.004)


class Trainer:
    """Plays whoever else works on TrainJobs and pods; what it does goes through the API."""

    def __init__(self, cluster):
        self.cluster = cluster

    def job(self, name=NAME):
        """Return the TrainJob as soon as there is one that nobody ends."""

        def look():
            found = self.cluster.get(TRAIN_JOBS, name)
            return found if found and not found["metadata"].get("deletionTimestamp") else None

        return until(look, "the TrainJob")

    def pods(self, number=2, name=NAME):
        """Make the pods."""
        for index in range(number):
            self.cluster.create(
                PODS,
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{name}-node-0-{index}-x",
                        "labels": {
                            PODS_LABEL: name,
                            "batch.kubernetes.io/job-completion-index": str(index),
                        },
                    },
                    "spec": {
                        "schedulerName": "nobody",
                        "restartPolicy": "Never",
                        "containers": [{"name": "node", "image": IMAGE, "resources": {"limits": {"memory": "96Gi"}}}],
                    },
                },
            )

    def pod(self, index, name=NAME):
        return f"{name}-node-0-{index}-x"

    def status(self, index, **status):
        """Set a pod's status."""
        assert self.cluster.patch(PODS, self.pod(index), {"status": status}, subresource="status")

    def container(self, index, phase, **state):
        """Set the state of a pod's container."""
        one = {
            "name": "node",
            "image": IMAGE,
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        self.status(index, phase=phase, containerStatuses=[one])

    def run(self, number=2):
        """Let the pods run."""
        self.pods(number)
        for index in range(number):
            self.container(index, "Running", running={"startedAt": stamp()})

    def end(self, index, code=0, message="", reason=""):
        """Let a pod end."""
        self.container(
            index,
            "Failed" if code else "Succeeded",
            terminated={
                "exitCode": code, "message": message, "reason": reason or ("Error" if code else "Completed"),
                "finishedAt": stamp(),
            },
        )  # fmt: skip

    def condition(self, kind, reason="AllJobs", message="", status="True", name=NAME):
        """Set a condition of the TrainJob."""
        one = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": stamp()}
        assert self.cluster.patch(TRAIN_JOBS, name, {"status": {"conditions": [one]}}, subresource="status")

    def complete(self):
        """Let all end well."""
        for pod in self.cluster.list(PODS, labels=f"{PODS_LABEL}={NAME}").items:
            self.end(int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]))
        self.condition("Complete", "AllJobsCompleted")

    def collect(self, uid="", name=NAME):
        """Play the garbage collector behind a TrainJob that is being deleted in the foreground."""

        def look():
            found = self.cluster.get(TRAIN_JOBS, name)
            if found is None or (uid and found["metadata"]["uid"] != uid):
                return "gone"  # a real collector was quicker
            return "ending" if found["metadata"].get("deletionTimestamp") else None

        if until(look, "the deletion") == "ending":
            self.clear(name)
            if look() == "ending":
                self.cluster.patch(TRAIN_JOBS, name, {"metadata": {"finalizers": []}})

    def clear(self, name=NAME):
        """Delete the pods."""
        for pod in self.cluster.list(PODS, labels=f"{PODS_LABEL}={name}").items:
            self.cluster.delete(PODS, pod["metadata"]["name"], grace_seconds=0)

    def event(self, about, reason, message):
        """Note a warning about an object."""
        self.cluster.create(
            EVENTS,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{about}.{uuid.uuid4().hex[:8]}"},
                "involvedObject": {"name": about, "namespace": self.cluster.namespace},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": stamp(),
            },
        )

    def waiting_pod(self, name, phase="Running"):
        """Make a pod that waits for TrainJobs, such as a KFP task's; return what an owner reference says of it."""
        spec = {"schedulerName": "nobody", "containers": [{"name": "main", "image": IMAGE}]}
        pod = self.cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        self.cluster.patch(PODS, name, {"status": {"phase": phase}}, subresource="status")
        return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}


def stamp():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class World:
    """A namespace of a server, with a launcher for it."""

    def __init__(self, cluster, server):
        self.cluster, self.server = cluster, server
        self.trainer = Trainer(cluster)
        self.name = NAME

    until = staticmethod(until)

    def settings(self, **values):
        return TrainJobSettings.model_validate({"image": IMAGE, "gpus": 2} | values)

    def job(self, **values):
        common = {
            "stage": "sft",
            "arguments": ("--config", "{folder}/config.json", "--output", "{scratch}/output.json"),
            "nodes": 2,
            "processes": "auto",
            "files": {"config.json": '{"nodes": 2}'},
            "key": KEY,
            "run_arguments": ("--run-id", "run-1"),
            "environment": {"REASRM_RUN_NAME": "a run"},
        }
        return Job(**(common | values))

    def launcher(self, pace=None, **values):
        return TrainJobLauncher(self.settings(**values), self.cluster, replace(FAST, **(pace or {})))

    def wanted(self, **values):
        """Return the objects as the launcher makes them."""
        return build(self.job(**values), self.settings(), self.cluster.namespace, {})

    def launch(self, play, *, job=None, launcher=None):
        """Launch in this thread while `play` does what the rest of the cluster does, to its end."""
        wrong = []

        def run():
            try:
                play(self.trainer)
            except BaseException as error:
                wrong.append(error)
                self.cluster.delete(TRAIN_JOBS, NAME)

        player = threading.Thread(target=run, daemon=True)
        player.start()
        try:
            (launcher or self.launcher()).launch(job or self.job())
        finally:
            player.join(SECONDS)
            assert not player.is_alive()
            if wrong:
                raise wrong[0]

    def there(self, kind=TRAIN_JOBS):
        """Return the TrainJob (or its ConfigMap), or None."""
        return self.cluster.get(kind, NAME)

    def files(self):
        return self.cluster.get(CONFIG_MAPS, NAME)


@pytest.fixture
def world(tmp_path, monkeypatch, schema_errors):
    """A namespace with the TrainingRuntime and this process's own pod, on a fake server or on a real one."""
    namespace = f"team-{uuid.uuid4().hex[:8]}"
    real = os.environ.get(REAL)
    monkeypatch.setenv("REASRM_STOP_SECONDS", "1")
    for name in ("MLFLOW_RUN_ID", "KFP_POD_NAME", "KFP_POD_UID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    if real:
        cluster = kubernetes.connect(kubeconfig=real, namespace=namespace)
        if not cluster.has_api(TRAIN_JOBS.api_version, TRAIN_JOBS.name):
            pytest.skip(f"the cluster of {REAL} has no CustomResourceDefinition trainjobs.trainer.kubeflow.org")
        cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        with suppress(kubernetes.Conflict):  # a controller was quicker
            cluster.create(kubernetes.SERVICE_ACCOUNTS, account)
        yield furnish(World(cluster, None), monkeypatch)
        cluster.delete(NAMESPACES, namespace)
        return
    with _load(Path(__file__).with_name("api_server.py")).ApiServer(schema_errors) as server:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", namespace)
        cluster = kubernetes.connect(kubeconfig=str(kubeconfig), patience=PATIENCE)
        yield furnish(World(cluster, server), monkeypatch)


def furnish(world, monkeypatch):
    """Make what is there before a run."""
    runtime = {
        "apiVersion": TRAINING_RUNTIMES.api_version,
        "kind": "TrainingRuntime",
        "metadata": {"name": "reasrm-torch"},
        "spec": {"mlPolicy": {"torch": {}}, "template": {"spec": {"replicatedJobs": []}}},
    }
    world.cluster.create(TRAINING_RUNTIMES, runtime)
    world.me = world.trainer.waiting_pod("task-1")
    monkeypatch.setenv("KFP_POD_NAME", "task-1")
    monkeypatch.setenv("KFP_POD_UID", world.me["uid"])
    return world


@pytest.fixture
def faulty(world):
    """The same on a server that fails on demand."""
    if world.server is None:
        pytest.skip("a real API server does not fail on demand")
    return world
