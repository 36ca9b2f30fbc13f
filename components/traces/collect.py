"""The cascade at work: each teacher is asked for what is missing, and every answer is kept and graded at once."""

import asyncio
import dataclasses
import logging
import math
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.adapters.stage import Output
from components.adapters.teachers import Failure, Outcome, OverBudget, Reply, Request, Teacher, Usage, open_teacher
from components.core.errors import InvalidInput, Transient
from components.core.prompts import render, render_with_label
from components.core.schema import Trace
from components.core.teachers import AnyTeacher, BatchTeacher, EndpointTeacher, Price, RecordedTeacher
from components.core.verdict import parse_verdict
from components.traces.budget import Account, Budget
from components.traces.commits import Commits
from components.traces.config import Config
from components.traces.gauge import Gauge
from components.traces.ledger import Ledger
from components.traces.plan import Plan, Row

if TYPE_CHECKING:
    from components.adapters.teachers.batch import Progress

logger = logging.getLogger(__name__)

ALONE = "alone-"
"""Begins the names of objects which say that a stage with a budget began to ask: what parts agreed on is void then."""
SEND_SECONDS = 60.0
"""Time in seconds after which answers go to S3 although their shards are not complete."""
ENOUGH_TO_TELL = 20
SIGMAS = 3.0


class OverLimit(InvalidInput):
    """A limit of the settings is crossed, or the budget is spent. A part ends with it, and leaves it to the stage."""


class Collection:
    """One attempt at the whole cascade, or at a part's share of its rows."""

    def __init__(self, settings: Config, plan: Plan, ledger: Ledger, output: Output) -> None:
        self.settings, self.plan, self.ledger, self.output = settings, plan, ledger, output
        self.commits = Commits(ledger, plan.num_shards)
        self.budget = Budget(settings.max_total_tokens, settings.max_cost)
        places = enumerate(settings.teacher)
        sent = (
            place for place, one in places if isinstance(one, BatchTeacher) and output.read_partial(f"batch-{place}-0")
        )
        plan.sent = max(sent, default=0)
        self.accounts = [self._account(teacher) for teacher in settings.teacher]
        for name, entry in ledger.entries.items():
            self._book(name, Usage(entry.prompt_tokens, entry.completion_tokens))
        for waste in list(ledger.wastes.values()):
            self._book(waste.name, waste.usage, in_vain=True)

    async def collect(self) -> None:
        """Ask for every row without a trace; whatever ends this, what there is gets committed."""
        try:
            teachers = self._open_early()
            if teachers and self.budget.is_limited and self.plan.share.is_whole:
                self.output.write_partial(f"{ALONE}{uuid.uuid4().hex}", b"")
            for number in range(len(self.settings.teacher)):
                step = _Step(self, number, list(self.plan.missing(self.ledger, number)))
                if step.rows:
                    await step.ask(teachers.pop(number))
                step.check()
                await self.commits.finish()
        except BaseException:
            for account in self.accounts:
                account.close()
            await self.commits.rescue()
            raise

    def is_paid(self, step: int) -> bool:
        """Tell whether a step's calls take from the budget."""
        return not isinstance(self.settings.teacher[step], RecordedTeacher)

    def has_price(self, step: int) -> bool:
        """Tell whether a step's tokens cost dollars that are known."""
        return price_of(self.settings, self.settings.teacher[step]) is not None

    def _account(self, teacher: AnyTeacher) -> Account:
        at_risk = isinstance(teacher, EndpointTeacher)
        return self.budget.account(self.ledger.waste, price_of(self.settings, teacher), at_risk=at_risk)

    def _book(self, name: str, usage: Usage, *, in_vain: bool = False) -> None:
        row = self.plan.row(name)
        if row is not None and self.is_paid(row.step) and self.plan.has(name):
            self.accounts[row.step].book(usage, in_vain=in_vain)

    def _open_early(self) -> dict[int, Teacher]:
        """Open all teachers that may be asked: a missing key is found before the first has worked for a day."""
        first = next((s for s in range(len(self.accounts)) if any(self.plan.missing(self.ledger, s))), None)
        return {} if first is None else {step: self._open(step) for step in range(first, len(self.accounts))}

    def _open(self, step: int) -> Teacher:
        folder = self.output.workdir / "sources"
        teacher, account = self.settings.teacher[step], self.accounts[step]
        return open_teacher(teacher, self.output.storage, folder, self.output, account, step, self._show_batches)

    def _show_batches(self, progress: "Progress") -> None:
        there = f"{progress.finished} of {progress.rows} rows of {progress.batches} batches"
        self.output.progress.advance(0, note=f"{there} are judged, {progress.waiting} wait")


