"""Closing a pipeline run: its final status and its main parameters go to MLflow."""

import logging
import os
from collections.abc import Mapping

from components.adapters import tracking
from components.adapters.entry import kfp_task
from components.adapters.stage import RUN_ID_VARIABLE
from components.core.redact import redact

logger = logging.getLogger("reasrm")

STATUSES: Mapping[str, tracking.Status] = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}


def close(run_id: str, experiment: str, state: str, error: str | None, settings: Mapping[str, object]) -> None:
    """Record how the pipeline ended. MLflow being away is logged and nothing more: the run's outcome stands.

    `run_id` is KFP's; a local run names its own in the environment, as it does for the stages.
    """
    with kfp_task("report"):
        run_id = os.environ.get(RUN_ID_VARIABLE) or run_id
        status = STATUSES.get(state, "FAILED")
        tracking.log_parent_params(run_id, experiment, settings)
        recorded = tracking.finish_parent(run_id, experiment, status, {"reasrm.error": redact(error)} if error else {})
        logger.info("run %s: %s, %s in MLflow", run_id, status, "recorded" if recorded else "not recorded")
