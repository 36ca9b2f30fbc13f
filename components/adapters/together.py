"""Slow work that all processes do at once and that ends alike for all: with everyone's results, or with one error.

A collective call that waits for S3 would run into torch's time limit, and a process that fails alone would leave the
others waiting for ever. So the work runs in a thread, and the processes tell each other how far they are meanwhile.
Alone, it runs in the thread that asks for it: a signal ends it at once.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

from components.adapters import ranks
from components.core.errors import ReasrmError

T = TypeVar("T")

LONGEST_PAUSE_SECONDS = 1.0


def together(work: Callable[[], T]) -> list[T]:
    """Do the work in every process; return the picklable results by rank.

    Every process must call it at the same point. Raises, in every process, the error of the first rank that has one:
    a ReasrmError as it is, anything else as RuntimeError; alone, any error as it is.
    """
    if ranks.world_size() == 1:
        return [work()]
    future: Future[T] = Future()
    # A daemon, and not waited for when the exchange itself fails: another process is dead then, and this one must end.
    Thread(target=_run, args=(work, future), name="together", daemon=True).start()
    pause = 0.01
    while None in (outcomes := ranks.gather(_outcome(future))):
        wait([future], timeout=pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise_first(error for _, error in outcomes)
    return [result for result, _ in outcomes]


def raise_first(errors: Iterable[Exception | None]) -> None:
    """Raise the first error of a list that is the same in all processes."""
    for error in errors:
        if error is not None:
            raise error


def portable(error: BaseException | None) -> Exception | None:
    """Return an error that every process can unpickle and raise."""
    if error is None or isinstance(error, ReasrmError):
        return error
    told = RuntimeError(f"process {ranks.rank()}: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def _run(work: Callable[[], T], future: "Future[T]") -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # whatever it is, the main thread has to know
        future.set_exception(error)


def _outcome(future: "Future[T]") -> tuple[T | None, Exception | None] | None:
    if not future.done():
        return None
    error = future.exception()
    return (None, portable(error)) if error else (future.result(), None)
