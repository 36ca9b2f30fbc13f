"""Judge pairs in both orders with one model: one queue over all suites, orders and samples, longest prompt first.

What the verdict store holds is not judged again. The rest is committed on the way, `shard_size` answers at a time, so
a crash costs at most those under way. A part of the work answers some of these slices, and judges nothing.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from components.adapters.engines import Conversation, digest_of_messages
from components.adapters.part import WHOLE, Share
from components.adapters.stage import Output
from components.benchmark.config import Config
from components.benchmark.judge import Judge, Question, answer_name
from components.benchmark.store import Answer, VerdictStore
from components.core.errors import InvalidInput
from components.core.schema import Judgment, PreferencePair

logger = logging.getLogger(__name__)

Sets = Mapping[str, Sequence[PreferencePair]]
OnSpeed = Callable[["Speed"], None]


class TooManyUnanswered(InvalidInput):
    """More questions get no answer than `max_unanswered` allows."""


def judge_pairs(
    model: str,
    judge: Judge,
    judge_key: str,
    sets: Sets,
    config: Config,
    output: Output,
    on_speed: OnSpeed | None = None,
) -> dict[str, list[Judgment]]:
    """Return the judgments of every suite in `sets`: of each pair, as given, in the source's order and then swapped.

    `model` is what judgments call the judge and `judge_key` what the verdict store does (`keys.py` makes it).
    `on_speed` is told how fast it was, model loading apart, if it was asked anything.

    The same conversation in several suites is asked about once. One that is too long for the judge becomes a judgment
    with the cause `too_long`, and the others go on. The judge is closed, however this ends.

    An engine that does not stream is given slices of `shard_size` at places which the whole queue fixes: a resumed run
    composes the same batches, and its answers are the same to the byte.

    Raises:
        Transient: the judge died; what it had answered is kept, but for one slice.
        InvalidInput: the judge cannot be asked, or too many questions get no answer that can be read.
        ReasrmError: a stored shard cannot be read.
    """
    try:
        shown = _shown(sets)
        asked, queue = _questions(judge, shown)
        store, speed = _answer(model, judge, judge_key, queue, config, output)
        if on_speed is not None and speed is not None:
            on_speed(speed)
        store.settle()
    finally:
        judge.close()
    return {
        suite: [
            judge.judgment(model, suite, pair, sample, [store[answer_name(digest, sample)] for digest in digests])
            for pair, digests in zip(pairs, asked[suite], strict=True)
            for sample in range(judge.samples)
        ]
        for suite, pairs in shown.items()
    }


def answer_share(
    model: str,
    judge: Judge,
    judge_key: str,
    sets: Sets,
    config: Config,
    output: Output,
    share: Share,
) -> "Speed | None":
    """Answer a share of the questions that `judge_pairs` asks, in whole slices of its queue; return how fast it was.

    What gets no answer is not kept: `judge_pairs` asks it once more, and counts it. Raises what that does, and
    TooManyUnanswered where these alone are too many for the whole.
    """
    try:
        _, queue = _questions(judge, _shown(sets))
        return _answer(model, judge, judge_key, queue, config, output, share)[1]
    finally:
        judge.close()


def _shown(sets: Sets) -> dict[str, list[PreferencePair]]:
    """Return each pair in the two orders in which it is judged."""
    return {
        suite: [pair.shown(swapped) for pair in pairs for swapped in (False, True)] for suite, pairs in sets.items()
    }


def _questions(
    judge: Judge, shown: Mapping[str, Sequence[PreferencePair]]
) -> tuple[dict[str, list[tuple[str, ...]]], list[Question]]:
    """Return the digests of what is asked about each pair, and the queue."""
    conversations: dict[str, Conversation] = {}
    asked = {suite: [_asked(judge, pair, conversations) for pair in pairs] for suite, pairs in shown.items()}
    queue = [
        Question(digest, conversations[digest], sample)
        for digest in sorted(conversations, key=lambda digest: (*_place(conversations[digest]), digest))
        for sample in range(judge.samples)
    ]
    return asked, queue


def _asked(judge: Judge, pair: PreferencePair, conversations: dict[str, Conversation]) -> tuple[str, ...]:
    """Note what is asked about a pair, and return the digests."""
    found = judge.conversations(pair)
    digests = tuple(digest_of_messages(messages) for messages in found)
    conversations.update(zip(digests, found, strict=True))
    return digests


def _place(messages: Conversation) -> tuple[int, tuple[str, ...]]:
    """Return what the queue is sorted by: the longest first, so that the last to finish are short.

    The two orders of a pair are equally long. Sorting by text brings them together there: they begin with the same
    words, which an engine then reads once. So it does for the samples of a prompt, which stand side by side.
    """
    texts = tuple(message.content for message in messages)
    return -sum(map(len, texts)), texts


def _slices(queue: Sequence[Question], config: Config, share: Share) -> list[Sequence[Question]]:
    """Return the slices of the queue that are in a share; how they are cut does not depend on it."""
    starts = range(0, len(queue), config.shard_size)
    return [queue[at : at + config.shard_size] for place, at in enumerate(starts) if share.takes(place)]


def _answer(
    model: str,
    judge: Judge,
    judge_key: str,
    queue: Sequence[Question],
    config: Config,
    output: Output,
    share: Share = WHOLE,
) -> tuple[VerdictStore, "Speed | None"]:
    """Ask what is in the share and not in the verdict store; return the store and how fast it was."""
    store = VerdictStore(output, judge_key, [question.name for question in queue])
    store.load()
    slices = _slices(queue, config, share)
    missing = [[question for question in part if question.name not in store] for part in slices]
    total, num_missing = sum(map(len, slices)), sum(map(len, missing))
    speed = None
    logger.info("%s: %d of %d answers are in the verdict store already", model, total - num_missing, total)
    with output.progress.bar(f"answers of {model}", total=total, done=total - num_missing):
        if num_missing:
            allowed = max(1, int(config.max_unanswered * len(queue)))
            speed = _ask(model, judge, [part for part in missing if part], store, config, output, allowed, share)
    return store, speed


def _ask(
    model: str,
    judge: Judge,
    parts: Sequence[Sequence[Question]],
    store: VerdictStore,
    config: Config,
    output: Output,
    allowed: int,
    share: Share,
) -> "Speed":
    """Put the questions to the judge, all at once or a part after the other, and commit the answers."""
    num_unanswered = 0
    streams = judge.streams  # loads the model, which is not to count as judging
    speed = Speed(time.perf_counter())
    held: list[Answer] = []

    def keep(answer: Answer) -> None:
        nonlocal num_unanswered
        num_unanswered += answer.unanswered
        if num_unanswered > allowed:
            raise TooManyUnanswered(
                f"{model} gives no answer to over {allowed} of {len(store.names)} questions; the log says why. Look at "
                "its settings, or raise max_unanswered"
            )
        if share.is_whole or not answer.unanswered:
            held.append(answer)
        speed.add(answer)
        output.progress.advance(1, note=f"{model}  {speed.tokens_per_second():.0f} tokens/s")
        if streams and len(held) >= config.shard_size:
            commit()

    def commit() -> None:
        shard, held[:] = list(held), []
        store.put(shard)

    with store.writing():
        if streams:
            try:
                judge.answer([question for part in parts for question in part], keep)
            finally:
                commit()
            return speed
        for part in parts:
            judge.answer(part, keep)
            commit()
    return speed


@dataclass
class Speed:
    """How fast a judge answers; for MLflow and the log only, an artifact holds no times."""

    began: float
    num_answers: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        """Count an answer, and the tokens that were written for it (of a score: read)."""
        self.num_answers += 1
        self.num_tokens += answer.num_tokens if answer.score is None else answer.num_prompt_tokens
        self.seconds = time.perf_counter() - self.began

    def tokens_per_second(self) -> float:
        """Return the speed from the beginning to the latest answer."""
        return self.num_tokens / self.seconds

    def metrics(self, dollars_per_hour: float | None) -> dict[str, float]:
        """Return what is logged; `dollars_per_hour` is what the judge's GPUs cost."""
        per_1000 = 1000 * self.seconds / self.num_answers
        cost = {} if dollars_per_hour is None else {"gpu_dollars_per_1000": per_1000 / 3600 * dollars_per_hour}
        return {
            "answers": self.num_answers,
            "answers_per_second": self.num_answers / self.seconds,
            "tokens_per_second": self.tokens_per_second(),
            "seconds_per_1000": per_1000,
            **cost,
        }
