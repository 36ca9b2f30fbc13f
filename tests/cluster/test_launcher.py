"""The launcher of TrainJobs as the service account of a run, against a real API server.

Trainer is not there: a thread of the test makes the pods and writes the status as it would. Where the cluster has
nodes, a real Trainer may be there too, so all of it skips.
"""

import threading
import time
import uuid
from datetime import UTC, datetime

import pytest

from components.adapters import torchrun
from components.adapters.kubernetes import CONFIG_MAPS, PODS, TRAIN_JOBS, Conflict
from components.adapters.launch import Failure, Job
from components.adapters.trainjob.informer import Pace as InformerPace
from components.adapters.trainjob.launcher import PODS_LABEL, Pace, TrainJobLauncher
from components.adapters.trainjob.owners import POD_NAME, POD_UID, references
from components.adapters.trainjob.settings import TrainJobSettings
from components.adapters.trainjob.state import INDEX_LABEL
from components.core.errors import InvalidInput, Transient

QUICK = Pace(look=0.5, poll=0.1, settle=2.0, informer=InformerPace(first=0.1))
SETTINGS = TrainJobSettings(
    image="reasrm/train:0.1.0", gpus=0, cpu="1", memory="1Gi", secrets={"reasrm-s3": ("AWS_SECRET_ACCESS_KEY",)}
)
JOIN_SECONDS = 60


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Trainer:
    """What Kubeflow Trainer and the nodes do: pods of a job, and how they end."""

    def __init__(self, server, namespace):
        self.cluster, self.namespace = server.cluster, namespace

    def start(self, job):
        """Make the job's pods and let them run."""
        name = job["metadata"]["name"]
        owner = {"apiVersion": TRAIN_JOBS.api_version, "kind": "TrainJob", "name": name, "uid": job["metadata"]["uid"]}
        for number in range(job["spec"]["trainer"]["numNodes"]):
            labels = {PODS_LABEL: name, INDEX_LABEL: str(number)}
            metadata = {"name": f"{name}-node-0-{number}", "labels": labels, "ownerReferences": [owner]}
            spec = {"schedulerName": "nobody", "containers": [{"name": "node", "image": "local/none"}]}
            self.cluster.create(PODS, {"metadata": metadata, "spec": spec}, namespace=self.namespace)
            self._set(number, name, "Running", {"running": {"startedAt": now()}})

    def end(self, job, *, error=None):
        """Let the pods end: well, or the second one badly and then the others."""
        name = job["metadata"]["name"]
        for number in range(job["spec"]["trainer"]["numNodes"]):
            bad = error is not None and number == 1
            left = {"exitCode": 1 if bad else 0, "finishedAt": now(), "reason": "Error" if bad else "Completed"}
            left |= {"message": torchrun.encode(error).decode()} if bad else {}
            self._set(number, name, "Failed" if bad else "Succeeded", {"terminated": left})
        kind = "Complete" if error is None else "Failed"
        condition = {
            "type": kind,
            "status": "True",
            "reason": f"Jobs{kind}",
            "message": "",
            "lastTransitionTime": now(),
        }
        change = {"status": {"conditions": [condition]}}
        assert self.cluster.patch(TRAIN_JOBS, name, change, subresource="status", namespace=self.namespace)

    def _set(self, number, name, phase, state):
        status = {"name": "node", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        change = {"status": {"phase": phase, "containerStatuses": [status]}}
        self.cluster.patch(PODS, f"{name}-node-0-{number}", change, subresource="status", namespace=self.namespace)


@pytest.fixture(scope="module")
def namespace(server, kinds, build, new_namespace):
    if server.has_nodes:
        pytest.skip("this cluster has nodes, where a TrainJob would start")
    name = new_namespace()
    for item in build("overlays/prod", name):
        if item["kind"] in {"ServiceAccount", "Role", "RoleBinding", "TrainingRuntime"}:
            answer = server.apply(item, name)
            assert answer is not None
            assert answer.taken, answer
    return name


@pytest.fixture
def trainer(server, namespace):
    return Trainer(server, namespace)


@pytest.fixture(scope="module")
def pods(account, namespace):
    return account(namespace).cluster


@pytest.fixture
def work():
    return Job(
        "sft",
        ("--config", "{folder}/config.json"),
        nodes=2,
        processes=1,
        files={"config.json": "{}"},
        key=uuid.uuid4().hex,
    )


@pytest.fixture
def owner(server, namespace, monkeypatch):
    """A function that makes the pod of a run's task and makes this process it."""

    def make(name):
        spec = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "local/none"}]}
        pod = server.cluster.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace=namespace)
        monkeypatch.setenv(POD_NAME, name)
        monkeypatch.setenv(POD_UID, pod["metadata"]["uid"])
        return pod

    return make


class Launched:
    """A launcher at work in a thread."""

    def __init__(self, cluster, job, settings=SETTINGS):
        self.error = None
        self._launcher, self._job = TrainJobLauncher(settings, cluster, QUICK), job
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._launcher.launch(self._job)
        except Exception as error:
            self.error = error

    def ended(self):
        self._thread.join(JOIN_SECONDS)
        assert not self._thread.is_alive(), "the launcher still waits"
        return self.error


@pytest.fixture
def made(server, namespace, until):
    """A function that waits for the TrainJob of a task's pod."""

    def find(owner_name):
        def look():
            jobs = server.cluster.list(TRAIN_JOBS, namespace=namespace).items
            return [job for job in jobs if owner_name in {one["name"] for one in references(job)}]

        return until(look, f"the TrainJob of {owner_name} is made")[0]

    return find


