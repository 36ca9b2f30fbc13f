"""The gate as a task of its own, so that the DAG shows which way a run went and why."""

import json
import logging
from pathlib import Path
from typing import NamedTuple, cast

from components.adapters.entry import kfp_task, read_manifest
from components.adapters.progress import Progress
from components.adapters.stage import load_config
from components.core.errors import InvalidInput, ReasrmError
from components.publish.card import render_decision
from components.publish.config import Config
from components.publish.gate import Decision, decide

logger = logging.getLogger("reasrm")

LATER = "As the model is published it is also checked that the lineage is complete and all weights are finite."


class Answer(NamedTuple):
    """What the gate tells the DAG: the branch to take, and why not the other."""

    passed: bool
    reasons: str


def ask(config: str, model_name: str, benchmark: str, table: str = "") -> Answer:
    """Hold the benchmark's manifest (a path) against the thresholds of publish's configuration (JSON).

    The decision is written as Markdown to the path `table`.
    """
    with kfp_task("gate"):
        progress = Progress("gate")
        try:
            decision = _decide(config, model_name, Path(benchmark))
        except ReasrmError as error:
            progress.end("failed", str(error), error=type(error).__name__)
            raise
        summary = "passed" if decision.passed else "not passed: " + "; ".join(decision.reasons)
        logger.info("gate %s", summary)
        if table:
            Path(table).parent.mkdir(parents=True, exist_ok=True)
            Path(table).write_text(f"{render_decision(decision)}\n{LATER}\n", encoding="utf-8")
        progress.end("done", summary, passed=decision.passed)
    return Answer(decision.passed, "; ".join(decision.reasons))


def _decide(config: str, model_name: str, benchmark: Path) -> Decision:
    try:
        settings = json.loads(config)
    except ValueError as error:
        raise InvalidInput(f"the configuration of stage 'publish' is not JSON: {error}") from error
    checked = cast(Config, load_config("publish", {**settings, "model_name": model_name}))
    return decide(read_manifest(benchmark).statistics, checked)
