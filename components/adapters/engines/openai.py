"""An OpenAI-compatible endpoint as an engine."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import ClassVar

from components.adapters.engines.base import (
    Completion,
    Conversation,
    OnBatch,
    OnCompletion,
    Sampling,
    TooLong,
    Unanswered,
    one_each,
)
from components.adapters.teachers import Endpoint, Failure, Outcome, Reply, Request
from components.core.errors import Transient
from components.core.loops import loops
from components.core.teachers import CallLimits, EndpointTeacher

CHARS_PER_TOKEN = 4
"""Characters that stand for a token where tokens are not told: about as many as English has."""

_CONTEXT = re.compile(
    r"maximum context length (?:is|of) (\d+)"
    r"|prompt is too long: \d+ tokens > (\d+) maximum"  # Anthropic
    r"|exceeds the maximum number of tokens allowed \(?(\d+)"  # Gemini
)
_PROMPT = re.compile(
    r"(\d+) in the (?:messages|prompt)|resulted in (\d+) tokens|contains (?:at least )?(\d+) input tokens"
    r"|prompt is too long: (\d+) tokens|input token count \(?(\d+)"
)


class OpenAIEngine:
    """Asks an OpenAI-compatible endpoint through the teacher's client, which has the retries, limits and deadlines.

    Seeds are not sent: endpoints differ in what they make of them. Nor can an answer be ended that repeats itself:
    whether it did is seen when it is there, and was paid for.
    """

    streams: ClassVar[bool] = True

    def __init__(self, endpoint: EndpointTeacher, calls: CallLimits, *, send_temperature: bool = True) -> None:
        """`send_temperature` False leaves the temperature to the endpoint: some models refuse to be given one."""
        self.teacher = Endpoint(endpoint, calls)
        self.send_temperature = send_temperature

    def generate(
        self,
        prompts: Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """See `Engine.generate`; without an answer to every prompt there is none: a gap must never become a score.

        An error costs the answers of its own call, but for those that `on_completion` was given.

        Raises:
            TooLong: the endpoint refuses prompts because with their answers they do not fit into its context.
            Unanswered: it refuses prompts for another reason, or its answers cannot be read.
            Transient: the endpoint could not be reached.
        """
        each = one_each(sampling, len(prompts))
        completions: dict[int, Completion] = {}
        failures: dict[int, Failure] = {}
        num_tokens = 0
        began = time.perf_counter()

        def keep(outcome: Outcome) -> None:
            nonlocal num_tokens
            place = int(outcome.key)
            if isinstance(outcome, Failure) and not outcome.declined:
                failures[place] = outcome
                return
            completions[place] = completion = _read(outcome, each[place].loop_tokens)
            num_tokens += completion.num_tokens
            if on_completion is not None:
                on_completion(place, completion)
            if on_batch is not None:
                on_batch(1, num_tokens / (time.perf_counter() - began))

        requests = (
            Request(str(place), tuple(prompt), how.max_tokens, how.temperature if self.send_temperature else None)
            for place, (prompt, how) in enumerate(zip(prompts, each, strict=True))
        )
        asyncio.run(self.teacher.ask(requests, keep))
        if failures:
            raise _error(failures, each, was_reported=on_completion is not None)
        return [completions[place] for place in range(len(prompts))]

    def close(self) -> None:
        """See `Engine.close`; connections live no longer than a call."""


def _read(reply: Reply | Failure, loop_tokens: int) -> Completion:
    if isinstance(reply, Failure):
        return Completion("", truncated=False, num_tokens=0, declined=True)
    truncated = reply.finish_reason == "length"
    looped = truncated and loops(reply.reasoning + reply.text, loop_tokens * CHARS_PER_TOKEN)
    return Completion(
        reply.text,
        truncated,
        reply.completion_tokens,
        num_prompt_tokens=reply.prompt_tokens,
        looped=looped,
        thinking=reply.reasoning,
    )


def _error(
    failures: dict[int, Failure], each: Sequence[Sampling], *, was_reported: bool
) -> TooLong | Unanswered | Transient:
    """Return what to raise: first for calls that did not get through, then for prompts too long, then for the rest."""
    places = sorted(failures)
    passing = [place for place in places if failures[place].kind == "transport"]
    if passing:
        return Transient(
            f"{len(passing)} of {len(each)} prompts got no answer, the first of them number {passing[0]}: "
            f"{failures[passing[0]].reason}. The answers to the other {len(each) - len(failures)} "
            f"{'were reported and are kept' if was_reported else 'are lost, but paid for'}; look at the endpoint and "
            "run again"
        )
    lengths = {place: found for place in places if (found := _lengths(failures[place], each[place]))}
    if lengths:
        first = next(iter(lengths))
        num_tokens = {place: length for place, (length, _) in lengths.items()}
        return TooLong(num_tokens, lengths[first][1], each[first].max_tokens)
    return Unanswered(places, len(each), failures[places[0]].reason)


def _lengths(failure: Failure, how: Sampling) -> tuple[int, int] | None:
    """Return the length of a prompt in tokens and the context that is too small for it and its answer.

    None when it was refused for another reason, or the answer's limit alone is the whole context, so that no prompt
    would fit. The wording is that of OpenAI and of vLLM's server, which do not always count the prompt.
    """
    found = _CONTEXT.search(failure.reason) if failure.kind == "refused" else None
    context = int(next(filter(None, found.groups()))) if found else 0
    if context <= how.max_tokens:
        return None
    counted = _PROMPT.search(failure.reason)
    return int(next(filter(None, counted.groups()))) if counted else context - how.max_tokens + 1, context
