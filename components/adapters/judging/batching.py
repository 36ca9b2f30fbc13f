"""Many askers, one engine: what is asked at the same time is judged in the same batch.

A thread of its own calls the engine. It takes prompts from the tickets that wait by turns, so that a long ranking does
not keep a single comparison waiting, and hands each ticket its judgments when the last one is there.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from components.adapters.engines import Engine
from components.adapters.judging.asking import Prompt, Said, ask
from components.core.errors import ReasrmError, Transient

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.003
"""How long an idle engine waits for company before it begins: requests that come together arrive within this."""


class Ticket:
    """Prompts of one asker; `future` is their judgments in order, and cancelling it drops what was not begun."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.future: Future[list[Said]] = Future()
        self.waiting = deque(range(len(prompts)))
        self.said: dict[int, Said] = {}

    def keep(self, place: int, said: Said) -> None:
        """Take a judgment; the last one settles the future."""
        self.said[place] = said
        if len(self.said) == len(self.prompts):
            with suppress(Exception):  # it was cancelled meanwhile
                self.future.set_result([self.said[at] for at in range(len(self.prompts))])

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless it has ended. What waits stays: it is the taking thread's, which looks first."""
        if not self.future.done():
            with suppress(Exception):
                self.future.set_exception(error)


Slot = tuple[Ticket, int]


class Batcher:
    """Runs an engine in threads of its own; each opens one, and `batch` bounds what all of them have under way.

    `opened` is settled when the first engine is there, or could not be opened. `is_local`: the engine does not come
    back once it died; `broken` then says why, and whoever watches should start the process anew. `on_said` and
    `on_batch` are told each judgment and the size of each batch, in the engine's thread.
    """

    def __init__(
        self,
        opener: Callable[[], Engine],
        *,
        batch: int,
        is_local: bool,
        num_workers: int = 1,
        on_said: Callable[[Said], None] = lambda said: None,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.opened: Future[None] = Future()
        self.broken: ReasrmError | None = None
        self._opener, self._batch, self._is_local = opener, batch, is_local
        self._on_said, self._on_batch = on_said, on_batch
        self._tickets: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._num_under_way = 0
        self._heard = 0.0
        self._closing = False
        self._engines: list[Engine] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(num_workers)]

    @property
    def silent_seconds(self) -> float:
        """How long the engines have had prompts under way and given no judgment; 0 while they have none."""
        with self._changed:
            return time.monotonic() - self._heard if self._num_under_way else 0.0

    def start(self) -> None:
        """Begin to open the engine."""
        for thread in self._threads:
            thread.start()

    def submit(self, prompts: Sequence[Prompt]) -> "Future[list[Said]]":
        """Queue prompts and return their judgments to come. Raises Transient when closed, or what broke the engine."""
        ticket = Ticket(prompts)
        with self._changed:
            if self.broken is not None or self._closing:
                raise self.broken or Transient("the judge is shutting down; ask again in a moment")
            self._tickets.append(ticket)
            self._changed.notify()
        return ticket.future

    def close(self, seconds: float = 10.0) -> None:
        """Stop: what is queued ends with Transient, and so does what the engine has under way."""
        with self._changed:
            self._closing = True
            tickets, engines = list(self._tickets), list(self._engines)
            self._tickets.clear()
            self._changed.notify_all()
        for ticket in tickets:
            ticket.fail(Transient("the judge is shutting down; ask again in a moment"))
        for engine in engines:
            engine.close()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        try:
            engine = self._opener()
        except BaseException as error:
            with suppress(Exception):
                self.opened.set_exception(error)
            return
        with self._changed:
            self._engines.append(engine)
            is_late = self._closing
        if is_late:  # `close` has gone through the engines that were there
            engine.close()
            return
        with suppress(Exception):
            self.opened.set_result(None)
        while slots := self._take():
            self._on_batch(len(slots))
            self._judge(engine, slots)
            self._release(sum(at not in ticket.said for ticket, at in slots))

    def _take(self) -> list[Slot]:
        """Wait for prompts and room, and return a batch, one prompt from each ticket by turns; none when closed."""
        while True:
            with self._changed:
                was_idle = not self._tickets
                while not self._closing and (not self._tickets or self._num_under_way >= self._batch):
                    self._changed.wait()
            if was_idle:
                time.sleep(GATHER_SECONDS)
            with self._changed:
                slots: list[Slot] = []
                while self._tickets and len(slots) + self._num_under_way < self._batch:
                    ticket = self._tickets.popleft()
                    if ticket.waiting and not ticket.future.done():
                        slots.append((ticket, ticket.waiting.popleft()))
                        self._tickets.append(ticket)
                if slots or self._closing:
                    self._num_under_way += len(slots)
                    self._heard = time.monotonic()
                    return slots

    def _release(self, num_slots: int) -> None:
        """Make room for other prompts."""
        with self._changed:
            self._num_under_way -= num_slots
            self._heard = time.monotonic()
            self._changed.notify()

    def _judge(self, engine: Engine, slots: list[Slot]) -> None:
        tickets = list({id(ticket): ticket for ticket, _ in slots}.values())
        try:
            self._ask(engine, slots)
        except Transient as error:
            if self._is_local:
                self._fail(tickets, error)
                self._break(error)
            else:  # those whose prompts of this batch have an answer go on
                self._fail([ticket for ticket, at in slots if at not in ticket.said], error)
        except Exception as error:
            if len(tickets) == 1:
                self._fail(tickets, error)
                return
            # It may be one asker's fault (a batch too large for the memory is all of theirs): each is asked alone.
            logger.warning(
                "a batch of %d askers failed (%s: %s); each is asked alone", len(tickets), type(error), error
            )
            for ticket in tickets:
                left = [slot for slot in slots if slot[0] is ticket and slot[1] not in ticket.said]
                if left:
                    self._judge(engine, left)

    def _ask(self, engine: Engine, slots: list[Slot]) -> None:
        def keep(place: int, said: Said) -> None:
            ticket, at = slots[place]
            self._on_said(said)
            ticket.keep(at, said)
            self._release(1)

        ask(engine, [ticket.prompts[at] for ticket, at in slots], keep)

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        for ticket in tickets:
            ticket.fail(error)

    def _break(self, error: Transient) -> None:
        with self._changed:
            if not self._closing:
                self.broken = error
            tickets = list(self._tickets)
            self._tickets.clear()
        self._fail(tickets, error)
