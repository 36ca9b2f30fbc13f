"""What has to be installed in a cluster: its version, kinds of objects, our own objects."""

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from components.core.errors import InvalidInput
from pipeline.checks.demand import Demand
from pipeline.checks.finding import Finding, missing, ok, unknown, warning

if TYPE_CHECKING:
    from components.adapters.kubernetes import Cluster, Kind

INSTALL = "apply your overlay (manifests/README.md)"
_NO_QUEUE = f"put the component kueue into your overlay's components, then {INSTALL}; or take queue out of the profile"
OLDEST = (1, 29)
"""Oldest Kubernetes that Kubeflow 1.10 is offered for (support table of Charmed Kubeflow)."""
TRAINER = (
    "install Kubeflow Trainer v2 (2.3 or later): https://www.kubeflow.org/docs/components/trainer/operator-guides/"
)
KUEUE = "install Kueue: https://kueue.sigs.k8s.io/docs/installation/"


def check_version(cluster: "Cluster") -> Iterator[Finding]:
    """See how old the cluster is."""
    version = cluster.version()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        yield warning("Kubernetes", f"{version} is older than what Kubeflow supports", "upgrade to v1.29 or later")
    else:
        yield ok("Kubernetes", version)


def check_account(cluster: "Cluster", demand: Demand) -> Iterator[Finding]:
    """See that the service account of the run's pods exists."""
    from components.adapters.kubernetes import SERVICE_ACCOUNTS, Forbidden

    name = f"service account {demand.service_account}"
    try:
        account = cluster.get(SERVICE_ACCOUNTS, demand.service_account)
    except Forbidden as error:
        yield unknown(name, str(error))
        return
    if account is None:
        yield missing(name, f"is not in namespace {cluster.namespace}", INSTALL)
    else:
        yield ok(name, f"is in namespace {cluster.namespace}")


def check_kinds(cluster: "Cluster", demand: Demand) -> Iterator[Finding]:
    """See that the kinds of objects that the run makes are served, and that our own objects are there."""
    from components.adapters import kubernetes as k8s

    workflow = k8s.Kind("argoproj.io", "v1alpha1", "workflows", "Workflow")
    yield _served(cluster, workflow, "install Kubeflow Pipelines 2.17 or later")
    if not demand.trainjob:
        return
    yield _served(cluster, k8s.TRAIN_JOBS, TRAINER)
    yield _served(cluster, k8s.JOB_SETS, f"{TRAINER} (JobSet comes with it)")
    yield _runtime(cluster, demand)
    if demand.queue:
        yield _queue(cluster, demand)


def _served(cluster: "Cluster", kind: "Kind", remedy: str) -> Finding:
    name = f"kind {kind.name}"
    if cluster.has_api(kind.api_version, kind.name):
        return ok(name, f"{kind.api_version} is served")
    return missing(name, f"the cluster has no {kind.name} of {kind.api_version}", remedy)


def _runtime(cluster: "Cluster", demand: Demand) -> Finding:
    from components.adapters.kubernetes import TRAINING_RUNTIMES, Forbidden, NotServed

    name = f"TrainingRuntime {demand.runtime}"
    try:
        found = cluster.get(TRAINING_RUNTIMES, demand.runtime)
    except Forbidden as error:
        return unknown(name, str(error))
    except NotServed as error:
        return missing(name, str(error), TRAINER)
    if found is None:
        remedy = f"put the component training into your overlay's components, then {INSTALL}"
        return missing(name, f"is not in namespace {cluster.namespace}", remedy)
    return ok(name, f"is in namespace {cluster.namespace}")


def _queue(cluster: "Cluster", demand: Demand) -> Finding:
    from components.adapters.kubernetes import LOCAL_QUEUES, Forbidden, NotServed

    name, found = f"LocalQueue {demand.queue}", None
    newer = dataclasses.replace(LOCAL_QUEUES, version="v1beta2")
    kind = newer if cluster.has_api(newer.api_version, newer.name) else LOCAL_QUEUES
    try:
        found = cluster.get(kind, demand.queue)
    except Forbidden as error:
        return unknown(name, str(error))
    except NotServed as error:
        return missing(name, str(error), KUEUE)
    except InvalidInput as error:
        return unknown(name, str(error))
    if found is None:
        return missing(name, f"is not in namespace {cluster.namespace}", _NO_QUEUE)
    conditions = {one["type"]: one for one in found.get("status", {}).get("conditions") or ()}
    if conditions.get("Active", {}).get("status") == "False":
        what = f"is not active: {conditions['Active'].get('message', 'no reason given')}"
        return warning(name, what, f"kubectl -n {cluster.namespace} describe localqueue {demand.queue}")
    return ok(name, f"is in namespace {cluster.namespace}")
