"""The work of `traces`: ask for what is missing, keep every answer at once."""

import asyncio
import json
import signal
import threading
from collections.abc import Coroutine
from typing import Any

from components.adapters.stage import Inputs, Output
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest
from components.core.records import write_jsonl
from components.traces.collect import Collection
from components.traces.config import Config
from components.traces.ledger import open_ledger
from components.traces.pairs import Pairs
from components.traces.plan import Plan
from components.traces.tally import Tally

STOPPED = "stopped by SIGTERM; run again to go on, every answer that came is kept"


def run(settings: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Write traces.jsonl and failures.jsonl; return the statistics.

    Raises:
        InvalidInput: the pairs have no such part, a teacher refuses all calls, too many rows failed on a teacher's side
            or were cut off, or the budget is spent.
        Transient: a teacher is not to be reached. Starting again asks only for the rows that have no trace.
    """
    plan = Plan(settings, open_pairs(settings, inputs))
    with open_ledger(output, plan.shard_of, plan.has) as ledger:
        asyncio.run(until_stopped(Collection(settings, plan, ledger, output).collect()))
        tally = Tally.of(settings, plan, ledger)
        statistics = tally.statistics()
        write_jsonl(output.directory / "failures.jsonl", tally.failures())
        if not statistics["traces"] and statistics["pairs"]:
            first = next(tally.failures())
            raise InvalidInput(f"none of {statistics['pairs']} pairs has a trace; the first failure: {first['reason']}")
        write_jsonl(output.directory / "traces.jsonl", map(json.loads, tally.traces()))
    output.summary = _summary(statistics)
    return statistics


def open_pairs(settings: Config, inputs: Inputs) -> Pairs:
    """Return the pairs that are judged. Raises InvalidInput when there are none, or nobody to judge them."""
    name = f"{settings.part}.jsonl"
    manifest = inputs["pairs"]
    if name not in {entry.path for entry in manifest.files}:
        raise InvalidInput(
            f"{manifest.uri} has no {name}, which part={settings.part} judges; give another part or input"
        )
    pairs = Pairs(inputs.fetch("pairs", only=[name]) / name, both_orders=settings.both_orders)
    if not pairs.num_pairs and not _nothing_is_asked_for(settings, manifest):
        raise InvalidInput(f"{name} has no pairs to judge; give `prepare` more data or another split")
    if pairs.num_pairs and not settings.teacher:
        raise InvalidInput(f"{name} has {pairs.num_pairs} pairs and no teacher is named; name one, or distil nothing")
    return pairs


def _nothing_is_asked_for(settings: Config, pairs: Manifest) -> bool:
    return settings.part == "distil" and pairs.config.get("distil_share") == 0


def _summary(statistics: dict[str, Any]) -> str:
    if not statistics["pairs"]:
        return "nothing to distil"
    words = [
        f"{statistics['traces']} traces of {statistics['pairs']} pairs, {statistics['right']} right",
        f"{statistics['completion_tokens']} tokens written",
    ]
    if statistics["cost"]:
        words.append(f"${statistics['cost']:.2f}")
    return ", ".join(words)


async def until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Await the work; SIGTERM cancels it and becomes Transient.

    A handler that raises, as stages have otherwise, will not do here: asyncio takes what is raised in the middle of a
    write for a broken connection and goes on. A second SIGTERM does nothing: what there is goes to S3 by then.
    """
    if threading.current_thread() is not threading.main_thread():
        await work
        return
    task, loop, previous = asyncio.ensure_future(work), asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        loop.add_signal_handler(signal.SIGTERM, lambda: None)
        task.cancel(STOPPED)

    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        await task
    except asyncio.CancelledError as error:
        if STOPPED not in error.args:
            raise
        raise Transient(STOPPED) from error
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
