"""What a run's pod leaves behind goes with it: the garbage collector follows owner references to our objects."""

import pytest

from components.adapters.kubernetes import CONFIG_MAPS, PODS, TRAIN_JOBS
from components.adapters.trainjob.owners import Owner, references

SPEC = {"runtimeRef": {"name": "reasrm-torch", "kind": "TrainingRuntime"}, "suspend": True}


@pytest.fixture(scope="module")
def namespace(server, new_namespace, kinds, until):
    name = new_namespace()
    accounts = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    try:
        until(lambda: server.ask("GET", accounts).taken, "the namespace has its default account", 15)
    except AssertionError:
        pytest.skip("no controller manager works on this API server, so there is no garbage collector")
    return name


def make_pod(server, namespace, name):
    """A pod that no scheduler looks at."""
    spec = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "local/none"}]}
    return server.cluster.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace=namespace)


def owned(kind, name, *pods, **fields):
    owners = [Owner(pod["metadata"]["name"], pod["metadata"]["uid"]).reference() for pod in pods]
    metadata = {"name": name, "ownerReferences": owners}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **fields}


def test_owned_objects_go_with_their_pod_and_others_stay(server, namespace, until):
    cluster = server.cluster
    first, second = (make_pod(server, namespace, name) for name in ("first", "second"))
    for name, pod in (("gone", first), ("kept", second)):
        cluster.create(TRAIN_JOBS, owned(TRAIN_JOBS, name, pod, spec=SPEC), namespace=namespace)
        cluster.create(CONFIG_MAPS, owned(CONFIG_MAPS, name, pod, data={"a": "b"}), namespace=namespace)

    assert cluster.delete(PODS, "first", uid=first["metadata"]["uid"], grace_seconds=0, namespace=namespace)

    for kind in (TRAIN_JOBS, CONFIG_MAPS):
        until(lambda kind=kind: cluster.get(kind, "gone", namespace=namespace) is None, f"the {kind} is gone")
        assert cluster.get(kind, "kept", namespace=namespace) is not None


def test_an_object_of_a_pod_that_is_gone_goes_at_once(server, namespace, until):
    """A launcher that is slower than its own pod's end leaves nothing either."""
    cluster = server.cluster
    pod = make_pod(server, namespace, "late")
    cluster.delete(PODS, "late", grace_seconds=0, namespace=namespace)
    until(lambda: cluster.get(PODS, "late", namespace=namespace) is None, "the pod is gone")
    cluster.create(TRAIN_JOBS, owned(TRAIN_JOBS, "orphan", pod, spec=SPEC), namespace=namespace)
    until(lambda: cluster.get(TRAIN_JOBS, "orphan", namespace=namespace) is None, "the orphan is gone")


def test_what_two_pods_own_goes_with_the_last(server, namespace, until):
    """A pod that was started again for the same work shares its job with the first one."""
    cluster = server.cluster
    pods = [make_pod(server, namespace, name) for name in ("attempt-1", "attempt-2")]
    cluster.create(TRAIN_JOBS, owned(TRAIN_JOBS, "shared", *pods, spec=SPEC), namespace=namespace)
    cluster.delete(PODS, "attempt-1", grace_seconds=0, namespace=namespace)

    def owners():
        return [one["name"] for one in references(cluster.get(TRAIN_JOBS, "shared", namespace=namespace))]

    until(lambda: owners() == ["attempt-2"], "the owner that is gone is taken off the job")

    cluster.delete(PODS, "attempt-2", grace_seconds=0, namespace=namespace)
    until(lambda: cluster.get(TRAIN_JOBS, "shared", namespace=namespace) is None, "the job is gone")