class _Step:
    """One teacher's turn in this attempt."""

    def __init__(self, collection: Collection, step: int, rows: Sequence[Row]) -> None:
        self.all, self.step, self.rows = collection, step, rows
        self.settings, self.plan, self.ledger = collection.settings, collection.plan, collection.ledger
        self.teacher = self.settings.teacher[step]
        self.account = collection.accounts[step]
        self.max_tokens = self.teacher.max_tokens or self.settings.max_tokens
        self.is_last = step == len(self.settings.teacher) - 1
        self.left = deque(rows)
        self.open_rows = Counter(row.view.place // self.settings.shard_size for row in rows)
        self.unanswered = Counter(row.view.key for row in rows)
        self.under_way = {row.name for row in rows}
        self.kinds: Counter[str] = Counter()
        self.last_failure: Failure | None = None
        self.num_lost = 0
        there = [e for row in self.plan.step(self.ledger, step) if (e := self.ledger.entries.get(row.name))]
        self.num_traces, self.num_truncated = len(there), sum(entry.truncated for entry in there)
        self.num_rows = len(rows) + len(there)
        self.gauge = Gauge(step, collection.budget, collection.has_price(step))
        self.client: Teacher | None = None
        self.unsent: Exception | None = None

    async def ask(self, teacher: Teacher) -> None:
        """Ask the teacher for the rows.

        Raises:
            InvalidInput: the teacher refuses all calls.
            OverLimit: the budget is spent, or too many rows failed.
            Transient: the teacher or S3 cannot be reached.
        """
        self.client = teacher
        num_steps = len(self.settings.teacher)
        what = "teacher calls" if num_steps == 1 else f"teacher calls, step {self.step + 1} of {num_steps}"
        with self.all.output.progress.bar(what, total=self.num_rows, done=self.num_traces):
            sender = asyncio.create_task(self._send_now_and_then())
            try:
                while self.left and not self.unsent:
                    await teacher.ask(self._requests(), self._keep)
                    if self.left and not self.unsent:
                        self.check()  # Calls that were under way may have undone what cut the round short.
            except OverBudget as error:
                raise OverLimit(self._over_budget(error)) from error
            finally:
                sender.cancel()
                self._log()
        if self.unsent is not None:
            raise self.unsent

    def check(self) -> None:
        """Hold the step against its limits, now that it is over.

        Raises:
            OverLimit: too many rows failed on the teacher's side, or too many traces were cut off.
            Transient: too many rows failed because the teacher was not to be reached.
        """
        self._check_failures()
        if self._is_truncated(at_end=self.plan.share.is_whole):
            raise OverLimit(
                f"{self.num_truncated} of {self.num_traces} traces of {describe(self.teacher)} were cut off at "
                f"max_tokens={self.max_tokens}, more than max_truncated_fraction="
                f"{self.settings.max_truncated_fraction:g} allows; raise max_tokens (everything is then asked for "
                "anew), or raise max_truncated_fraction to go on with what there is"
            )

    def _requests(self) -> Iterator[Request]:
        """Yield what is missing, until the stage is bound to fail: calls under way are then still waited for."""
        while self.left and not (self.unsent or self._has_failed() or self._is_truncated(at_end=False)):
            yield self._request(self.left.popleft())

    def _request(self, row: Row) -> Request:
        pair = self.plan.pairs.pair(row.view)
        if self.teacher.show_label:
            wrong = self.plan.wrong_before(self.ledger, row)
            prompt = render_with_label(pair, self.settings.grammar, self.ledger.trace(wrong).text if wrong else None)
        else:
            prompt = render(pair, self.settings.grammar)
        return Request(row.name, prompt.messages, self.max_tokens, self.teacher.temperature, pair, row.sample)

    def _keep(self, outcome: Outcome) -> None:
        row = self.plan.row(outcome.key)
        if row is None:
            raise LookupError(f"the teacher answered {outcome.key!r}, which was not asked for")
        right = False
        if isinstance(outcome, Reply):
            trace = self._trace(row, outcome)
            right = bool(trace.right)
            self.ledger.add(trace)
            self.num_traces += 1
            self.num_truncated += trace.finish_reason == "length"
            tokens = Usage(outcome.prompt_tokens, outcome.completion_tokens)
        else:
            tokens = Usage()
            self.ledger.fail(outcome)
            self.kinds[outcome.kind] += 1
            self.last_failure = outcome
            logger.warning("no trace for %s: %s", outcome.key, outcome.reason)
        if self.all.is_paid(self.step):
            self.account.prove(outcome.key, tokens)
        self._settle(row)
        self.gauge.count(outcome, right)
        self.all.output.progress.advance(1, note=self.gauge.note())
        if self.gauge.is_due():
            self._log()

    def _settle(self, row: Row) -> None:
        """Count a row as answered: its pair may be lost now, and its shard may be complete."""
        self.under_way.discard(row.name)
        self.unanswered[row.view.key] -= 1
        if not self.unanswered[row.view.key] and not self.plan.has_trace(self.ledger, row.view):
            self.num_lost += 1
        shard = row.view.place // self.settings.shard_size
        self.open_rows[shard] -= 1
        if not self.open_rows[shard]:
            self.all.commits.send(shard)
            self._take()

    async def _send_now_and_then(self) -> None:
        """Send what is new of shards that are not complete, so that a lost machine takes little with it."""
        while not self.unsent:
            await asyncio.sleep(SEND_SECONDS)
            self._take()
            self.all.commits.send_all(self.under_way)

    def _take(self) -> None:
        try:
            self.all.commits.take()
        except Exception as error:
            self.unsent = error  # Raised when the calls under way have ended: they are paid for.

    def _trace(self, row: Row, reply: Reply) -> Trace:
        """Return the reply as a graded trace; reasoning that the server kept apart belongs to it if that is free."""
        text = reply.text
        if self.settings.grammar == "think" and reply.reasoning and "</think>" not in text:
            text = f"<think>{reply.reasoning}</think>\n{text}"
        verdict = parse_verdict(text, truncated=reply.finish_reason == "length")
        return Trace(
            key=row.view.key,
            pair_id=row.view.pair_id,
            swapped=row.view.swapped,
            teacher=reply.teacher,
            text=text,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            step=row.step,
            sample=row.sample,
            rationalised=self.teacher.show_label or reply.rationalised,
            right=verdict.winner == row.view.label,
        )

    # -- limits --------------------------------------------------------------------------------------------------

    def _has_failed(self) -> bool:
        """Tell whether the step is beyond its limit of failures.

        What fails before the last step is asked of a later teacher, so only a teacher that answers nothing at all is a
        fault there; rows that a recording lacks never are.
        """
        if self.is_last:
            return self.num_lost > self.settings.max_failed_fraction * len(self.plan.pairs.views)
        return not self.num_traces and self.kinds.total() - self.kinds["missing"] >= ENOUGH_TO_TELL

    def _check_failures(self) -> None:
        if not self._has_failed() or self.last_failure is None:
            return
        last = f"the last was {self.last_failure.key}: {self.last_failure.reason}"
        who = describe(self.teacher)
        if self.is_last:
            message = (
                f"{self.num_lost} of {len(self.plan.pairs.views)} pairs got no trace ({_words(self.kinds)} at {who}), "
                f"more than max_failed_fraction={self.settings.max_failed_fraction:g} allows; {last}"
            )
        else:
            message = f"{who} answered none of {self.kinds.total()} rows ({_words(self.kinds)}); {last}"
        if self.kinds["transport"] * 2 > self.kinds.total():
            raise Transient(f"{message}. Run again when the teacher can be reached: only what is missing is asked for")
        remedy = ", or raise max_failed_fraction" if self.is_last else ""
        raise OverLimit(f"{message}. Change the teacher or its settings{remedy}")

    def _is_truncated(self, *, at_end: bool) -> bool:
        """Tell whether too many traces were cut off: exactly at the end, and beyond chance before."""
        share, count = self.settings.max_truncated_fraction, self.num_traces
        chance = 0.0 if at_end else SIGMAS * math.sqrt(share * (1 - share) * count)
        return (at_end or count >= ENOUGH_TO_TELL) and self.num_truncated > share * count + chance

    def _over_budget(self, error: OverBudget) -> str:
        """Say what was spent, what there is for it, and what the rest would cost."""
        budget, settings = self.all.budget, self.settings
        limits = [f"max_cost=${settings.max_cost:g}"] if settings.max_cost is not None else []
        limits += [f"max_total_tokens={settings.max_total_tokens}"] if settings.max_total_tokens is not None else []
        has_price = any(map(self.all.has_price, range(len(settings.teacher))))
        spent = f"{budget.tokens} tokens" + (f" (${budget.cost:.4f})" if has_price else "")
        views = self.plan.views
        num_with = sum(self.plan.has_trace(self.ledger, view) for view in views)
        num_missing = sum(1 for _ in self.plan.missing(self.ledger, self.step))
        rest = f"{num_missing} rows of {describe(self.teacher)} are missing"
        if self.num_traces:
            mean = self.account.spent.prompt_tokens + self.account.spent.completion_tokens
            tokens = math.ceil(mean / self.num_traces * num_missing)
            cost = self.account.cost_of(self.account.spent) / self.num_traces * num_missing
            rest += f" and would take about {tokens} tokens" + (f" (${cost:.4f})" if has_price else "")
        return (
            f"the budget ({', '.join(limits)}) is spent as far as it can be without crossing it: {spent} are spent, "
            f"and {error}. {num_with} of {len(views)} pairs have traces; {rest}. Raise "
            f"{' or '.join(limit.partition('=')[0] for limit in limits)} to go on: nothing is asked for twice"
        )

    # -- live numbers --------------------------------------------------------------------------------------------

    def _log(self) -> None:
        wasted = sum(account.wasted.prompt_tokens + account.wasted.completion_tokens for account in self.all.accounts)
        numbers = self.gauge.numbers() | {"traces": float(len(self.ledger.entries)), "wasted_tokens": float(wasted)}
        numbers |= _numeric(getattr(self.client, "stats", None))
        self.all.output.tracking.log_metrics(numbers, step=len(self.ledger.entries) + len(self.ledger.failures))


def describe(teacher: AnyTeacher) -> str:
    """Name a teacher for a message: the model, or the recording."""
    return teacher.uri if isinstance(teacher, RecordedTeacher) else teacher.model


def price_of(settings: Config, teacher: AnyTeacher) -> Price | None:
    """Return the price of a teacher's tokens, or None where it costs nothing or its price was not given."""
    return settings.prices.get(teacher.model) if isinstance(teacher, EndpointTeacher | BatchTeacher) else None


def _numeric(stats: Any) -> dict[str, float]:
    values = dataclasses.asdict(stats) if dataclasses.is_dataclass(stats) and not isinstance(stats, type) else {}
    return {f"calls.{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}


def _words(kinds: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
