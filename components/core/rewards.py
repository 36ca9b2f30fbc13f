"""Rewards that a program can check; pure functions of a completion and the label."""

from components.core.schema import Label
from components.core.verdict import parse_verdict

REWARD_RANGE = (-1.0, 1.0)


def verdict_reward(completion: str, label: Label, *, truncated: bool = False) -> float:
    """Return +1 if the completion's verdict is the label, else -1 (RM-R1's reward, arXiv 2505.02387 section 4).

    No verdict, two verdicts and a truncated completion are -1 like a wrong one: the policy is never paid for hedging.
    """
    return 1.0 if parse_verdict(completion, truncated=truncated).winner == label else -1.0
