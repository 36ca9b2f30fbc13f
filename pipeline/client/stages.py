"""What a run's stages do now: KFP's nodes, folded to the stages that the compiled pipeline names, in its order."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any

FINISHED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
"""States after which a run does nothing more."""
CACHED_SECONDS = 1.0
"""A task that succeeded as fast as this ran no pod: KFP took an earlier result. 2.17 has no other sign of it."""
OVER = {"done", "cached", "skipped", "failed", "stopped"}
_EPOCH = datetime(1971, 1, 1, tzinfo=UTC)
_GROUP = re.compile(r"root$|exit-handler-|condition-|for-loop-|iteration-")
_WORDS = {
    "SUCCEEDED": "done",
    "CACHED": "cached",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "RUNNING": "running",
    "PENDING": "pending",
    "PAUSED": "pending",
    "CANCELING": "stopping",
    "CANCELED": "stopped",
}


@dataclass(frozen=True)
class Stage:
    """A stage of the compiled pipeline: the tasks that are shown as one, and how many of them a loop makes."""

    name: str
    tasks: tuple[str, ...]
    parents: tuple[str, ...]
    """The groups around it, from the outside: exit handler, condition, loop."""
    parts: int | None
    """How often it runs; None where only the run knows."""


@dataclass(frozen=True)
class Status:
    """A stage of a run: waiting, starting, pending, running, done, cached, skipped, failed, stopping or stopped.

    It is untold where a run has ended and the server shows none of its tasks.
    """

    name: str
    state: str
    done: int
    total: int
    since: datetime | None = None
    until: datetime | None = None
    message: str = ""


def stages_of(spec: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a compiled pipeline in the order in which they run; what always runs last comes last."""
    spec = spec.get("pipeline_spec") or spec
    found = list(_walk(spec["root"]["dag"]["tasks"], spec.get("components", {}), (), 1))
    names = {stage.name for stage in found}
    folded: dict[str, Stage] = {}
    for stage in found:
        base = re.sub(r"-\d+$", "", stage.name)  # KFP numbers a component's second task
        name = base if base in names else stage.name
        before = folded.get(name)
        if before is None:
            folded[name] = replace(stage, name=name)
        else:
            folded[name] = replace(before, tasks=before.tasks + stage.tasks, parents=())
    return list(folded.values())


def _walk(
    tasks: Mapping[str, Any], components: Mapping[str, Any], parents: tuple[str, ...], times: int | None
) -> Iterator[Stage]:
    order = TopologicalSorter({key: task.get("dependentTasks", ()) for key, task in tasks.items()})
    for key in order.static_order():
        task = tasks[key]
        component = components.get(task["componentRef"]["name"], {})
        count = times
        if "parameterIterator" in task:
            raw = task["parameterIterator"].get("items", {}).get("raw")
            count = times * len(json.loads(raw)) if raw and times is not None else None
        if "dag" in component:
            yield from _walk(component["dag"]["tasks"], components, (*parents, key), count)
        else:
            yield Stage(key, tuple({key: None, task.get("taskInfo", {}).get("name", key): None}), parents, count)


def stages_seen(run: Any) -> list[Stage]:
    """Return the stages that have begun, of a run whose pipeline is gone: each has a node for its driver."""
    details = (run.run_details.task_details if run.run_details else None) or []
    names = {task.display_name or "" for task in details}
    begun: dict[str, Any] = {}
    for task in details:
        if f"{task.display_name}-driver" in names and not _GROUP.match(task.display_name):
            begun.setdefault(task.display_name, task.start_time)
    return [Stage(name, (name,), (), None) for name in sorted(begun, key=lambda name: (str(begun[name]), name))]


def statuses(stages: Iterable[Stage], run: Any) -> list[Status]:
    """Return what each stage does, from a run as the server shows it."""
    details = (run.run_details.task_details if run.run_details else None) or []
    by_name: dict[str, list[Any]] = {}
    for task in details:
        by_name.setdefault(task.display_name or "", []).append(task)
    finished = run.state in FINISHED
    if finished and not details:
        return [Status(stage.name, "untold", 0, stage.parts or 1) for stage in stages]
    return _with_reason([_status(stage, by_name, finished) for stage in stages], run.state)


def _with_reason(found: list[Status], state: str) -> list[Status]:
    """Say at `prepare` why nothing came after it, where that was no failure."""
    rest = [one.state for one in found if one.name not in ("preflight", "prepare", "report")]
    if state != "SUCCEEDED" or not rest or {*rest} != {"skipped"}:
        return found
    why = "nothing new, so the run ended here"
    return [replace(one, message=why) if one.name == "prepare" else one for one in found]


def _status(stage: Stage, tasks: Mapping[str, list[Any]], finished: bool) -> Status:
    mine = [task for name in stage.tasks for task in tasks.get(name, ())]
    drivers = [task for name in stage.tasks for task in tasks.get(f"{name}-driver", ())]
    words = [_word(task) for task in mine]
    failed = [task for task in (*mine, *drivers) if task.state == "FAILED"]
    ran = [word for word in words if word != "skipped"]
    total = max(len(ran), stage.parts or 1)
    done = sum(word in ("done", "cached") for word in words)
    passed_by = (words and not ran) or any(_all_skipped(tasks.get(parent)) for parent in stage.parents)
    loops = [task for parent in stage.parents if parent.startswith("for-loop-") for task in tasks.get(parent, ())]
    unrolling = stage.parts is None and any(task.state not in FINISHED for task in loops)
    rules = (
        (failed, "failed"),
        *((word in ran, word) for word in ("running", "pending", "stopping", "stopped")),
        (done >= total and not unrolling, "cached" if set(ran) == {"cached"} else "done"),
        (passed_by or (finished and not ran), "skipped"),
        (ran, "running"),  # some parts of a loop are done, others not begun
        (drivers, "starting"),
    )
    state = next((word for holds, word in rules if holds), "waiting")
    begun = [task.start_time for task in mine or drivers if known(task.start_time)]
    ended = [task.end_time for task in mine or drivers if known(task.end_time)]
    return Status(
        stage.name,
        state,
        done,
        total,
        min(begun, default=None),
        max(ended, default=None) if state in OVER else None,
        next((text for text in map(_error, failed) if text), ""),
    )


def _all_skipped(group: list[Any] | None) -> bool:
    return bool(group) and all(task.state == "SKIPPED" for task in group or ())


def _word(task: Any) -> str:
    word = _WORDS.get(str(task.state), "waiting")
    if word == "done" and known(task.start_time) and known(task.end_time):
        seconds = (task.end_time - task.start_time).total_seconds()
        return "cached" if seconds <= CACHED_SECONDS else "done"
    return word


def known(time: datetime | None) -> bool:
    """Say whether a time is one: what has not happened yet has 1970."""
    return time is not None and time > _EPOCH


def _error(task: Any) -> str:
    """Return the reason of a failure, if the server tells it: 2.17 does not (kubeflow/pipelines#14007)."""
    errors = [task.error, *(entry.error for entry in reversed(task.state_history or []))]
    return next((error.message for error in errors if error is not None and error.message), "")
