"""What a run finds out in seconds, before it asks for a GPU: whether all that it needs is there.

It also gives digests of the stages' code and of what they read, by which KFP's cache knows their work.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from components.adapters import kubernetes
from components.adapters.entry import kfp_task
from components.adapters.origin import OF_RUN, origin_tags
from components.adapters.progress import Progress
from components.adapters.stage import RUN_ID_VARIABLE, RUN_NAME_VARIABLE, content_of, name_work
from components.core.errors import InvalidInput, ReasrmError, Transient
from pipeline.checks import endpoints, machines, objects, permissions, secrets, sources, store, tracker
from pipeline.checks.demand import Demand, demand_of_run
from pipeline.checks.finding import Finding, Status
from pipeline.checks.gather import Check, gather, run
from pipeline.config import RunConfig
from pipeline.placement import training_job
from pipeline.profile import Secrets
from pipeline.starts import pin

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger("reasrm")

STAGES = ("prepare", "traces", "filter", "sft", "grpo", "benchmark")
SCHEDULE = "schedule"
"""Value of `data_until` that stands for the day of the schedule's slot."""
_SLOT = re.compile(r"(\d{4}-\d{2}-\d{2})T.*")
_LEVELS: Mapping[Status, int] = {
    "ok": logging.DEBUG, "unknown": logging.INFO, "warning": logging.WARNING, "missing": logging.ERROR
}  # fmt: skip
Connect = Callable[[], kubernetes.Cluster]


@dataclass(frozen=True)
class Preflight:
    """What a run begins with."""

    contents: Mapping[str, str]
    """Stage -> digest (20 hex digits) of its code and of what it reads beside its inputs. That of the benchmark is left
    out where MLflow cannot tell the champion."""
    warnings: Sequence[str]


class Found(NamedTuple):
    """The outputs of the task."""

    prepare: str
    traces: str
    filter: str
    sft: str
    grpo: str
    data_until: str
    training_job: str
    since: str
    warm_start: str


def preflight(parameters: Mapping[str, Any]) -> Found:
    """Do the work of the KFP task; `parameters` are all that it gets. Ends the process with the error's exit code."""
    with kfp_task("preflight"):
        _open_run(parameters)
        day = due_day(parameters["data_until"], parameters["scheduled"])
        parameters = {**parameters, "data_until": day}
        parameters, starts = pin(parameters)
        contents = check(parameters, parameters["placement"]).contents
        digests = {stage: contents[stage] for stage in STAGES if stage in Found._fields}
        job = training_job(parameters["placement"], parameters)
        return Found(**digests, **starts, data_until=day, training_job=job)


def _open_run(parameters: Mapping[str, Any]) -> None:
    """Begin the run in MLflow, under its name and with its origin; the stages would, but may all be cached."""
    from components.adapters.pipeline_run import open_parent

    run_id = os.environ.get(RUN_ID_VARIABLE, "")
    if run_id:
        name = os.environ.get(RUN_NAME_VARIABLE) or parameters.get("run_name") or run_id
        open_parent(run_id, name, parameters["experiment"], origin_tags(OF_RUN))


def due_day(data_until: str, scheduled: str) -> str:
    """Return the last day of data: `schedule` stands for the day of the slot that a schedule started this run for.

    KFP before 2.17 does not tell the slot; then it is the day on which the run began.
    """
    if data_until != SCHEDULE:
        return data_until
    slot = _SLOT.fullmatch(scheduled)
    if slot is None:
        today = datetime.now(UTC).date().isoformat()
        logger.warning("KFP does not tell this run its schedule time (%r): data_until is today, %s", scheduled, today)
        return today
    return slot[1]


def check(parameters: Mapping[str, Any], placement: str, *, connect: Connect | None = None) -> Preflight:
    """Check all that a run needs; `placement` is what the compiler put in of the cluster, empty on this machine.

    Raises:
        InvalidInput: something has to be changed; the message names all of it, each with its remedy.
        Transient: something did not answer, and nothing else is wrong.
    """
    progress = Progress("preflight")
    try:
        config = RunConfig.from_arguments(parameters)
        with progress.bar("looking for what the run needs", len(STAGES) + 1):
            found = _outside(config, parameters, placement, connect or _connect)
            progress.advance()
            contents: Mapping[str, str] = {}
            if not any(finding.name == store.BUCKET and finding.status == "missing" for finding in found):
                contents, problems = _contents(config, progress)
                found += problems
        once: dict[tuple[str, str], Finding] = {}  # several stages may miss one thing
        for finding in found:
            once.setdefault((finding.status, finding.what), finding)
        found = list(once.values())
        for finding in found:
            logger.log(_LEVELS[finding.status], "%s", line(finding))
        _raise_for(found)
        warnings = [line(finding) for finding in found if finding.status == "warning"]
        progress.end("done", "all is there" + (f", {len(warnings)} warnings" if warnings else ""))
        return Preflight(contents, warnings)
    except ReasrmError as error:
        progress.end("failed", str(error), error=type(error).__name__)
        raise


