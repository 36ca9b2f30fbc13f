"""Closing a pipeline run: its final status and its main parameters go to MLflow, and what KFP's cache gave to it."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from components.adapters import pipeline_run
from components.adapters.entry import kfp_task
from components.adapters.stage import RUN_ID_VARIABLE, WORKDIR, WORKDIR_VARIABLE
from components.adapters.stage_run import DESCRIPTION, replay
from components.adapters.tracking import Status
from components.core.errors import ReasrmError
from components.core.redact import redact
from components.report.cached import record_cached
from components.report.summary import Summary, summarise

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


def close(run_id: str, experiment: str, state: str, error: str | None, settings: Mapping[str, object]) -> None:
    """Record how the pipeline ended. MLflow being away is logged and nothing more: the run's outcome stands.

    `run_id` is KFP's; a local run names its own in the environment, as it does for the stages.
    """
    with kfp_task("report"):
        run_id = os.environ.get(RUN_ID_VARIABLE) or run_id
        status, tags = outcome(state, error)
        cached = record_cached(run_id, experiment, but=deliver_rest())
        if cached:
            logger.info("KFP took these from its cache: %s", ", ".join(cached))
        summary = _summary(run_id)
        pipeline_run.log_parent(run_id, experiment, settings, summary.metrics, data_of="prepare", model=summary.model)
        tags |= {DESCRIPTION: summary.description, **summary.tags}
        recorded = pipeline_run.finish_parent(run_id, experiment, status, tags)
        logger.info("run %s: %s, %s in MLflow", run_id, status, "recorded" if recorded else "not recorded")


def _summary(run_id: str) -> Summary:
    from components.adapters.storage import Storage

    try:
        return summarise(run_id, Storage.from_env())
    except ReasrmError as error:
        logger.warning("the run gets no summary in MLflow: %s", error)
        return Summary()


def deliver_rest() -> set[str]:
    """Deliver what MLflow was too slow for while the stages ran, as far as their working folders are here.

    Returns the stages of which something still waits.
    """
    folders = sorted(Path(os.environ.get(WORKDIR_VARIABLE, WORKDIR)).glob("*/tracking"))
    return {folder.parent.name.rpartition("-")[0] for folder in folders if replay(folder.parent)}


def outcome(state: str, error: str | None) -> tuple[Status, dict[str, str]]:
    """Return MLflow's word for how a pipeline ended, and what its run is tagged with."""
    tags = {"reasrm.error": redact(error)} if error else {}
    if state in UNTOLD and not error:
        return "FINISHED", tags | {"reasrm.outcome": "not told by KFP"}
    return STATUSES.get(state, "FAILED"), tags
