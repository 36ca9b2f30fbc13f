"""What a judge is asked about a pair, and how its answers become a judgment: models that write, and models that score.

A judge opens its model when it is first asked something; naming and reading its questions needs none.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from components.adapters.engines import (
    Completion,
    Conversation,
    Engine,
    Sampling,
    TooLong,
    Unanswered,
    seed_of,
)
from components.adapters.scalars import Scorer, answered, verdict_of
from components.benchmark.config import Config
from components.benchmark.store import Answer
from components.core import prompts
from components.core.schema import Judgment, PreferencePair, Verdict, VerdictCause
from components.core.verdict import Grammar, parse_verdict

logger = logging.getLogger(__name__)

OnAnswer = Callable[[Answer], None]


@dataclass(frozen=True)
class Question:
    """A conversation that a judge is to go on with or to score, for the `sample`-th time; `digest` is its name's."""

    digest: str
    messages: Conversation
    sample: int = 0

    @property
    def name(self) -> str:
        """Name of its answer in the verdict store."""
        return answer_name(self.digest, self.sample)


def answer_name(digest: str, sample: int) -> str:
    """Return the name of the answer to the `sample`-th question about a conversation."""
    return f"{digest}.{sample}"


class Judge(Protocol):
    """Anything that judges a pair as it is shown."""

    samples: int
    """How often each conversation is asked about."""

    @property
    def streams(self) -> bool:
        """Whether to hand over everything in one call (see `Engine.streams`). Opens the model."""

    def conversations(self, pair: PreferencePair) -> tuple[Conversation, ...]:
        """Return what is asked about a pair in the order in which it is shown."""

    def answer(self, questions: Sequence[Question], on_answer: OnAnswer) -> None:
        """Call `on_answer` with the answer to each question as soon as it is there; what it was given stands.

        Raises:
            Transient: the model died, or its server is not there for now.
            InvalidInput: the model cannot be asked at all. One question that gets no answer is an answer of that kind.
        """

    def judgment(
        self, model: str, suite: str, pair: PreferencePair, sample: int, answers: Sequence[Answer]
    ) -> Judgment:
        """Return the judgment that the answers to a pair's conversations make, in their order."""

    def close(self) -> None:
        """Free the model, if it was opened."""


