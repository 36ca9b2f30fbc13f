"""torchrun on one of several machines: `python -m components.adapters.torchrun <torchrun's own arguments>`.

Beside what torchrun does it leaves the failure that the others of this machine follow from in the file that
REASRM_TERMINATION_LOG names, where whoever started the machines reads it (Kubernetes shows it in the pod's status).
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from components.adapters.launch import STOPPED, Failure, first
from components.core.errors import Transient
from components.core.redact import redact

logger = logging.getLogger(__name__)

LOG_VARIABLE = "REASRM_TERMINATION_LOG"
LIMIT = 4096
"""Bytes of a termination message that Kubernetes keeps."""


def main(arguments: Sequence[str]) -> int:
    """Run torchrun to its end and return the exit code of the first process that failed."""
    # The first process of a container does not even hear a signal that it has no handler for; torchrun sets its own.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        failure = first([Failure.of(rank, failure) for rank, failure in error.failures.items()])
        leave(failure)
        return failure.exit_code if failure.exit_code > 0 else 128 - failure.exit_code
    except SignalException as error:
        leave(Failure(_first_rank(), Transient.exit_code, time.time(), f"{STOPPED} ({error.sigval.name})"))
        return 128 + int(error.sigval)
    except Exception as error:  # such as machines that never came
        leave(Failure(_first_rank(), 1, time.time(), redact(f"torchrun: {type(error).__name__}: {error}")))
        raise
    return 0


def leave(failure: Failure) -> None:
    """Write a failure where Kubernetes looks for it; without such a place there is nothing to do."""
    path = os.environ.get(LOG_VARIABLE)
    if not path:
        return
    try:
        Path(path).write_bytes(encode(failure))
    except OSError as problem:
        logger.warning("the failure is not told to Kubernetes: %s", problem)


def encode(failure: Failure) -> bytes:
    """Return a failure as JSON of at most LIMIT bytes; the middle of a longer message is left out."""
    kept = len(failure.message)
    while True:
        message = failure.message
        if kept < len(message):
            message = f"{message[: kept // 2]} [...] {message[len(message) - kept // 2 :]}"
        facts = {"rank": failure.rank, "exit_code": failure.exit_code, "moment": failure.moment, "message": message}
        data = json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")
        if len(data) <= LIMIT:
            return data
        kept -= max(16, (len(data) - LIMIT) // 4)


def decode(text: str) -> Failure | None:
    """Read a failure back; None where the text is none."""
    try:
        facts = json.loads(text)
        return Failure(int(facts["rank"]), int(facts["exit_code"]), float(facts["moment"]), str(facts["message"]))
    except (ValueError, TypeError, KeyError):
        return None


def _first_rank() -> int:
    machine, processes = os.environ.get("PET_NODE_RANK", "0"), os.environ.get("PET_NPROC_PER_NODE", "1")
    return int(machine) * int(processes) if machine.isdecimal() and processes.isdecimal() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
