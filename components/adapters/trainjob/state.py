"""What is known of a TrainJob and its pods, and which phase that is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from components.adapters.kubernetes import PODS, TRAIN_JOBS, Object
from components.adapters.trainjob.informer import Changed, Listed
from components.adapters.trainjob.owners import is_ending
from components.adapters.trainjob.spec import CONTAINER

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


class Phase(Enum):
    """How far a TrainJob is."""

    QUEUED = "waits to be admitted"
    CREATED = "waits for its pods"
    PENDING = "waits for machines"
    STARTING = "starts"
    RUNNING = "runs"
    ENDING = "is being ended"
    COMPLETE = "is done"
    FAILED = "failed"
    GONE = "is gone"


@dataclass
class State:
    """What the API has told so far."""

    num_nodes: int
    train_job: Object | None = None
    pods: dict[str, Object] = field(default_factory=dict)
    """By uid; those that are gone are kept as they were last seen: they say how their processes ended."""
    gone_pods: set[str] = field(default_factory=set)

    def apply(self, news: Listed | Changed) -> None:
        """Take in what an informer says."""
        if news.kind == TRAIN_JOBS:
            if isinstance(news, Listed):
                self.train_job = news.items[0] if news.items else None
            else:
                self.train_job = None if news.deleted else news.item
        elif news.kind == PODS:
            if isinstance(news, Listed):
                here = {pod["metadata"]["uid"] for pod in news.items}
                self.gone_pods |= self.pods.keys() - here
                self.pods |= {pod["metadata"]["uid"]: pod for pod in news.items}
            else:
                uid = news.item["metadata"]["uid"]
                self.pods[uid] = news.item
                if news.deleted:
                    self.gone_pods.add(uid)

    def own_pods(self) -> list[Object]:
        """Return the pods of this TrainJob's last start, by index.

        Not those of an earlier TrainJob of its name, nor those that Kueue ended before it let it go on with others.
        """
        since = self.train_job["metadata"]["creationTimestamp"] if self.train_job else ""
        found: dict[int, Object] = {}
        for pod in sorted(self.pods.values(), key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            if pod["metadata"]["creationTimestamp"] < since:
                continue
            if index(pod) in found:
                found = {number: one for number, one in found.items() if not self._is_leaving(one)}
            found[index(pod)] = pod
        return [found[number] for number in sorted(found)]

    def _is_leaving(self, pod: Object) -> bool:
        return pod["metadata"]["uid"] in self.gone_pods or is_ending(pod)

    def live_pods(self) -> list[Object]:
        """Return those that are still there."""
        return [pod for pod in self.own_pods() if pod["metadata"]["uid"] not in self.gone_pods]

    def num_running(self) -> int:
        """Return how many machines are at work or have done theirs."""
        return sum(is_running(pod) or phase_of(pod) == "Succeeded" for pod in self.live_pods())

    def phase(self) -> Phase:
        """Return how far it is."""
        if self.train_job is None:
            return Phase.GONE
        if condition(self.train_job, "Complete") is not None:
            return Phase.COMPLETE
        if condition(self.train_job, "Failed") is not None:
            return Phase.FAILED
        if is_ending(self.train_job):
            return Phase.ENDING
        return Phase.QUEUED if self.train_job["spec"].get("suspend") else self._phase_of_pods()

    def _phase_of_pods(self) -> Phase:
        pods = self.live_pods()
        if not pods:
            return Phase.CREATED
        if self.num_running() >= self.num_nodes:
            return Phase.RUNNING
        placed = [pod for pod in pods if pod["spec"].get("nodeName") or is_running(pod)]
        return Phase.STARTING if len(placed) >= self.num_nodes else Phase.PENDING

    def all_ended(self) -> bool:
        """Say whether no pod can say more than it has."""
        return all(phase_of(pod) in ("Succeeded", "Failed") for pod in self.live_pods())


def condition(item: Object, kind: str) -> Object | None:
    """Return a condition that holds."""
    for found in (item.get("status") or {}).get("conditions") or ():
        if found["type"] == kind and found["status"] == "True":
            return dict(found)
    return None


def index(pod: Object) -> int:
    """Return which of the machines a pod is, from 0."""
    metadata = pod["metadata"]
    for labels in (metadata.get("labels") or {}, metadata.get("annotations") or {}):  # a label since Kubernetes 1.28
        if str(labels.get(INDEX_LABEL, "")).isdecimal():
            return int(labels[INDEX_LABEL])
    return 0


def phase_of(pod: Object) -> str:
    """Return the pod's own word for how far it is."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def container(pod: Object) -> Object:
    """Return the status of the container that trains; empty before there is one."""
    statuses: Sequence[Object] = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((status for status in statuses if status["name"] == CONTAINER), {})


def terminated(pod: Object) -> Object | None:
    """Return how the container ended, or None while it has not."""
    found = (container(pod).get("state") or {}).get("terminated")
    return dict(found) if found else None


def is_running(pod: Object) -> bool:
    """Say whether the container is at work."""
    return "running" in (container(pod).get("state") or {}) and phase_of(pod) == "Running"
