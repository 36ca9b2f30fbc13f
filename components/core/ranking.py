"""From what a pairwise judge says to numbers: votes in both orders as one verdict, comparisons as a reward an answer.

A ranking is a generator: it yields the matches that it wants played and is sent their scores, so that whoever plays
them (a loop, a service with many requests) need not know the rules, and the rules ask nobody anything.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

from components.core.schema import Label

Method = Literal["round_robin", "knockout"]
Match = tuple[int, int]
"""Places of two answers."""
Score = float | None
"""Of a match, how far it speaks for the first answer: 1 all votes, 0 none, 1/2 nobody knows. None: nothing was said."""
Ranking = Generator[list[Match], Sequence[Score], list[Score]]
"""Yields the matches of a round, takes their scores in the same order, and returns a reward for each answer."""

EVEN = 0.5


@dataclass(frozen=True)
class Tally:
    """What all judgments of two answers, shown in both orders, come to; A and B are the answers, not the places."""

    votes_a: int
    votes_b: int
    num_votes: int
    consistent: bool | None
    """Whether the majorities of the two orders name the same answer; None where an order has no majority."""

    @property
    def winner(self) -> Label | None:
        """The answer with more votes; None where both have as many."""
        if self.votes_a == self.votes_b:
            return None
        return "A" if self.votes_a > self.votes_b else "B"

    @property
    def confidence(self) -> float | None:
        """Share of all votes that the winner has; judgments without a verdict are votes for nobody."""
        return max(self.votes_a, self.votes_b) / self.num_votes if self.winner else None

    @property
    def score_a(self) -> Score:
        """How far this speaks for answer A, from 0 to 1; None where no judgment has a verdict.

        A judgment without a verdict counts as half a vote for each: it moves the score to 1/2 and never to 0.
        """
        if not self.votes_a + self.votes_b:
            return None
        return EVEN + (self.votes_a - self.votes_b) / (2 * self.num_votes)


def tally(as_given: Sequence[Label | None], exchanged: Sequence[Label | None]) -> Tally:
    """Count the votes of the two orders; in both, A is the answer that was given first.

    Raises ValueError when an order has no votes, or the orders have different numbers: a judge that prefers the first
    place would win by it.
    """
    if not as_given or len(as_given) != len(exchanged):
        raise ValueError(f"{len(as_given)} and {len(exchanged)} votes; both orders need the same number, at least one")
    votes = [*as_given, *exchanged]
    first, second = _majority(as_given), _majority(exchanged)
    return Tally(
        votes_a=votes.count("A"),
        votes_b=votes.count("B"),
        num_votes=len(votes),
        consistent=None if first is None or second is None else first == second,
    )


def _majority(votes: Sequence[Label | None]) -> Label | None:
    num_a, num_b = votes.count("A"), votes.count("B")
    if num_a == num_b:
        return None
    return "A" if num_a > num_b else "B"


def matches_at_most(method: Method, num_answers: int) -> int:
    """Return how many matches a ranking can take; equal and empty answers take fewer."""
    return num_answers * (num_answers - 1) // 2 if method == "round_robin" else max(num_answers - 1, 0)


def judgments_at_most(method: Method, num_answers: int, votes: int) -> int:
    """Return how many judgments a ranking can take: every match is judged `votes` times in each order."""
    return matches_at_most(method, num_answers) * 2 * votes


def ranking(method: Method, answers: Sequence[str], seed: int = 0) -> Ranking:
    """Return the ranking of some answers to one conversation.

    What needs no judge is not asked: equal answers share all their matches and are even, and an empty answer loses to
    any other. Places in a match are those of the first answer with that text.

    `round_robin`: the reward is the mean score over all other answers, a match without a score being even: left out, it
    would reward an answer for what the judge could not read. `knockout`: it is the share of the rounds that an answer
    survives, 1 for the winner; who meets whom is drawn from the texts and the seed, so that it does not depend on the
    order in which answers are given. None is no reward: no match has anything to say about the answer.

    Raises ValueError for fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError(f"{len(answers)} answers; a pairwise judge needs two or more")
    return _round_robin(answers) if method == "round_robin" else _knockout(answers, seed)


def _firsts(answers: Sequence[str]) -> dict[str, int]:
    """Return each text that is not empty -> its first place."""
    places: dict[str, int] = {}
    for place, text in enumerate(answers):
        if text.strip():
            places.setdefault(text, place)
    return places


def _round_robin(answers: Sequence[str]) -> Ranking:
    first = _firsts(answers)
    places = list(first.values())
    matches = [(one, other) for at, one in enumerate(places) for other in places[at + 1 :]]
    scores = (yield matches) if matches else ()
    known = dict(zip(matches, scores, strict=True))
    return [
        _mean([_score(text, other, first, known) for other in answers if other != text], answers.count(text) - 1)
        for text in answers
    ]


def _score(text: str, other: str, first: Mapping[str, int], known: Mapping[Match, Score]) -> Score:
    if text not in first or other not in first:  # at least one is empty
        return EVEN if (text in first) == (other in first) else float(text in first)
    one, two = first[text], first[other]
    if (one, two) in known:
        return known[one, two]
    score = known[two, one]
    return None if score is None else 1 - score


def _mean(scores: Sequence[Score], num_copies: int) -> Score:
    """Return the mean of the scores against the others and against copies of the answer, with which it is even."""
    if scores and all(score is None for score in scores):
        return None
    return (sum(EVEN if score is None else score for score in scores) + EVEN * num_copies) / (len(scores) + num_copies)


def _knockout(answers: Sequence[str], seed: int) -> Ranking:
    first = _firsts(answers)
    seeded = sorted(first, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest())
    left = [first[text] for text in seeded]
    num_rounds = ceil(log2(len(left))) if len(left) > 1 else 0
    survived, judged = dict.fromkeys(left, 0), set[int]()
    for _ in range(num_rounds):
        # Without a power of two some pass the first round unplayed, and after it there is one.
        num_matches = len(left) - 2 ** (ceil(log2(len(left))) - 1)
        matches = [(left[2 * at], left[2 * at + 1]) for at in range(num_matches)]
        passing = left[2 * num_matches :]
        winners = []
        for match, score in zip(matches, (yield matches), strict=True):
            judged |= set(match) if score is not None else set()
            winners.append(match[1] if score is not None and score < EVEN else match[0])
        left = [*passing, *winners]
        for place in left:
            survived[place] += 1
    rewards: dict[int, Score] = {
        place: (rounds / num_rounds if place in judged else None) if num_rounds else _unplayed(answers)
        for place, rounds in survived.items()
    }
    lost = 0.0 if first else EVEN
    return [rewards[first[text]] if text in first else lost for text in answers]


def _unplayed(answers: Sequence[str]) -> float:
    """Return the reward of the only text that is there: even with its copies, better than empty answers."""
    return EVEN if all(text.strip() for text in answers) else 1.0


def best_first(rewards: Sequence[Score]) -> list[int]:
    """Return the places of answers, the best first; equal ones in the given order, those without a reward last."""
    return sorted(range(len(rewards)), key=lambda place: (_negative(rewards[place]), place))


def _negative(reward: Score) -> float:
    return 1.0 if reward is None else -reward
