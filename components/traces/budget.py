"""The budget of all teachers together: a limit in tokens and one in dollars, neither of which is ever crossed.

Before an attempt the most that it can cost is set aside; it begins only if that fits beside what was spent and what is
set aside for the others. Afterwards what it took is booked. What a trace cost stands in the trace; everything else
that was paid, or may have been, is kept as waste, so that no restart forgets it.
"""

import asyncio
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from components.adapters.teachers import OverBudget, Request, Usage
from components.core.teachers import Price

TOKENS_PER_MESSAGE = 32
TOKENS_PER_PROMPT = 64
SAFETY = 1.25
PER_MILLION = 1e-6
KeepWaste = Callable[[str, str, Usage], None]
"""Keeps (id, name of the row, tokens) on disk; a later call with the same id replaces an earlier one."""


@dataclass
class Budget:
    """What may be spent, None for no limit, and what was: one account for each teacher."""

    max_tokens: int | None = None
    max_cost: float | None = None
    accounts: list["Account"] = field(default_factory=list)
    waiting: list["asyncio.Future[None]"] = field(default_factory=list)

    def account(self, keep_waste: KeepWaste, price: Price | None = None, *, at_risk: bool = True) -> "Account":
        """Open the account of a teacher, which is its meter; without a price its tokens cost nothing.

        `at_risk`: what is under way when this process dies is paid for and lost. Not so where it goes on without us
        (batches), or costs nothing but our own time.
        """
        account = Account(self, price or Price(input=0, output=0), keep_waste, at_risk)
        self.accounts.append(account)
        return account

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.max_tokens is not None or self.max_cost is not None

    @property
    def tokens(self) -> int:
        """Tokens spent."""
        return sum(_total(account.spent) for account in self.accounts)

    @property
    def cost(self) -> float:
        """Dollars spent."""
        return sum(account.cost_of(account.spent) for account in self.accounts)

    def fits(self, tokens: int, cost: float, *, beside_reserved: bool = True) -> bool:
        """Tell whether so much more may be spent, beside what is set aside or when all of that comes back."""
        if beside_reserved:
            tokens += sum(_total(account.all_reserved) for account in self.accounts)
            cost += sum(account.cost_of(account.all_reserved) for account in self.accounts)
        in_tokens = self.max_tokens is None or self.tokens + tokens <= self.max_tokens
        return in_tokens and (self.max_cost is None or self.cost + cost <= self.max_cost)

    def wake(self) -> None:
        """Let all that wait look again."""
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)


class Account:
    """The meter of one teacher; its methods belong to the thread of the event loop."""

    def __init__(self, budget: Budget, price: Price, keep_waste: KeepWaste, at_risk: bool) -> None:
        self.budget, self.price, self.keep_waste, self.at_risk = budget, price, keep_waste, at_risk
        self.writes_ahead = budget.is_limited and at_risk
        self.spent = self.wasted = self.all_reserved = Usage()
        self.reserved: dict[str, Usage] = {}
        self.unproven: dict[str, Usage] = {}
        self.prompt_scale = self.output_scale = 1.0
        self.session = uuid.uuid4().hex[:12]

    async def admit(self, request: Request, *, wait: bool = True) -> None:
        """Set aside the most that the attempt can cost; waits while calls under way may give back enough.

        Where there is a limit, what is set aside is on disk before the call: a killed process has spent it.

        Raises:
            OverBudget: it does not fit.
        """
        while not self.budget.fits(_total(most := self.most(request)), cost := self.cost_of(most)):
            if not wait or not self.budget.fits(_total(most), cost, beside_reserved=False):
                raise OverBudget(f"a call for {request.key} can take {_total(most)} tokens (${cost:.4f})")
            woken = asyncio.get_running_loop().create_future()
            self.budget.waiting.append(woken)
            await woken
        self.reserved[request.key] = most
        self.all_reserved = _sum(self.all_reserved, most)
        if self.writes_ahead:
            self._keep(request.key, _sum(self.unproven.get(request.key, Usage()), most))

    def settle(self, request: Request, usage: Usage | None) -> None:
        """Book what an attempt took; None is unknown, and counts as the most that it can have taken."""
        took = usage if usage is not None else self.reserved.get(request.key) or self.most(request)
        self._learn(request, took)
        self._book_attempt(request.key, took)
        self.budget.wake()

    def prove(self, name: str, trace: Usage) -> None:
        """End a row: of what was booked for it the trace explains its own tokens, the rest is waste."""
        took = self.unproven.pop(name, Usage())
        waste = _minus(took, trace)
        self.spent = _sum(self.spent, _minus(trace, took))  # What a teacher did not tell its meter.
        self.wasted = _sum(self.wasted, waste)
        if self.writes_ahead or waste != Usage():
            self._keep(name, waste)

    def book(self, usage: Usage, *, in_vain: bool = False) -> None:
        """Count what an earlier attempt spent."""
        self.spent = _sum(self.spent, usage)
        if in_vain:
            self.wasted = _sum(self.wasted, usage)

    def close(self) -> None:
        """Book what was under way when the work was broken off as spent in vain, where it is lost."""
        if not self.at_risk:
            return
        for name in list(self.reserved):
            self._book_attempt(name, self.reserved[name])
        for name in list(self.unproven):
            self.prove(name, Usage())

    def cost_of(self, usage: Usage) -> float:
        """Return what so many tokens cost in dollars."""
        return dollars(self.price, usage)

    def most(self, request: Request) -> Usage:
        """Return the most that one attempt can take.

        A tokenizer that works on bytes makes at most one token of each; chat templates add a few for each message.
        Where a server counts more, as those do that put a prompt of their own before ours, the worst that was seen
        scales the bound.
        """
        prompt, output = _bound(request), request.max_tokens
        return Usage(math.ceil(prompt * self.prompt_scale), math.ceil(output * self.output_scale))

    def _book_attempt(self, name: str, took: Usage) -> None:
        self.all_reserved = _minus(self.all_reserved, self.reserved.pop(name, Usage()))
        self.spent = _sum(self.spent, took)
        self.unproven[name] = _sum(self.unproven.get(name, Usage()), took)
        if self.writes_ahead:
            self._keep(name, self.unproven[name])

    def _learn(self, request: Request, took: Usage) -> None:
        most = self.most(request)
        if took.prompt_tokens > most.prompt_tokens:
            self.prompt_scale = SAFETY * took.prompt_tokens / _bound(request)
        if took.completion_tokens > most.completion_tokens:
            self.output_scale = SAFETY * took.completion_tokens / request.max_tokens

    def _keep(self, name: str, usage: Usage) -> None:
        self.keep_waste(f"{self.session}/{name}", name, usage)


def dollars(price: Price, usage: Usage) -> float:
    """Return what tokens cost at a price."""
    return (usage.prompt_tokens * price.input + usage.completion_tokens * price.output) * PER_MILLION


def _bound(request: Request) -> int:
    read = sum(len(message.content.encode()) + TOKENS_PER_MESSAGE for message in request.messages)
    return read + TOKENS_PER_PROMPT


def _total(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def _minus(one: Usage, other: Usage) -> Usage:
    read, written = one.prompt_tokens - other.prompt_tokens, one.completion_tokens - other.completion_tokens
    return Usage(max(0, read), max(0, written))


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(one.prompt_tokens + other.prompt_tokens, one.completion_tokens + other.completion_tokens)
