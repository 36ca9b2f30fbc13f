"""How the machines of a TrainJob ended, as failures of the processes on them."""

import signal
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from components.adapters import launch
from components.adapters.kubernetes import Object
from components.adapters.launch import NOTICED_SECONDS, Failure
from components.adapters.torchrun import decode
from components.adapters.trainjob.spec import CONTAINER
from components.adapters.trainjob.state import State, condition, index, phase_of, terminated
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.redact import redact

AGAIN = "run again to go on from the last checkpoint"
_DISRUPTIONS = {
    "PreemptionByScheduler": "made room for a pod of higher priority",
    "DeletionByTaintManager": "had to leave its node (a taint that it does not accept, such as a node that is lost)",
    "EvictionByEvictionAPI": "was evicted, most likely because its node is being drained",
    "DeletionByPodGC": "was lost with its node",
    "TerminationByKubelet": "was ended by its node (a shutdown, or too little memory or disk there)",
}
_ROOM = "raise [work] machine_size or shared_memory of the profile, or machine_memory of the run"
_LOST = {"NodeLost", "NodeShutdown", "Terminated", "Shutdown", "NodeAffinity", "Preempting", "UnexpectedAdmissionError"}
"""Reasons of a pod that its node ended or never took; another one may do better."""


def failures(state: State, processes: int) -> list[tuple[Failure, Object]]:
    """Return how each machine failed, and its pod; `processes` of each machine.

    The rank is that of the machine's first process where nobody said which one it was.
    """
    found = [
        (failure, pod)
        for pod in state.own_pods()
        if (failure := _of_pod(pod, processes, pod["metadata"]["uid"] in state.gone_pods)) is not None
    ]
    if any(failure.message and not failure.is_stopped for failure, _ in found):  # who says something comes first
        return [(failure if failure.message else _later(failure), pod) for failure, pod in found]
    return found


def first_failing(state: State, processes: int) -> tuple[Failure, Object] | None:
    """Return the failure that the others follow from, and the pod of it."""
    found = failures(state, processes)
    if not found:
        return None
    chosen = launch.first([failure for failure, _ in found])
    return next((failure, pod) for failure, pod in found if failure is chosen)


def error_of(state: State, name: str, processes: int) -> ReasrmError:
    """Return the error of a TrainJob that failed."""
    found = condition(state.train_job or {}, "Failed") or {}
    reason, said = str(found.get("reason", "")), redact(str(found.get("message", "")))
    if reason == "DeadlineExceeded":
        hours = (state.train_job or {}).get("spec", {}).get("activeDeadlineSeconds", 0) / 3600
        return Transient(
            f"the TrainJob {name} was ended after the {hours:g} hours that one attempt has; the next one goes on from "
            "the last checkpoint by itself"
        )
    if reason == "TrainingRuntimeNotSupported":
        return InvalidInput(
            f"Trainer does not know the runtime of the TrainJob {name}: {said}; apply the TrainingRuntime of "
            "manifests/components/training, or name another one in [trainjob] runtime of the profile"
        )
    failing = first_failing(state, processes)
    if failing is None:
        return ReasrmError(f"the TrainJob {name} failed, and none of its pods is left to say why: {reason}: {said}")
    failure, pod = failing
    error = failure.error(state.num_nodes * processes)
    return type(error)(f"{error} (pod {pod['metadata']['name']} of the TrainJob {name})")


def _later(failure: Failure) -> Failure:
    return replace(failure, moment=failure.moment + NOTICED_SECONDS)


def _of_pod(pod: Object, processes: int, gone: bool) -> Failure | None:
    rank, end = index(pod) * processes, terminated(pod)
    by_cluster = _ended_by_cluster(pod, rank)
    if by_cluster is not None:
        return by_cluster
    if end is None:
        return _of_vanished(pod, rank) if gone or phase_of(pod) == "Failed" else None
    return None if end["exitCode"] == 0 else _of_container(pod, end, rank)


def _of_vanished(pod: Object, rank: int) -> Failure:
    """Return the failure of a pod whose container left no word of its end."""
    name, deleted = pod["metadata"]["name"], pod["metadata"].get("deletionTimestamp")
    what = f"{launch.STOPPED}: the pod {name} was deleted" if deleted else f"the pod {name} is gone, nobody says why"
    return Failure(rank, Transient.exit_code, _moment(deleted), f"{what}; {AGAIN}")


def _of_container(pod: Object, end: Object, rank: int) -> Failure:
    moment, code = _moment(end.get("finishedAt")), int(end["exitCode"])
    if end.get("reason") == "OOMKilled":
        return Failure(rank, InvalidInput.exit_code, moment, _out_of_memory(pod))
    told = decode(end.get("message") or "")
    if told is not None:
        return replace(told, message=redact(told.message))
    by_signal = code > 128 and code - 128 in set(signal.Signals)
    return Failure(rank, 128 - code if by_signal else code, moment)


def _ended_by_cluster(pod: Object, rank: int) -> Failure | None:
    """Return why Kubernetes ended a pod, if it did."""
    status, name = pod.get("status") or {}, pod["metadata"]["name"]
    disrupted = condition(pod, "DisruptionTarget")
    reason, said = str(status.get("reason") or ""), redact(str(status.get("message") or ""))
    if reason == "Evicted" and "exceed" in said:  # a limit of ours, not the node's need
        message = f"the pod {name} was evicted: {said}; {_ROOM}"
        return Failure(rank, InvalidInput.exit_code, _ended(pod, disrupted), message)
    if disrupted is not None:
        why = _DISRUPTIONS.get(disrupted.get("reason", ""), "was ended by the cluster")
        details = said or redact(str(disrupted.get("message") or ""))
        message = f"the pod {name} {why}: {details}; {AGAIN}"
        return Failure(rank, Transient.exit_code, _moment(disrupted.get("lastTransitionTime")), message)
    if reason == "Evicted" or reason in _LOST or phase_of(pod) == "Unknown":
        message = f"the pod {name} was ended by its node: {reason or 'the node does not answer'}: {said}; {AGAIN}"
        return Failure(rank, Transient.exit_code, _ended(pod, None), message)
    if reason == "DeadlineExceeded":
        return Failure(rank, Transient.exit_code, _ended(pod, None), f"the pod {name} ran out of time: {said}; {AGAIN}")
    return None


def _out_of_memory(pod: Object) -> str:
    limits = next(
        (
            (found.get("resources") or {}).get("limits") or {}
            for found in pod["spec"].get("containers") or ()
            if found["name"] == CONTAINER
        ),
        {},
    )
    return (
        f"the pod {pod['metadata']['name']} ran out of memory and was killed (its limit is "
        f"{limits.get('memory', 'not known')}, with /dev/shm): raise machine_memory of the run, set "
        "gradient_checkpointing, or take more machines; the run then goes on from the last checkpoint"
    )


def _ended(pod: Object, disrupted: Object | None) -> float:
    end = terminated(pod) or {}
    return _moment(end.get("finishedAt") or (disrupted or {}).get("lastTransitionTime"))


def _moment(time: Any) -> float:
    """Return seconds since the epoch; the moment that says nothing is the last."""
    if not time:
        return datetime.max.replace(tzinfo=UTC).timestamp()
    return datetime.fromisoformat(str(time)).timestamp()
