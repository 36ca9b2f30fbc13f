"""Asks the judge for requests: what may be asked, in which order, and what it comes to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from components.adapters.engines import Engine, Sampling
from components.adapters.judging.asking import Asking, Comparison, Prompt, Said, compared, prompts_of
from components.adapters.judging.batching import Batcher
from components.adapters.judging.opening import Opener
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.ranking import Match, Method, Score, judgments_at_most, ranking
from components.core.records import explain
from components.core.schema import Message, PreferencePair
from pipeline.serving.gauges import Gauges
from pipeline.serving.settings import ServiceSettings

MOST_CALLERS = 32
"""Most threads that call an endpoint: a call that waits for a slow answer must not hold up the requests after it."""

STUCK = 2
"""An engine in this process that has work and is silent for so many times what a request may take is taken for stuck.

Whoever asked for that work is gone by then, so an engine that is merely so slow serves nobody either.
"""


class Loading(Transient):
    """The judge is not there yet, or no more."""


class Busy(Transient):
    """Too much waits already."""


class TooMuch(InvalidInput):
    """More than the service ever takes."""


class TooSlow(Transient):
    """The judge did not answer in time."""


class Unaskable(ReasrmError):
    """The judge itself refuses to be asked."""


@dataclass(frozen=True)
class Ranked:
    """Rewards in the order of the answers, and the matches that they come from."""

    rewards: list[Score]
    matches: dict[Match, Comparison]


class Service:
    """A judge and its queue. Its methods are called from one event loop."""

    def __init__(self, opener: Opener, asking: Asking, model: str, settings: ServiceSettings) -> None:
        self.asking, self.model, self.settings = asking, model, settings
        self.gauges = Gauges()
        self.gauges.add("reasrm_judge_info", model=model)
        self.promised = 0
        self.num_cut = 0
        """Requests that were under way when the process had to end."""
        self.is_local = opener.settings.kind != "endpoint"
        self.batcher = Batcher(
            _tried(opener, asking) if self.is_local else _no_more_patient(opener, settings.request_seconds),
            batch=opener.settings.batch,
            is_local=self.is_local,
            num_workers=1 if self.is_local else min(opener.settings.batch, MOST_CALLERS),
            on_said=self._count,
            on_batch=lambda size: self.gauges.observe("reasrm_batch_prompts", size),
        )

    @property
    def failure(self) -> str:
        """Why only a new process helps; empty while this one is worth keeping."""
        if self.batcher.broken is not None:
            return f"the judge died: {self.batcher.broken}"
        seconds = self.batcher.silent_seconds if self.is_local else 0.0
        if seconds > STUCK * self.settings.request_seconds:
            return (
                f"the judge has work and has given no judgment for {seconds:.0f} s; the service should be started anew"
            )
        return ""

    @property
    def problem(self) -> str:
        """Why the judge cannot be asked now; empty when it can."""
        if self.failure:
            return self.failure
        opened = self.batcher.opened
        if not opened.done():
            return f"{self.model} is being loaded; ask again in a moment"
        return f"{self.model} could not be loaded: {opened.exception()}" if opened.exception() else ""

    def metrics(self) -> str:
        """Return what is counted, as Prometheus reads it."""
        now = {"reasrm_judgments_promised": float(self.promised), "reasrm_ready": float(not self.problem)}
        return self.gauges.text(now)

    def cut(self) -> None:
        """Count a request that the end of the process cut off."""
        self.num_cut += 1

    async def compare(self, conversation: Sequence[Message], answers: tuple[str, str], votes: int | None) -> Comparison:
        """Return what all judgments of two answers come to.

        Raises:
            InvalidInput: they cannot be judged, or TooMuch is asked for.
            Transient: Loading, Busy or TooSlow; the judge died.
            Unaskable: the judge refuses.
        """
        asking = self._asking(votes)
        pair = _pair(conversation, *answers)
        async with self._promise(2 * asking.votes):
            (comparison,) = await self._judge([pair], asking)
        return comparison

    async def rank(
        self, conversation: Sequence[Message], answers: Sequence[str], method: Method, votes: int | None, seed: int
    ) -> Ranked:
        """Return a reward for each answer. Raises as `compare` does."""
        asking = self._asking(votes)
        if len(answers) > self.settings.max_answers:
            raise TooMuch(
                f"{len(answers)} answers; this server takes {self.settings.max_answers} (--max-answers). Rank fewer"
            )
        rules = ranking(method, answers, seed)
        matches: dict[Match, Comparison] = {}
        async with self._promise(judgments_at_most(method, len(answers), asking.votes)):
            scores: list[Score] | None = None
            while True:
                try:
                    wanted = next(rules) if scores is None else rules.send(scores)
                except StopIteration as end:
                    return Ranked(end.value, matches)
                pairs = [_pair(conversation, answers[one], answers[other]) for one, other in wanted]
                found = await self._judge(pairs, asking)
                matches.update(zip(wanted, found, strict=True))
                scores = [comparison.tally.score_a for comparison in found]

    def _asking(self, votes: int | None) -> Asking:
        if votes is not None and votes > self.settings.max_votes:
            raise InvalidInput(f"{votes} votes; this server takes {self.settings.max_votes} (--max-votes)")
        if votes is not None and votes > 1 and not self.asking.temperature:
            raise InvalidInput(
                f"{votes} votes at the server's temperature of 0 are one vote; start it with --temperature"
            )
        return self.asking.with_votes(votes)

    @asynccontextmanager
    async def _promise(self, num_judgments: int) -> AsyncIterator[None]:
        """Hold a place for so many judgments, so that what has begun is never refused half way, for a request's time.

        Raises Loading, TooMuch or Busy before the block begins, and TooSlow when it takes longer than a request may.
        """
        most = self.settings.max_judgments
        if self.problem:
            raise Loading(self.problem)
        if num_judgments > most:
            raise TooMuch(
                f"this asks for up to {num_judgments} judgments, and the queue never takes more than {most} "
                "(--max-judgments); send fewer answers or votes, or take method knockout"
            )
        if self.promised + num_judgments > most:
            raise Busy(f"{self.promised} of {most} judgments are promised already; ask again in a moment")
        self.promised += num_judgments
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                yield
        except TimeoutError as error:
            raise TooSlow(
                f"the judge did not finish within {self.settings.request_seconds:.0f} s (--request-seconds); what was "
                "not begun is dropped"
            ) from error
        finally:
            self.promised -= num_judgments

    async def _judge(self, pairs: Sequence[PreferencePair], asking: Asking) -> list[Comparison]:
        # Long conversations take seconds to write out for every match; /health must be answered meanwhile.
        each = await asyncio.to_thread(lambda: [prompts_of(pair, asking) for pair in pairs])
        said = await self._ask([prompt for prompts in each for prompt in prompts])
        size = 2 * asking.votes
        return [compared(said[at * size : (at + 1) * size]) for at in range(len(each))]

    async def _ask(self, prompts: Sequence[Prompt]) -> list[Said]:
        if not prompts:
            return []
        try:
            return await asyncio.wrap_future(self.batcher.submit(prompts))
        except InvalidInput as error:
            raise Unaskable(str(error)) from error

    def _count(self, said: Said) -> None:
        self.gauges.add("reasrm_judgments_total", cause=said.cause)
        self.gauges.add("reasrm_tokens_total", said.num_prompt_tokens, kind="prompt")
        self.gauges.add("reasrm_tokens_total", said.num_tokens, kind="completion")


def _tried(opener: Opener, asking: Asking) -> Callable[[], Engine]:
    """Return what opens an engine in this process and has it write one token, before anybody is told that it is ready.

    A model whose chat template refuses the judge's prompt, or whose context is too small for it, ends the service with
    the reason; else every request would.
    """

    def opened() -> Engine:
        engine = opener()
        try:
            pair = _pair([Message(role="user", content="1 + 1?")], "2", "3")
            engine.generate([prompts_of(pair, asking)[0].messages], Sampling(max_tokens=1))
        except BaseException:
            engine.close()
            raise
        return engine

    return opened


def _no_more_patient(opener: Opener, seconds: float) -> Opener:
    """Return what opens an endpoint and gives up its calls when their requests were given up.

    An endpoint that was gone without a word would else hold the places of all calls for long after it is back.
    """
    calls = opener.settings.calls
    bounds = {name: min(getattr(calls, name), seconds) for name in ("call_seconds", "row_seconds")}
    settings = opener.settings.model_copy(update={"calls": calls.model_copy(update=bounds)})
    return replace(opener, settings=settings)


def _pair(conversation: Sequence[Message], response_a: str, response_b: str) -> PreferencePair:
    """Return the pair that a prompt is rendered from; the label takes no part in it. Raises InvalidInput."""
    try:
        return PreferencePair(
            id="request", prompt=tuple(conversation), response_a=response_a, response_b=response_b, label="A"
        )
    except ValueError as error:
        raise InvalidInput(f"this cannot be judged: {explain(error)}") from error
