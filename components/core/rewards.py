"""Rewards that a program can check; pure functions of the rollouts of one RL step.

| name | range | what it pays |
|---|---|---|
| verdict | -1 or +1 | the right verdict, as this project's parser reads it; everything else is wrong |
| last_verdict | -1 or +1 | the right verdict, as RM-R1's reward reads it: the tag in the last 80 characters |
| form | 0 or 1 | a judgment that keeps to its grammar strictly, whatever its verdict |
| consistency | 0 to 1 | a right verdict, by the share of rollouts of the other order that are right too |
| overlong | -1 to 0 | nothing; it takes from answers that come near the token limit |

A rollout's reward is the sum of them times their weights. No verdict, two verdicts and a truncated judgment earn no
more than a wrong verdict does: the policy is never paid for hedging.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.core.schema import Label
from components.core.verdict import Grammar, grammar_faults, last_verdict, parse_verdict

REWARD_RANGE = (-1.0, 1.0)

RANGES: Mapping[str, tuple[float, float]] = {
    "verdict": REWARD_RANGE,
    "last_verdict": REWARD_RANGE,
    "form": (0.0, 1.0),
    "consistency": (0.0, 1.0),
    "overlong": (-1.0, 0.0),
}

Outcome = Literal["right", "wrong", "none"]
Votes = dict[tuple[str, bool], Counter[Outcome]]
"""How often the rollouts of a unit, shown in one order (swapped or not), were right, wrong, or named no answer."""


class RewardSettings(BaseModel):
    """Weights of the rewards; 0 switches one off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: float = Field(1.0, ge=0, le=10, description="The right verdict: +1, anything else -1.")
    last_verdict: float = Field(0.0, ge=0, le=10, description="The same by RM-R1's rule: the last 80 characters only.")
    form: float = Field(0.0, ge=0, le=10, description="1 for a judgment that keeps to its grammar strictly.")
    consistency: float = Field(
        0.0, ge=0, le=10, description="0 to 1 for a right verdict: share of the other order's rollouts that are right."
    )
    overlong: float = Field(0.0, ge=0, le=10, description="0 to -1 over the last overlong_tokens before the limit.")
    overlong_tokens: int = Field(0, ge=0, description="Tokens before the limit from which overlong takes something.")

    @property
    def weights(self) -> dict[str, float]:
        """Return the weights of the rewards that are switched on, in a fixed order."""
        return {name: weight for name in RANGES if (weight := float(getattr(self, name))) > 0}

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest total that a rollout can have."""
        ends = [(weight * RANGES[name][0], weight * RANGES[name][1]) for name, weight in self.weights.items()]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    @model_validator(mode="after")
    def _pays_for_being_right(self) -> Self:
        if not self.verdict + self.last_verdict + self.consistency:
            raise ValueError("no reward pays for the right verdict; give verdict, last_verdict or consistency a weight")
        gap, rest = 2 * (self.verdict + self.last_verdict), self.form + self.overlong
        if rest > gap:
            raise ValueError(
                f"form and overlong together weigh {rest:g}, and a right verdict is worth {gap:g} more than a wrong "
                "one: a wrong one could earn more; lower them or raise verdict"
            )
        if self.overlong and not self.overlong_tokens:
            raise ValueError("overlong needs overlong_tokens: how long before the limit it begins")
        return self


@dataclass(frozen=True)
class Rollout:
    """One completion of a judge prompt; `unit` is the pair's key whatever the order, `swapped` says which order."""

    text: str
    truncated: bool
    num_tokens: int
    label: Label
    unit: str
    swapped: bool

    @cached_property
    def outcome(self) -> Outcome:
        """Say whether its verdict is right; this project's parser reads it."""
        winner = parse_verdict(self.text, truncated=self.truncated).winner
        if winner is None:
            return "none"
        return "right" if winner == self.label else "wrong"


def verdict_reward(completion: str, label: Label, *, truncated: bool = False) -> float:
    """Return +1 if the completion's verdict is the label, else -1 (RM-R1's reward, arXiv 2505.02387 section 4).

    No verdict, two verdicts and a truncated completion are -1 like a wrong one: the policy is never paid for hedging.
    """
    return 1.0 if parse_verdict(completion, truncated=truncated).winner == label else -1.0


