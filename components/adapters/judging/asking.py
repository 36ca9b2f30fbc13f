"""What a judge is asked about two answers, in both orders and several times, and what it said."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field, model_validator

from components.adapters.engines import (
    Completion,
    Conversation,
    Engine,
    Sampling,
    TooLong,
    Unanswered,
    digest_of_messages,
    seed_of,
)
from components.core import prompts
from components.core.ranking import Tally, tally
from components.core.schema import Label, PreferencePair, Record, VerdictCause
from components.core.verdict import Grammar, parse_verdict

logger = logging.getLogger(__name__)

Vote = Label | None


class Asking(Record):
    """How a judge is asked; the same settings and the same answers draw the same random numbers."""

    grammar: Grammar = "rubric"
    """Form of the judgment that the prompt asks for: the one that the model was trained on."""
    votes: int = Field(1, ge=1, le=64)
    """Judgments of a pair in each order."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature; votes over 1 need more than 0."""
    max_tokens: int = Field(8192, ge=8)
    """Token budget of a judgment; a longer one has no verdict."""
    loop_tokens: int = Field(512, ge=0)
    """A judgment that repeats itself for so many tokens ends; 0: never."""
    seed: int = Field(0, ge=0)
    """Seed of sampling."""

    @model_validator(mode="after")
    def _votes_differ(self) -> Self:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"{self.votes} votes at temperature 0 are one vote: set temperature, for example to 1.0")
        return self

    def with_votes(self, votes: int | None) -> "Asking":
        """Return these settings with another number of votes. Raises ValueError as the settings themselves do."""
        return self if votes is None else Asking.model_validate(self.model_dump() | {"votes": votes})


@dataclass(frozen=True)
class Prompt:
    """One question to the judge: a pair in one order, for the `sample`-th time."""

    messages: Conversation
    sampling: Sampling
    swapped: bool
    sample: int


@dataclass(frozen=True)
class Said:
    """One judgment. `vote` names the answer that it is for, whichever place it was shown in.

    It is read from `text`; `thinking` is what the judge's server kept apart from that, see `Completion`.
    """

    swapped: bool
    sample: int
    vote: Vote
    cause: VerdictCause
    text: str
    num_tokens: int
    num_prompt_tokens: int
    thinking: str = ""


@dataclass(frozen=True)
class Comparison:
    """All judgments of two answers."""

    tally: Tally
    judgments: tuple[Said, ...]


OnSaid = Callable[[int, Said], None]


def prompts_of(pair: PreferencePair, asking: Asking) -> list[Prompt]:
    """Return what is asked about a pair, its own order first; the label takes no part in it."""
    asked = []
    for swapped in (False, True):
        shown = pair.shown(pair.swapped != swapped)
        messages = prompts.render(shown, asking.grammar).messages
        digest = digest_of_messages(messages)
        for sample in range(asking.votes):
            seed = seed_of(f"{asking.seed}:{digest}:{sample}") if asking.temperature else 0
            sampling = Sampling(asking.max_tokens, asking.temperature, seed, asking.loop_tokens)
            asked.append(Prompt(messages, sampling, swapped, sample))
    return asked


def compared(judgments: Sequence[Said]) -> Comparison:
    """Return what the judgments of one pair come to. Raises ValueError where an order lacks some."""
    said = sorted(judgments, key=lambda one: (one.swapped, one.sample))
    votes = {swapped: [one.vote for one in said if one.swapped is swapped] for swapped in (False, True)}
    return Comparison(tally(votes[False], votes[True]), tuple(said))


def ask(engine: Engine, asked: Sequence[Prompt], on_said: OnSaid) -> None:
    """Call `on_said` with the place and the judgment of each prompt as soon as it is there.

    A prompt that does not fit the judge's context, or gets no answer, is a judgment without a verdict; it costs the
    others nothing. Raises Transient, InvalidInput or ReasrmError as the engine does; what was reported stands.
    """
    left = list(range(len(asked)))
    while left:
        done: set[int] = set()

        def keep(place: int, completion: Completion, left: list[int] = left, done: set[int] = done) -> None:
            done.add(left[place])
            on_said(left[place], _said(asked[left[place]], completion))

        try:
            engine.generate(
                [asked[place].messages for place in left],
                [asked[place].sampling for place in left],
                on_completion=keep,
            )
            return
        except TooLong as error:
            for place, length in sorted(error.num_tokens.items()):
                done.add(left[place])
                on_said(left[place], _silent(asked[left[place]], "too_long", length))
        except Unanswered as error:
            logger.warning("%s", error)
            for place in error.places:
                done.add(left[place])
                on_said(left[place], _silent(asked[left[place]], "declined"))
        left = [place for place in left if place not in done]


def _said(prompt: Prompt, completion: Completion) -> Said:
    verdict = parse_verdict(completion.text, truncated=completion.truncated)
    said = _silent(prompt, "declined" if completion.declined else verdict.cause, completion.num_prompt_tokens)
    return replace(
        said,
        vote=None if completion.declined else _as_given(verdict.winner, prompt.swapped),
        text=completion.text.replace("\x00", "\ufffd"),
        num_tokens=completion.num_tokens,
        thinking=completion.thinking,
    )


def _silent(prompt: Prompt, cause: VerdictCause, num_prompt_tokens: int = 0) -> Said:
    return Said(prompt.swapped, prompt.sample, None, cause, "", 0, num_prompt_tokens)


def _as_given(winner: Vote, swapped: bool) -> Vote:
    if winner is None or not swapped:
        return winner
    return "B" if winner == "A" else "A"