def line(finding: Finding) -> str:
    """Return a finding in one line of text."""
    return f"{finding.name}: {finding.what}" + (f". Remedy: {finding.remedy}" if finding.remedy else "")


def _connect() -> kubernetes.Cluster:
    return kubernetes.connect(patience=kubernetes.Patience(5))


def _outside(config: RunConfig, parameters: Mapping[str, Any], placement: str, connect: Connect) -> list[Finding]:
    """Return what was found of all that answers to somebody else, and of the cluster."""
    demand: Demand | None = None

    def plan() -> Iterable[Finding]:
        nonlocal demand
        demand = demand_of_run(config, placement, parameters)
        training_job(placement, parameters)
        return () if demand is None else secrets.check_keys(config)

    found = run("machines", plan)
    names: Mapping[str, str] = demand.secrets if demand else Secrets().model_dump()
    checks: dict[str, Check] = {
        "bucket": partial(store.check_bucket, config.artifact_root, names["store"]),
        "MLflow": partial(tracker.check_mlflow, config.experiment, names["tracking"]),
    }
    called = {f"{address.role} {address.url} {address.model}": address for address in endpoints.addresses(config)}
    for name, address in called.items():
        checks[name] = partial(endpoints.check_address, address, names["teacher"])
    for place in sources.places(config):
        if place.on_hub:
            checks[f"{place.setting} {place.uri}"] = partial(sources.check_on_hub, place, names["hub"])
    cluster_checks = _cluster_checks(demand, connect) if demand and kubernetes.in_cluster() else {}
    for name, findings in gather(checks | cluster_checks).items():
        lenient = name == "MLflow" or (name in called and not _is_due(called[name], findings, config))
        aside = name in cluster_checks and not (demand and demand.trainjob)  # such a run never asks the cluster
        found += [_only_warns(one) if lenient or (aside and one.cause) else one for one in findings]
    return found


def _cluster_checks(demand: Demand, connect: Connect) -> dict[str, Check]:
    """Return what is asked of the Kubernetes API; without TrainJobs a run does without it."""
    try:
        cluster = connect()
    except InvalidInput as error:
        problem = Finding("Kubernetes", "missing" if demand.trainjob else "unknown", str(error))
        return {"Kubernetes": lambda: [problem]}
    checks: dict[str, Check] = {"quota": partial(machines.check_quota, cluster, demand)}
    if demand.trainjob:
        checks |= {
            "kinds": partial(objects.check_kinds, cluster, demand),
            "permissions": partial(permissions.check_pod, cluster, demand),
            "GPUs": partial(machines.check_gpus, cluster, demand),
        }
    return checks


def _is_due(address: endpoints.Address, findings: Iterable[Finding], config: RunConfig) -> bool:
    """Say whether what is missing of an address stops the run: judges may come up later, traces may be there by now."""
    lacking = [finding for finding in findings if finding.status == "missing"]
    if not lacking:
        return False
    if address.role != "teacher":
        return any(finding.cause != "unreachable" for finding in lacking)
    return not _has_traces(config)


def _has_traces(config: RunConfig) -> bool:
    """Say whether an earlier run has done the traces of this one, so that no teacher is asked."""
    try:
        prepared = name_work("prepare", config.prepare, {}, config.artifact_root).committed()
        if prepared is None:
            return False
        return name_work("traces", config.traces, {"pairs": prepared}, config.artifact_root).committed() is not None
    except ReasrmError:
        return False


def _only_warns(finding: Finding) -> Finding:
    return dataclasses.replace(finding, status="warning") if finding.status == "missing" else finding


def _contents(config: RunConfig, progress: Progress) -> tuple[dict[str, str], list[Finding]]:
    """Return the digests of the stages, and what is not there; large data takes a while to read."""
    from components.adapters.storage import Storage

    storage = Storage.from_env()
    with ThreadPoolExecutor(len(STAGES)) as pool:
        reading = {stage: pool.submit(_content, config, stage, storage) for stage in STAGES}
        for _ in as_completed(reading.values()):
            progress.advance()
    read = {stage: future.result() for stage, future in reading.items()}
    contents = {stage: digest for stage, (digest, _) in read.items() if digest}
    return contents, [finding for _, findings in read.values() for finding in findings]


def _content(config: RunConfig, stage: str, storage: "Storage") -> tuple[str, list[Finding]]:
    digest = ""

    def read() -> Iterable[Finding]:
        nonlocal digest
        digest = content_of(stage, getattr(config, stage), storage)
        return ()

    findings = run(f"what {stage} reads", read)
    if stage == "benchmark":  # its champion is known to MLflow, without which training goes on
        findings = [_only_warns(finding) if finding.cause == "unreachable" else finding for finding in findings]
    return digest, findings


def _raise_for(found: Iterable[Finding]) -> None:
    lacking = [finding for finding in found if finding.status == "missing"]
    if not lacking:
        return
    lines = "".join(f"\n- {line(finding)}" for finding in lacking)
    if all(finding.cause == "unreachable" for finding in lacking):
        raise Transient(f"not everything that this run needs answers; run again when it does:{lines}")
    raise InvalidInput(f"this run cannot work yet; missing ({len(lacking)}):{lines}")