def score(
    rollouts: Sequence[Rollout],
    settings: RewardSettings,
    max_tokens: int,
    *,
    grammar: Grammar,
    votes: Votes | None = None,
) -> dict[str, list[float]]:
    """Return what each reward that is switched on says of each rollout, without the weights.

    `max_tokens` is the longest completion. `votes` are those of the whole RL step where `rollouts` are only a part of
    it (each process has one). Raises ValueError when overlong would begin before the first token.
    """
    if settings.overlong and settings.overlong_tokens > max_tokens:
        raise ValueError(f"overlong_tokens {settings.overlong_tokens} is over the longest completion, {max_tokens}")
    all_votes = count(rollouts) if votes is None else votes
    rules: Mapping[str, Callable[[Rollout], float]] = {
        "verdict": lambda rollout: 1.0 if rollout.outcome == "right" else -1.0,
        "last_verdict": _last_verdict,
        "form": lambda rollout: float(not rollout.truncated and not grammar_faults(rollout.text, grammar)),
        "consistency": lambda rollout: consistency(rollout, all_votes),
        "overlong": lambda rollout: overlong(rollout, max_tokens, settings.overlong_tokens),
    }
    return {name: [rules[name](rollout) for rollout in rollouts] for name in settings.weights}


def total(scores: Mapping[str, Sequence[float]], settings: RewardSettings) -> list[float]:
    """Return the weighted sum for each rollout; it lies within `settings.range`."""
    weights = settings.weights
    columns = [[weights[name] * value for value in scores[name]] for name in weights]
    return [sum(values) for values in zip(*columns, strict=True)]


def _last_verdict(rollout: Rollout) -> float:
    return 1.0 if last_verdict(rollout.text, truncated=rollout.truncated) == rollout.label else -1.0


def consistency(rollout: Rollout, votes: Votes) -> float:
    """Return the share of rollouts of the pair's other order that are right, if this one is right; else 0.

    A right verdict in one order and the right one in the other name the same answer under different letters. A wrong
    verdict earns nothing however steadily it is repeated, and neither does one whose other order is not in the step.
    J1 pays only where both orders are right (arXiv 2505.10320); the share is the mean of that over all the other
    order's rollouts. Where advantages are not divided by the group's deviation, its gradient is that of the rate at
    which both orders are right: each order is pushed as hard as the other one succeeds. Where they are divided
    (scale_rewards "group"), a bonus that all right rollouts of a group share changes next to nothing.
    """
    other = votes.get((rollout.unit, not rollout.swapped))
    if rollout.outcome != "right" or not other:
        return 0.0
    return other["right"] / other.total()


def overlong(rollout: Rollout, max_tokens: int, buffer: int) -> float:
    """Return DAPO's soft punishment (arXiv 2503.14476, equation 13): 0 to `max_tokens - buffer`, then down to -1.

    A truncated rollout is -1 wherever it was cut off.
    """
    if rollout.truncated:
        return -1.0
    over = rollout.num_tokens - (max_tokens - buffer)
    return 0.0 if over <= 0 else -min(1.0, over / buffer)


def count(rollouts: Iterable[Rollout]) -> Votes:
    """Return the votes of these rollouts by unit and order."""
    votes: Votes = {}
    for rollout in rollouts:
        votes.setdefault((rollout.unit, rollout.swapped), Counter())[rollout.outcome] += 1
    return votes


def pooled(parts: Iterable[Votes]) -> Votes:
    """Return the votes of several parts of one step as one."""
    votes: Votes = {}
    for part in parts:
        for key, found in part.items():
            votes.setdefault(key, Counter()).update(found)
    return votes


def rates(votes: Votes) -> dict[str, float]:
    """Return the shares that say how a judge does; all are 0 to 1.

    `valid_rate` and `accuracy` (no verdict is wrong) are over rollouts. Over the units that were shown in both orders,
    and only where there are some: `strict_accuracy`, the majority of both orders is right, and `consistent_rate`, they
    name the same answer. An even split is no majority.
    """
    everything = sum(votes.values(), Counter[Outcome]())
    num = everything.total()
    if not num:
        return {}
    found = {"valid_rate": 1 - everything["none"] / num, "accuracy": everything["right"] / num}
    said = {key: _majority(counter) for key, counter in votes.items()}
    both = [(said[unit, False], said[unit, True]) for unit, swapped in said if not swapped and (unit, True) in said]
    if both:
        found["strict_accuracy"] = sum(first == second == "right" for first, second in both) / len(both)
        found["consistent_rate"] = sum(first == second != "none" for first, second in both) / len(both)
    return found


def _majority(votes: Counter[Outcome]) -> Outcome:
    if votes["right"] == votes["wrong"]:
        return "none"
    return "right" if votes["right"] > votes["wrong"] else "wrong"
