"""Closing a pipeline run: its final status and its main parameters go to MLflow, and what KFP's cache gave to it.

What MLflow could not be told before is told here too, of this run and of earlier ones.
"""

import logging
import os
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from components.adapters import pipeline_run
from components.adapters.entry import kfp_task
from components.adapters.origin import OF_RUN, origin_tags
from components.adapters.pipeline_run import Told
from components.adapters.stage import RUN_ID_VARIABLE
from components.adapters.stage_run import DESCRIPTION
from components.adapters.tracking import StageOutput, Status
from components.core.errors import ReasrmError
from components.core.redact import redact
from components.report.cached import record_cached
from components.report.ending import Ending, forget, in_place_of, keep, kept
from components.report.kept import tell_here, tell_kept
from components.report.summary import Summary, summarise

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger("reasrm")

# KFP's words (of ML Metadata) and those of kfp.local. KFP before 2.17 leaves the group that has a loop in it RUNNING.
STATUSES: Mapping[str, Status] = {
    "COMPLETE": "FINISHED",
    "CACHED": "FINISHED",
    "SUCCEEDED": "FINISHED",
    "CANCELED": "KILLED",
    "CANCELLED": "KILLED",
}
UNTOLD = ("RUNNING", "")
TELL_SECONDS = 600.0
"""For what this run's stages left; the task may take half an hour."""
EARLIER_SECONDS = 600.0
"""For all earlier runs together."""
MAX_FAILED = 3


def close(
    run_id: str,
    experiment: str,
    state: str,
    error: str | None,
    settings: Mapping[str, str | int],
    artifact_root: str,
) -> None:
    """Record how the pipeline ended. MLflow being away is logged and nothing more: the run's outcome stands.

    `run_id` is KFP's; a local run names its own in the environment, as it does for the stages.
    """
    with kfp_task("report"):
        run_id = os.environ.get(RUN_ID_VARIABLE) or run_id
        try:
            _close(Ending.now(run_id, experiment, state, redact(error) if error else None, settings), artifact_root)
        except Exception:
            logger.exception("not all of run %s is told to MLflow", run_id)


def _close(ending: Ending, artifact_root: str) -> None:
    storage = _storage()
    deadline = time.monotonic() + TELL_SECONDS
    here, waiting = tell_here(storage, deadline), set[str]()
    try:
        waiting = tell_kept(storage, artifact_root, ending.run_id, deadline) if storage else waiting
    except ReasrmError as error:
        logger.warning(
            "run %s gets no summary, and what its stages could not tell MLflow waits: %s", ending.run_id, error
        )
        storage = None  # where S3 hangs each further question to it takes minutes
    recorded = record(ending, storage, here | waiting)
    if storage and os.environ.get("MLFLOW_TRACKING_URI"):
        if recorded and not waiting:
            forget(ending.run_id, storage, artifact_root)
            close_earlier(ending.run_id, storage, artifact_root)
        else:
            keep(ending, storage, artifact_root)


def close_earlier(but: str, storage: "Storage", artifact_root: str) -> None:
    """Close the runs whose own exit handlers could not, as MLflow was away. Best effort."""
    deadline, num_failed = time.monotonic() + EARLIER_SECONDS, 0
    try:
        for ending in kept(storage, artifact_root, but):
            with in_place_of(ending):
                waiting = tell_kept(storage, artifact_root, ending.run_id, deadline)
                recorded = record(ending, storage, waiting)
            if recorded and not waiting:
                forget(ending.run_id, storage, artifact_root)
            num_failed += not recorded  # one of them may be at fault itself
            if num_failed == MAX_FAILED or time.monotonic() > deadline:
                return
    except ReasrmError as error:
        logger.warning("what MLflow was not told of earlier runs waits: %s", error)


def record(ending: Ending, storage: "Storage | None", waiting: Collection[str]) -> bool:
    """Record in MLflow how a run ended and what its stages did; True if its run there is closed."""
    run_id, experiment = ending.run_id, ending.experiment
    status, tags = outcome(ending.state, ending.error)
    try:
        told = pipeline_run.stages_of(run_id)
    except ReasrmError as error:
        logger.warning("run %s: %s, not recorded in MLflow: %s", run_id, status, error)
        return False
    if not told.stages:  # of which MLflow heard nothing, perhaps not even that it began
        pipeline_run.open_parent(run_id, run_id, experiment, origin_tags(OF_RUN))
    summary = _summary(ending, told, storage, waiting) if storage else Summary()
    pipeline_run.log_parent(
        run_id, experiment, ending.settings, summary.metrics, data_of="prepare", model=summary.model
    )
    tags |= {DESCRIPTION: summary.description} if summary.description else {}
    tags |= summary.tags
    recorded = pipeline_run.finish_parent(run_id, experiment, status, tags, ending.at)
    logger.info("run %s: %s, %s in MLflow", run_id, status, "recorded" if recorded else "not recorded")
    return recorded


def _summary(ending: Ending, told: Told, storage: "Storage", waiting: Collection[str]) -> Summary:
    cached: list[StageOutput] = []
    try:
        cached = record_cached(ending.run_id, ending.experiment, told, storage, but=waiting)
        if cached:
            logger.info("KFP took these from its cache: %s", ", ".join(one.stage for one in cached))
    except ReasrmError as error:
        logger.warning("which stages KFP took from its cache is not recorded: %s", error)
    try:
        return summarise([*told.outputs, *cached], storage)
    except ReasrmError as error:
        logger.warning("the run gets no summary in MLflow: %s", error)
        return Summary()


def _storage() -> "Storage | None":
    from components.adapters.storage import Storage

    try:
        return Storage.from_env()
    except ReasrmError as error:
        logger.warning("S3 cannot be reached: %s", error)
        return None


def outcome(state: str, error: str | None) -> tuple[Status, dict[str, str]]:
    """Return MLflow's word for how a pipeline ended, and what its run is tagged with."""
    tags = {"reasrm.error": redact(error)} if error else {}
    if state in UNTOLD and not error:
        return "FINISHED", tags | {"reasrm.outcome": "not told by KFP"}
    return STATUSES.get(state, "FAILED"), tags
