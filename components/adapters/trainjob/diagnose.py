"""Why a TrainJob does not move, in words, with what to do about it."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from components.adapters.kubernetes import (
    LOCAL_QUEUES,
    WORKLOADS,
    Cluster,
    Kind,
    NotServed,
    Object,
    event_time,
)
from components.adapters.trainjob.settings import TrainJobSettings
from components.adapters.trainjob.spec import REPLICATED_JOB
from components.adapters.trainjob.state import Phase, State, container, is_running, phase_of
from components.core.errors import InvalidInput, Transient
from components.core.redact import redact

logger = logging.getLogger(__name__)

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
_NEWER_KUEUE = "v1beta2"
_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
_PODS_LOOKED_AT = 3
_REMEDIES = (
    (
        r"Insufficient ([^\s,]+?)[,.]?(?:\s|$)",
        "too little {0} is free: wait, add nodes, or lower gpus, machine_cpu or machine_memory of the run",
    ),
    (r"untolerated taint \{([^}]*)\}", "nodes have the taint {0}: add it to the run's tolerations"),
    (r"node affinity/selector", "no node has the labels of the run's node_selector"),
    (
        r"unbound immediate PersistentVolumeClaims|storageclass",
        "no volume is made: see [trainjob] storage_class of the profile",
    ),
    (r"Too many pods", "the nodes have all the pods that they may have: wait, or add machines"),
)


@dataclass(frozen=True)
class Problem:
    """What stands in the way; `fatal` where time does not mend it."""

    key: str
    """The same at each look, whatever the words."""
    text: str
    fatal: bool = False


def problems(cluster: Cluster, state: State, name: str, settings: TrainJobSettings, recent: float) -> list[Problem]:
    """Return what stands in the way of a TrainJob, most telling first. What may not be looked at is left out.

    An event of the last `recent` seconds counts as what still happens.
    """
    phase, train_job = state.phase(), state.train_job
    if train_job is None or phase in (Phase.RUNNING, Phase.COMPLETE, Phase.FAILED, Phase.GONE, Phase.ENDING):
        return []
    found: list[Problem] = []
    pods = state.live_pods()
    if phase is Phase.QUEUED:
        lookers = [_queue(cluster, train_job, settings)]
    else:
        lookers = [_containers(pods, settings), _pods(cluster, pods)]
        if not pods:  # once there are some, what hindered them is over
            lookers.append(_jobs(cluster, name, train_job, recent))
    for look in lookers:
        try:
            found += look
        except (InvalidInput, Transient) as error:
            logger.debug("cannot look why the TrainJob waits: %s", error)
    if not found and phase is Phase.CREATED and not (train_job.get("status") or {}):
        found.append(
            Problem(
                "nobody",
                "nobody takes up the TrainJob: see that Trainer's controller runs (deployment "
                "kubeflow-trainer-controller-manager, most often in namespace kubeflow-system)",
            )
        )
    return list({problem.key: problem for problem in reversed(found)}.values())[::-1]


def _containers(pods: Sequence[Object], settings: TrainJobSettings) -> Iterator[Problem]:
    """Yield what hinders containers from starting."""
    for pod in pods:
        waiting = (container(pod).get("state") or {}).get("waiting") or {}
        reason, said = str(waiting.get("reason", "")), redact(str(waiting.get("message", "")))
        if reason in _IMAGE:
            yield Problem(
                "image",
                f"the image {settings.image} cannot be pulled ({reason}: {said}); see that it is there, that the node "
                "reaches its registry, and that image_pull_secrets of the profile names the registry's secret",
                fatal=True,
            )
        elif reason in _CONFIG:
            name = pod["metadata"]["name"]
            yield Problem(
                f"container {name}", f"the container of pod {name} cannot start ({reason}): {said}", fatal=True
            )


def _pods(cluster: Cluster, pods: Sequence[Object]) -> Iterator[Problem]:
    """Yield what the scheduler and the node say of pods that do not run."""
    waiting = [pod for pod in pods if not is_running(pod) and phase_of(pod) == "Pending"]
    for pod in waiting[:_PODS_LOOKED_AT]:
        name = pod["metadata"]["name"]
        unplaced = _false_condition(pod, "PodScheduled")
        if unplaced is not None:
            said = redact(str(unplaced.get("message", "")))
            yield Problem("no node", f"no node takes the pods: {said}{_remedy(said)}")
            continue
        for event in reversed(_warnings(cluster, name, pod)):
            if event["reason"] in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"):
                said = redact(str(event["message"]))
                yield Problem(f"pod {name}", f"the pod {name} cannot start ({event['reason']}): {said}")
                break


def _jobs(cluster: Cluster, name: str, train_job: Object, recent: float) -> Iterator[Problem]:
    """Yield why pods, or what makes them, are not made. What was said a while ago may be over: it is not fatal."""
    for event in reversed(_warnings(cluster, name, train_job)):
        if event["reason"] == "TrainJobResourcesCreationFailed":
            said = redact(str(event["message"]))
            yield Problem("objects", f"Trainer cannot make the TrainJob's objects: {said}", _age(event) <= recent)
            break
    for event in reversed(_warnings(cluster, f"{name}-{REPLICATED_JOB}-0", train_job)):
        if event["reason"] != "FailedCreate":
            continue
        said = redact(str(event["message"]))
        if "exceeded quota" in said:
            text = f"the namespace's quota has no room for the pods: {said}; wait for other work, or raise it"
            yield Problem("quota", text)
        else:
            yield Problem("refused", f"the cluster refuses the pods: {said}", _age(event) <= recent)
        break


def _queue(cluster: Cluster, train_job: Object, settings: TrainJobSettings) -> Iterator[Problem]:
    """Yield why Kueue does not admit a TrainJob."""
    if not settings.queue:
        yield Problem(
            "suspended", "the TrainJob is suspended, by whom its managedFields tell; resume it with spec.suspend: false"
        )
        return
    try:
        workloads = _newest(cluster, WORKLOADS, f"{_JOB_UID_LABEL}={train_job['metadata']['uid']}")
    except NotServed:
        yield Problem(
            "queue",
            f"[trainjob] queue of the profile is {settings.queue}, and there is no Kueue: install it, or name no queue",
            fatal=True,
        )
        return
    if not workloads:
        if not any(queue["metadata"]["name"] == settings.queue for queue in _newest(cluster, LOCAL_QUEUES, "")):
            yield Problem(
                "queue",
                f"there is no LocalQueue {settings.queue} in namespace {cluster.namespace}: make it, or name another "
                "in [trainjob] queue of the profile",
            )
        else:
            yield Problem(
                "Kueue",
                "Kueue has not taken the TrainJob up: see that trainer.kubeflow.org/trainjob is in its integrations",
            )
        return
    for workload in workloads:
        for kind in ("QuotaReserved", "Admitted"):
            waits = _false_condition(workload, kind)
            if waits is not None:
                said = redact(str(waits.get("message", "")))
                yield Problem("admission", f"Kueue's queue {settings.queue} does not admit the TrainJob yet: {said}")
                break


def _newest(cluster: Cluster, kind: Kind, labels: str) -> list[Object]:
    """List objects of Kueue in a version that this one serves. Raises NotServed where there is no Kueue."""
    try:
        return cluster.list(kind, labels=labels).items
    except NotServed:
        newer = Kind(kind.group, _NEWER_KUEUE, kind.plural, kind.name)
        return cluster.list(newer, labels=labels).items


def _false_condition(item: Object, kind: str) -> Object | None:
    for found in (item.get("status") or {}).get("conditions") or ():
        if found["type"] == kind and found["status"] == "False":
            return dict(found)
    return None


def _warnings(cluster: Cluster, name: str, since: Object) -> list[Object]:
    """Return the warnings about an object of that name, none older than the object `since`."""
    began = datetime.fromisoformat(since["metadata"]["creationTimestamp"])
    return [event for event in cluster.events(name) if event.get("type") == "Warning" and event_time(event) >= began]


def _age(event: Object) -> float:
    return (datetime.now(UTC) - event_time(event)).total_seconds()


def _remedy(said: str) -> str:
    found = []
    for pattern, words in _REMEDIES:
        match = re.search(pattern, said)
        if match is not None:
            found.append(words.format(*match.groups()))
    return "".join(f"; {words}" for words in found)