class WrittenJudge:
    """A language model that writes a judgment and ends it with a verdict, which is parsed."""

    def __init__(self, open_engine: Callable[[], Engine], grammar: Grammar, config: Config) -> None:
        self.open_engine, self.grammar, self.config = open_engine, grammar, config
        self.samples = config.votes
        self._engine: Engine | None = None

    @property
    def streams(self) -> bool:
        """See `Judge.streams`."""
        return self._opened().streams

    def conversations(self, pair: PreferencePair) -> tuple[Conversation, ...]:
        """See `Judge.conversations`: one, the judge prompt."""
        return (prompts.render(pair, self.grammar).messages,)

    def answer(self, questions: Sequence[Question], on_answer: OnAnswer) -> None:
        """See `Judge.answer`."""
        engine = self._opened()

        def ask(left: Sequence[Question], keep: Callable[[int, Answer], None]) -> None:
            engine.generate(
                [question.messages for question in left],
                [self._sampling(question) for question in left],
                on_completion=lambda place, completion: keep(place, _written(left[place], completion)),
            )

        _ask_those_that_fit(questions, ask, on_answer)

    def judgment(
        self, model: str, suite: str, pair: PreferencePair, sample: int, answers: Sequence[Answer]
    ) -> Judgment:
        """See `Judge.judgment`."""
        (answer,) = answers
        verdict = parse_verdict(answer.text, truncated=answer.truncated)
        if answer.too_long or answer.declined:
            verdict = Verdict(winner=None, cause="too_long" if answer.too_long else "declined")
        return _judgment(
            (model, suite, pair, sample),
            verdict,
            text=answer.text,
            num_tokens=answer.num_tokens,
            num_prompt_tokens=answer.num_prompt_tokens,
            truncated=answer.truncated,
            looped=answer.looped,
        )

    def close(self) -> None:
        """See `Judge.close`."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.close()

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = self.open_engine()
        return self._engine

    def _sampling(self, question: Question) -> Sampling:
        config = self.config
        seed = seed_of(f"{config.seed}:{question.digest}:{question.sample}") if config.temperature else 0
        return Sampling(config.max_tokens, config.temperature, seed, config.loop_tokens)


class ScoredJudge:
    """A scalar reward model: each answer is scored once, and both orders of a pair follow from its two scores.

    A pair is two judgments and takes two scores; `num_prompt_tokens` of a judgment are those of the answer that it
    shows first, so that their sum is what was read.
    """

    samples = 1

    def __init__(self, open_scorer: Callable[[], Scorer], *, streams: bool) -> None:
        self.open_scorer, self._streams = open_scorer, streams
        self._scorer: Scorer | None = None

    @property
    def streams(self) -> bool:
        """Whether it is a server, which takes all at once; a model in this process is given slices."""
        return self._streams

    def conversations(self, pair: PreferencePair) -> tuple[Conversation, ...]:
        """See `Judge.conversations`: two, the prompt with answer A and the prompt with answer B."""
        return answered(pair)

    def answer(self, questions: Sequence[Question], on_answer: OnAnswer) -> None:
        """See `Judge.answer`."""
        if self._scorer is None:
            self._scorer = self.open_scorer()
        scorer, num_read = self._scorer, self._scorer.num_tokens

        def ask(left: Sequence[Question], keep: Callable[[int, Answer], None]) -> None:
            def on_score(place: int, score: float) -> None:
                nonlocal num_read
                num_new, num_read = scorer.num_tokens - num_read, scorer.num_tokens
                keep(place, Answer(name=left[place].name, num_prompt_tokens=num_new, score=score))

            scorer.score([question.messages for question in left], on_score=on_score)

        _ask_those_that_fit(questions, ask, on_answer)

    def judgment(
        self, model: str, suite: str, pair: PreferencePair, sample: int, answers: Sequence[Answer]
    ) -> Judgment:
        """See `Judge.judgment`."""
        a, b = answers
        scores = None if a.score is None or b.score is None else (a.score, b.score)
        lacking: VerdictCause = "too_long" if a.too_long or b.too_long else "declined"
        verdict = verdict_of(*scores) if scores else Verdict(winner=None, cause=lacking)
        num_read = a.num_prompt_tokens
        return _judgment((model, suite, pair, sample), verdict, num_prompt_tokens=num_read, scores=scores)

    def close(self) -> None:
        """See `Judge.close`."""
        if self._scorer is not None:
            scorer, self._scorer = self._scorer, None
            scorer.close()


def _ask_those_that_fit(
    questions: Sequence[Question],
    ask: Callable[[Sequence[Question], Callable[[int, Answer], None]], None],
    on_answer: OnAnswer,
) -> None:
    """Ask until every question has its answer; one that is too long, or gets none, costs the others nothing."""
    left: Sequence[Question] = questions
    while left:
        done: set[int] = set()

        def keep(place: int, answer: Answer, done: set[int] = done) -> None:
            done.add(place)
            on_answer(answer)

        try:
            ask(left, keep)
            return
        except TooLong as error:
            for place, length in sorted(error.num_tokens.items()):
                keep(place, Answer(name=left[place].name, num_prompt_tokens=length, too_long=True))
        except Unanswered as error:
            logger.warning("%s", error)
            for place in error.places:
                keep(place, Answer(name=left[place].name, declined=True, unanswered=True))
        left = [question for place, question in enumerate(left) if place not in done]


def _written(question: Question, completion: Completion) -> Answer:
    return Answer(
        name=question.name,
        text=completion.text.replace("\x00", "\ufffd"),  # no artifact can hold a NUL character
        num_tokens=completion.num_tokens,
        num_prompt_tokens=completion.num_prompt_tokens,
        truncated=completion.truncated,
        looped=completion.looped,
        declined=completion.declined,
    )


def _judgment(
    of: tuple[str, str, PreferencePair, int],
    verdict: Verdict,
    *,
    num_prompt_tokens: int,
    text: str = "",
    num_tokens: int = 0,
    truncated: bool = False,
    looped: bool = False,
    scores: tuple[float, float] | None = None,
) -> Judgment:
    model, suite, pair, sample = of
    return Judgment(
        model=model,
        suite=suite,
        key=pair.key,
        pair_id=pair.id,
        swapped=pair.swapped,
        category=pair.category,
        label=pair.label,
        text=text,
        verdict=verdict,
        num_tokens=num_tokens,
        num_prompt_tokens=num_prompt_tokens,
        sample=sample,
        truncated=truncated,
        looped=looped,
        scores=scores,
    )
