"""What can be said of a row by itself: whether it is a pair, whether it is wanted, what it is compared by."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from components.adapters.overlap import Hit, OverlapIndex
from components.adapters.reading import Row
from components.adapters.words import Hashes, length, name_of, normalise
from components.core.records import BadRecord, excerpt, explain, to_line
from components.core.schema import PreferencePair
from components.core.sources import SourceSettings
from components.prepare.config import Config
from components.prepare.forms import is_tie, to_pair
from components.prepare.near import Signatures, shingles, signatures
from components.prepare.split import normal_prompt, opening, part_draw, rank

SHORT_ANSWERS = 20
"""Words of both answers together under which they say too little for a near-duplicate on another prompt."""
LONGEST_REASON = 300
"""Characters of a reason that are kept and counted; a message may quote a whole cell of a row."""


@dataclass(frozen=True)
class LeftOut:
    """A row that does not become a pair. `rule` is the reason without what differs from row to row, for counting.

    `content` is that of `Sound` for a pair on a benchmark's question, and a digest of the row for a bad one.
    """

    kind: Literal["bad", "dropped"]
    rule: str
    record: BadRecord
    hits: tuple[Hit, ...] = ()
    content: bytes = b""


@dataclass(frozen=True)
class Sound:
    """A row that is a pair in its own right.

    `content` is a digest of the prompt and the two answers in any order, of 15 bytes; `first_wins` tells whether the
    lesser of the answers is the better one; `prompt` is a digest of the normalised prompt. `winner` and `loser` name
    the normalised answers, `short` tells that they have under SHORT_ANSWERS words together.
    """

    place: str
    line: bytes
    identity: bytes
    content: bytes
    first_wins: bool
    prompt: bytes
    opening: int
    winner: int
    loser: int
    short: bool
    part_draw: float
    rank: float


@dataclass(frozen=True)
class Examined:
    """The outcome for each row of a chunk of a source; the signatures are those of the sound ones, in order."""

    source: int
    outcomes: list[LeftOut | Sound]
    answers: Signatures
    prompts: Signatures


@dataclass(frozen=True)
class Examiner:
    """Looks at rows one by one; holds what is needed for it, and can be sent to another process."""

    settings: Config
    overlap: Path | None
    num_before: int = 0
    """Sources in front that an earlier run wrote: the first was held out and is not examined again."""

    def examine(self, chunk: tuple[int, Sequence[Row]]) -> Examined:
        """Return what is to be said of some rows of the source with this number."""
        number, rows = chunk
        source = self.settings.sources[number]
        outcomes: list[LeftOut | Sound] = []
        answers, prompts = [], []
        for row in rows:
            pair = self._examine_again(row, number) if number < self.num_before else self._examine(row, source)
            if isinstance(pair, LeftOut):
                outcomes.append(pair)
                continue
            prompt = normal_prompt(pair)
            answers.append(_shingles_of_answers(pair))
            prompts.append(shingles(prompt, pair.prompt[-1].content))
            outcomes.append(self._sound(row[0], pair, prompt, source))  # type: ignore[index]
        return Examined(number, outcomes, signatures(answers), signatures(prompts))

    def _examine_again(self, row: Row, number: int) -> LeftOut | PreferencePair:
        """Return a pair that an earlier run wrote, or why it is not wanted any more."""
        place, value = row  # type: ignore[misc]
        pair = PreferencePair.model_validate(value).shown(swapped=False)
        rule, reason, hits = self._unwanted(pair) if number else ("", "", ())
        left_out = LeftOut("dropped", rule, BadRecord(place, reason, show(value)), hits, _content(pair))
        return left_out if rule else pair

    def _examine(self, row: Row, source: SourceSettings) -> LeftOut | PreferencePair:
        if isinstance(row, BadRecord):
            return LeftOut("bad", _rule(row.reason), row, content=_digest(f"{row.reason}\n{row.excerpt}")[:15])
        place, value = row
        if is_tie(value):
            return LeftOut("dropped", "tie", BadRecord(place, "tie", show(value)))
        try:
            pair = to_pair(value, source.format)
        except ValueError as error:
            reason = explain(error).removeprefix("row: ").removeprefix("Value error, ")[:LONGEST_REASON]
            whole = _digest(json.dumps(value, sort_keys=True, default=str))[:15]
            return LeftOut("bad", _rule(reason), BadRecord(place, reason, show(value)), content=whole)
        rule, reason, hits = self._unwanted(pair)
        if not rule:
            return pair
        return LeftOut("dropped", rule, BadRecord(place, reason, show(value)), hits, _content(pair) if hits else b"")

    def _unwanted(self, pair: PreferencePair) -> tuple[str, str, tuple[Hit, ...]]:
        """Return rule, reason and hits; the rule is empty for a pair that is wanted."""
        settings = self.settings
        num_chars = sum(len(message.content) for message in pair.prompt) + len(pair.response_a) + len(pair.response_b)
        if num_chars > settings.max_chars:
            return "longer than max_chars", f"longer than max_chars: {num_chars} characters", ()
        agreed = agreement(pair.meta.get("votes"))
        if agreed is not None and agreed < settings.min_agreement:
            return "low agreement", f"low agreement: {agreed:.2f} of the votes", ()
        hits = _load(self.overlap).find_prompt(pair.prompt) if self.overlap else []
        if hits:
            told = "; ".join(f"{hit.benchmark} ({hit.kind}: {hit.passage!r})" for hit in hits)
            return "overlaps a benchmark", f"overlaps {told}", tuple(hits)
        return "", "", ()

    def _sound(self, place: str, pair: PreferencePair, prompt: str, source: SourceSettings) -> Sound:
        answers = sorted((pair.response_a, pair.response_b))
        both = (pair.response_a, pair.response_b)
        winner, loser = both if pair.label == "A" else both[::-1]
        return Sound(
            place=place,
            line=to_line(pair),
            identity=_digest(pair.id),
            content=_content(pair),
            first_wins=winner == answers[0],
            prompt=_digest(prompt)[:8],
            opening=name_of(opening(pair)),
            winner=name_of(normalise(winner)),
            loser=name_of(normalise(loser)),
            short=sum(length(normalise(answer)) for answer in both) < SHORT_ANSWERS,
            part_draw=part_draw(prompt, self.settings.seed),
            rank=rank(pair.id, source.weight, self.settings.seed),
        )


def agreement(votes: Any) -> float | None:
    """Return the share of the most frequent vote in a list of votes or in counts by vote; None where there is none."""
    if isinstance(votes, list) and votes:
        return max(Counter(map(str, votes)).values()) / len(votes)
    if isinstance(votes, dict) and votes and all(isinstance(n, int | float) and n >= 0 for n in votes.values()):
        total = sum(votes.values())
        return max(votes.values()) / total if total else None
    return None


def show(value: Any) -> str:
    """Return the beginning of a row for the quarantine."""
    return excerpt(json.dumps(value, ensure_ascii=False).encode())


@cache
def _load(path: Path) -> OverlapIndex:
    return OverlapIndex.load(path)


def _shingles_of_answers(pair: PreferencePair) -> Hashes:
    """Return what the answers are compared by, in an order that does not depend on which is shown first."""
    texts = sorted((normalise(text), text) for text in (pair.response_a, pair.response_b))
    return shingles(" ".join(words for words, _ in texts if words), "\n".join(text for _, text in texts))


def _content(pair: PreferencePair) -> bytes:
    answers = sorted((pair.response_a, pair.response_b))
    return _digest(json.dumps([[[message.role, message.content] for message in pair.prompt], answers]))[:15]


def _rule(reason: str) -> str:
    return re.sub(r"\d+", "N", reason[:LONGEST_REASON])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
