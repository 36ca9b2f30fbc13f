"""Several checks at the same time, each bounded."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from components.core.errors import ReasrmError, Transient
from pipeline.checks.finding import Finding, missing, unknown

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""Longest that all checks together take."""
REACH = "see that it is up and can be reached, then run this again"
Check = Callable[[], Iterable[Finding]]


def gather(checks: Mapping[str, Check], seconds: float = SECONDS) -> dict[str, list[Finding]]:
    """Return what each check finds, in the order of the checks; that one fails or takes too long is a finding too."""
    found: dict[str, list[Finding]] = {}

    def work(name: str, check: Check) -> None:
        found[name] = run(name, check)

    # Daemons, because a call that hangs must not keep the process from ending.
    threads = [threading.Thread(target=work, args=item, daemon=True) for item in checks.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    slow = missing("", f"no answer within {seconds:g} seconds", REACH, "unreachable")
    return {name: found[name] if name in found else [replace(slow, name=name)] for name in checks}


def run(name: str, check: Check) -> list[Finding]:
    """Return what one check finds; what it raises becomes a finding, beside those before it."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except ReasrmError as error:
        away = isinstance(error, Transient)
        found.append(missing(name, str(error), REACH if away else "", "unreachable" if away else ""))
    except ImportError as error:
        found.append(unknown(name, f"{error.name} is not installed here", "pip install 'reasrm[stage]'"))
    except Exception as error:
        logger.debug("check %s", name, exc_info=True)
        found.append(unknown(name, f"could not be checked: {type(error).__name__}: {error}"))
    return found