def left(server, namespace, name):
    return [kind.name for kind in (TRAIN_JOBS, CONFIG_MAPS) if server.cluster.get(kind, name, namespace=namespace)]


def test_a_job_that_ends_well_leaves_nothing(server, namespace, pods, trainer, owner, made, work, until):
    owner("well")
    launched = Launched(pods, work)
    job = made("well")
    name = job["metadata"]["name"]
    files = until(lambda: server.cluster.get(CONFIG_MAPS, name, namespace=namespace), "the job's files are there")
    assert files["data"] == {"config.json": "{}"}
    assert [(one["kind"], one["name"]) for one in references(files)] == [("TrainJob", name)]
    assert job["spec"]["trainer"]["numNodes"] == 2
    trainer.start(job)
    trainer.end(job)
    assert launched.ended() is None
    until(lambda: left(server, namespace, job["metadata"]["name"]) == [], "the job and its files are gone")


def test_a_job_that_fails_says_what_its_process_said(server, namespace, pods, trainer, owner, made, work):
    owner("badly")
    launched = Launched(pods, work)
    job = made("badly")
    trainer.start(job)
    trainer.end(job, error=Failure(1, InvalidInput.exit_code, time.time(), "learning_rate is -1"))
    error = launched.ended()
    assert isinstance(error, InvalidInput), error
    assert "learning_rate is -1" in str(error)
    assert f"{job['metadata']['name']}-node-0-1" in str(error)
    assert left(server, namespace, job["metadata"]["name"]) == ["TrainJob", "ConfigMap"]


def test_a_task_that_is_started_again_waits_for_the_same_job(
    server, namespace, pods, trainer, owner, made, work, until
):
    first_pod = owner("task-1")
    first = Launched(pods, work)
    job = made("task-1")
    trainer.start(job)
    owner("task-2")
    second = Launched(pods, work)
    again = made("task-2")
    assert again["metadata"]["uid"] == job["metadata"]["uid"]
    assert {one["name"] for one in references(again)} == {"task-1", "task-2"}
    server.cluster.delete(PODS, "task-1", uid=first_pod["metadata"]["uid"], grace_seconds=0, namespace=namespace)
    time.sleep(2)  # the garbage collector would be as quick with a job that it may take
    assert "TrainJob" in left(server, namespace, job["metadata"]["name"])
    trainer.end(job)
    assert first.ended() is None
    assert second.ended() is None
    until(lambda: left(server, namespace, job["metadata"]["name"]) == [], "the job and its files are gone")


def test_a_job_goes_when_its_task_is_deleted_and_the_launcher_notices(
    server, namespace, pods, trainer, owner, made, work, until
):
    pod = owner("deleted")
    launched = Launched(pods, work)
    job = made("deleted")
    trainer.start(job)
    server.cluster.delete(PODS, "deleted", uid=pod["metadata"]["uid"], grace_seconds=0, namespace=namespace)
    until(lambda: left(server, namespace, job["metadata"]["name"]) == [], "the job and its files are gone")
    assert isinstance(launched.ended(), Transient)
    pods_left = f"{PODS_LABEL}={job['metadata']['name']}"
    until(lambda: not server.cluster.list(PODS, labels=pods_left, namespace=namespace).items, "its pods are gone")


def test_a_failed_job_is_made_anew(server, namespace, pods, trainer, owner, made, work):
    owner("again")
    launched = Launched(pods, work)
    job = made("again")
    trainer.start(job)
    trainer.end(job, error=Failure(1, Transient.exit_code, time.time(), "the store is away"))
    assert isinstance(launched.ended(), Transient)

    launched = Launched(pods, work)
    deadline = time.monotonic() + JOIN_SECONDS
    while (found := made("again"))["metadata"]["uid"] == job["metadata"]["uid"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    trainer.start(found)
    trainer.end(found)
    assert launched.ended() is None


def test_a_missing_runtime_is_named(pods, owner, work):
    owner("other-runtime")
    launched = Launched(pods, work, SETTINGS.model_copy(update={"runtime": "no-such-runtime"}))
    error = launched.ended()
    assert isinstance(error, InvalidInput)
    assert "no-such-runtime" in str(error)


def test_two_who_create_at_once_share_one(pods, server, namespace, work):
    """What the launcher relies on: a second object of a name is a Conflict that says so."""
    spec = {"runtimeRef": {"name": "reasrm-torch", "kind": "TrainingRuntime"}, "suspend": True}
    body = {"apiVersion": TRAIN_JOBS.api_version, "kind": TRAIN_JOBS.name, "metadata": {"name": "one"}, "spec": spec}
    pods.create(TRAIN_JOBS, body)
    with pytest.raises(Conflict) as refused:
        pods.create(TRAIN_JOBS, body)
    assert refused.value.exists
    version = pods.get(TRAIN_JOBS, "one")["metadata"]["resourceVersion"]
    pods.patch(TRAIN_JOBS, "one", {"metadata": {"annotations": {"a": "1"}}})
    with pytest.raises(Conflict) as stale:
        pods.patch(TRAIN_JOBS, "one", {"metadata": {"resourceVersion": version, "annotations": {"a": "2"}}})
    assert not stale.value.exists
    with pytest.raises(Conflict):
        pods.delete(TRAIN_JOBS, "one", uid="another")
    assert pods.get(TRAIN_JOBS, "one")["metadata"]["annotations"] == {"a": "1"}
    assert pods.delete(TRAIN_JOBS, "one")
