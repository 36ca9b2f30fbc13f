"""The process that empties a spool into MLflow: `python -m components.adapters.delivery DIRECTORY SECONDS [URI]`.

It delivers in order and remembers the last operation that MLflow took. Each byte on its standard input says that
there is more; at the end of input it has SECONDS to deliver the rest. Whatever may have reached MLflow before a
failure is looked up before it is sent again, so nothing is there twice. While MLflow is away the spool is kept in S3
now and then, in the folder URI, as a stage or its machine may be killed.
"""

import logging
import os
import select
import sys
import time
from dataclasses import replace
from pathlib import Path

from components.adapters.sending import Delivery
from components.adapters.spool import (
    Op,
    SpoolReader,
    next_batch,
    read_state,
    reject,
    sole_deliverer,
    write_state,
)
from components.adapters.tracking import REFUSED, all_experiments, http_status
from components.core.errors import ReasrmError
from components.core.redact import redact

logger = logging.getLogger(__name__)

LOCK_SECONDS = 15.0
KEEP_EVERY_SECONDS = 600.0
UNREACHABLE_SECONDS = 2.5
MAX_BACKOFF_SECONDS = 5.0
MAX_ARTIFACT_TRIES = 3


def keep(directory: Path, uri: str) -> None:
    """Keep in S3 what MLflow was not told yet. Best effort."""
    from components.adapters.storage import Storage
    from components.adapters.untold import Shelf

    try:
        Shelf(Storage.from_env(), uri).settle(directory, told=False)
    except ReasrmError as error:
        logger.warning("the spool is not kept at %s: %s", uri, error)


def deliver(directory: Path, drain_seconds: float, keep_at: str = "") -> bool:
    """Deliver until the input ends and the spool is empty, or the time after the end of input is up."""
    kept = time.monotonic()
    delivery = Delivery(directory, replace(read_state(directory), deliverer=os.getpid(), error=""))
    write_state(directory, delivery.state)
    reader, ops, ended_at, failures = SpoolReader(directory, delivery.state.acked), list[Op](), 0.0, 0
    while True:
        ops += reader.read()
        if ops:
            batch = next_batch(ops)
            done = _attempt(delivery, batch, failures)
            ops = [op for op in ops if op.seq > delivery.state.acked]
            if done:
                failures = 0
                continue
            failures += 1
            if keep_at and time.monotonic() - kept > KEEP_EVERY_SECONDS:
                keep(directory, keep_at)
                kept = time.monotonic()
        elif ended_at:
            return True
        over = time.monotonic() - ended_at if ended_at else 0.0
        if over > drain_seconds or (failures and over > min(UNREACHABLE_SECONDS, drain_seconds)):
            return False
        pause = min(MAX_BACKOFF_SECONDS, 0.2 * 2 ** min(failures, 5)) if failures else 1.0
        if ended_at:
            time.sleep(min(pause, 0.3))
        elif _input_ended(pause, wake=not failures):
            ended_at = time.monotonic()


def _attempt(delivery: Delivery, batch: list[Op], failures: int) -> bool:
    """Send a batch; True if it is done with, delivered or refused for good. Anything else is left to the next try."""
    reason = ""
    try:
        delivery.send(batch)
    except Exception as error:
        reason, status = redact(f"{type(error).__name__}: {error}"), http_status(error)
        refused = status in REFUSED and batch[0].kind != "open"
        stuck = batch[0].kind == "artifact" and failures + 1 >= MAX_ARTIFACT_TRIES and _answers(delivery)
        if not refused and not stuck:
            logger.warning("operation %s: %s", batch[0].seq, reason)
            delivery.uncertain, delivery.state = True, replace(delivery.state, error=reason)
            write_state(delivery.directory, delivery.state)
            return False
        delivery.uncertain = True
        if len(batch) > 1:  # Find the one that is at fault.
            return all(_attempt(delivery, [op], failures) for op in batch)
    if reason:
        logger.error("operation %s is refused: %s", batch[0].seq, reason)
        delivery.state = reject(delivery.directory, batch[0], reason, delivery.state)
    delivery.uncertain = bool(reason)
    delivery.state = replace(delivery.state, acked=batch[-1].seq, error="")
    write_state(delivery.directory, delivery.state)
    return True


def _answers(delivery: Delivery) -> bool:
    """Tell whether MLflow itself is there, so that a failing artifact store alone does not hold up the rest."""
    try:
        return bool(all_experiments(delivery.client))
    except Exception as error:
        logger.warning("MLflow does not answer: %s", error)
        return False


def _input_ended(pause_seconds: float, wake: bool) -> bool:
    """Wait for a byte, or for the time to pass; True once the stage has closed its end, or is dead."""
    until = time.monotonic() + pause_seconds
    while (left := until - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        if not os.read(sys.stdin.fileno(), 65536):
            return True
        if wake:
            return False
        time.sleep(min(0.05, max(left, 0.0)))
    return False


def main() -> int:
    """Run as a process of its own; exit code 75 if something is left in the spool."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # MLflow without pandas is what mlflow-skinny is; it loads in half of the time.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    directory, drain_seconds, keep_at = Path(sys.argv[1]), float(sys.argv[2]), "".join(sys.argv[3:])
    with sole_deliverer(directory, LOCK_SECONDS) as alone:
        done = alone and deliver(directory, drain_seconds, keep_at)
        if alone and not done and keep_at:  # the stage does so itself, unless it was killed
            keep(directory, keep_at)
    return 0 if done else 75


if __name__ == "__main__":
    sys.exit(main())
