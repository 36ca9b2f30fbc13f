"""Every object of manifests/ on a real API server: read strictly, applied, and quiet when it is applied again."""

from pathlib import Path

import pytest
import yaml

from components.adapters.kubernetes import EVENTS

ROOT = Path(__file__).parents[2] / "manifests"
STARTS_PODS = {"CronJob", "DaemonSet", "Deployment", "Job", "Pod", "ReplicaSet", "StatefulSet"}
STARTS_PODS |= {"InferenceService", "JobSet", "LeaderWorkerSet", "TrainJob"}
WHOLE = ["overlays/dev", "overlays/dev-single-user", "overlays/prod"]


def folders():
    return sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.rglob("kustomization.yaml"))


def name_of(item):
    return f"{item['apiVersion']} {item['kind']} {item['metadata']['name']}"


def send(server, items, namespace, dry_run):
    """Apply objects; return what was refused and what has no kind here."""
    answers = {name_of(item): server.apply(item, namespace, dry_run=dry_run) for item in items}
    refused = {name: str(answer) for name, answer in answers.items() if answer is not None and not answer.taken}
    return refused, {name for name, answer in answers.items() if answer is None}


def state(server, item, namespace):
    """What another `apply` must not change; controllers may write the rest."""
    found = server.get(item, namespace)["metadata"]
    mine = [entry for entry in found["managedFields"] if entry["manager"] == "reasrm-test"]
    return name_of(item), found.get("generation"), mine


def newer_than(server, unserved):
    """What is not served has to be newer than this server, not missing from it or misspelt."""
    since = {"policy/v1": (1, 21), "batch/v1": (1, 21), "autoscaling/v2": (1, 23)}  # batch/v1: CronJob
    assert {name for name in unserved if server.version >= since.get(name.split()[0], (0, 0))} == set()


@pytest.fixture(scope="module")
def unchanged(new_namespace):
    """A namespace for what is not kept."""
    return new_namespace()


@pytest.mark.parametrize("folder", folders())
def test_the_server_takes_every_object(server, kinds, build, unchanged, folder):
    refused, unserved = send(server, build(folder, unchanged), unchanged, dry_run=True)
    assert refused == {}
    newer_than(server, unserved)
    if unserved:
        pytest.skip(f"all others are taken; {server.cluster.version()} has no {', '.join(sorted(unserved))}")


@pytest.mark.parametrize("overlay", WHOLE)
def test_an_overlay_applied_twice_changes_nothing(server, kinds, build, new_namespace, overlay):
    namespace = new_namespace()
    items = [
        item
        for item in build(overlay, namespace)
        if server.path(item, namespace) and not (server.has_nodes and item["kind"] in STARTS_PODS)
    ]
    assert any(item["kind"] == "Deployment" for item in items)
    assert send(server, items, namespace, dry_run=False) == ({}, set())
    before = [state(server, item, namespace) for item in items]
    assert send(server, items, namespace, dry_run=False) == ({}, set())
    assert [state(server, item, namespace) for item in items] == before


@pytest.mark.parametrize("overlay", WHOLE)
def test_controllers_may_make_the_pods(server, kinds, build, new_namespace, until, overlay):
    """Quota, limits and service accounts let every pod of the overlay in; no node is there to run it."""
    if server.has_nodes:
        pytest.skip("this cluster has nodes, where the pods would start")
    namespace = new_namespace()
    default = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    try:
        until(lambda: server.ask("GET", default).taken, "the namespace has its default account", 15)
    except AssertionError:
        pytest.skip("no controller manager works on this API server")
    items = [item for item in build(overlay, namespace) if server.path(item, namespace)]
    assert send(server, items, namespace, dry_run=False) == ({}, set())
    makers = [item for item in items if item["kind"] in {"Deployment", "StatefulSet", "Job"}]
    assert makers
    for item in makers:

        def made(item=item):
            status = server.get(item, namespace).get("status") or {}
            return status.get("active") or status.get("replicas")

        try:
            until(made, name_of(item), 30)
        except AssertionError:
            events = server.cluster.list(EVENTS, namespace=namespace).items
            said = {event["message"] for event in events if event["type"] == "Warning"}
            pytest.fail(f"{name_of(item)} has no pod: {said}")


def test_example_secrets_are_taken(server, new_namespace):
    namespace = new_namespace()
    items = list(yaml.safe_load_all((ROOT / "examples/secrets.yaml").read_text(encoding="utf-8")))
    assert send(server, items, namespace, dry_run=False) == ({}, set())
    kept = {
        item["metadata"]["name"]: server.cluster.secret_keys(item["metadata"]["name"], namespace=namespace)
        for item in items
    }
    assert {item["metadata"]["name"]: set(item.get("stringData") or item["data"]) for item in items} == kept
