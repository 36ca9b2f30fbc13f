"""A share of the teacher calls: what comes is committed as the stage would commit it, and the stage puts it together.

A part has whole shards, for all steps of the cascade. Limits of the settings end it early and quietly: only the stage,
which sees all rows, can say whether they hold. A teacher that refuses, or is not there, ends it as it ends the stage.
"""

import asyncio
import logging

from components.adapters.part import Share
from components.adapters.stage import Inputs, Output
from components.core.errors import InvalidInput
from components.core.teachers import AnyTeacher, BatchTeacher, EndpointTeacher, RecordedTeacher
from components.traces.allowance import allowance
from components.traces.collect import Collection, OverLimit
from components.traces.config import Config
from components.traces.ledger import Ledger, open_ledger
from components.traces.plan import Plan
from components.traces.run import open_pairs, until_stopped

logger = logging.getLogger(__name__)


def nothing_to_do(settings: Config) -> str:
    """Return why parts have nothing to do. Raises InvalidInput for a teacher that cannot be asked in parts."""
    batch = next((teacher.model for teacher in settings.teacher if isinstance(teacher, BatchTeacher)), None)
    if batch is not None:
        raise InvalidInput(
            f"the teacher {batch} is asked in batches, which the provider works on side by side: set traces_parts to 1"
        )
    if all(isinstance(teacher, RecordedTeacher) for teacher in settings.teacher):
        return "recorded judgments are played by the stage"
    return ""


def run_part(settings: Config, inputs: Inputs, output: Output, share: Share) -> str:
    """Ask for the rows of the share that have no trace.

    Raises:
        InvalidInput: the pairs have no such part, or a teacher refuses all calls.
        Transient: a teacher is not to be reached. Starting again asks only for the rows that have no trace.
    """
    plan = Plan(settings, open_pairs(settings, inputs), share)
    early = ""
    with open_ledger(output, plan.shard_of, plan.has) as ledger:
        limited = _limited(settings, plan, ledger, output)
        try:
            asyncio.run(until_stopped(Collection(limited, plan, ledger, output).collect()))
        except OverLimit as error:
            logger.warning("this part ends early and leaves the rest to the stage: %s", error)
            early = "; ended early at a limit, the log says which"
        entries = [ledger.entries[row.name] for row in plan.rows(ledger) if row.name in ledger.entries]
        failed = sum(row.name in ledger.failures for row in plan.rows(ledger))
    right, written = sum(entry.right for entry in entries), sum(entry.completion_tokens for entry in entries)
    output.tracking.log_metrics({"part.traces": len(entries), "part.right": right, "part.failed": failed})
    return (
        f"{len(entries)} traces of {len({view.pair_id for view in plan.views})} pairs, {right} right, {failed} failed, "
        f"{written} tokens written{early}"
    )


def _limited(settings: Config, plan: Plan, ledger: Ledger, output: Output) -> Config:
    """Return the settings with the part's share of what all parts together may spend and call."""
    teachers = tuple(_slower(teacher, settings, plan.share) for teacher in settings.teacher)
    tokens, cost = allowance(settings, plan, ledger, output)
    return settings.model_copy(update={"teacher": teachers, "max_total_tokens": tokens, "max_cost": cost})


def _slower(teacher: AnyTeacher, settings: Config, share: Share) -> AnyTeacher:
    if not isinstance(teacher, EndpointTeacher):
        return teacher
    calls = share.limited(teacher.calls, teacher.max_tokens or settings.max_tokens, f"the teacher {teacher.model}")
    return teacher.model_copy(update={"calls": calls})
