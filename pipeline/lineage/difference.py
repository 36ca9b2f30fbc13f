"""What is different between two model versions, as data: `diff` finds it, `diff_text` shows it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Change:
    """One thing that differs; None is what one side has not got."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class PartChange:
    """The pairs of one part of the data, by id. `changed`: the same id with another prompt, answers or label."""

    part: str
    num_old: int
    num_new: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Move:
    """Pairs that both versions have, in different parts."""

    old: str
    new: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """A measure of each version with its interval: (value, low, high), or a value alone."""

    name: str
    old: tuple[float, ...] | None
    new: tuple[float, ...] | None


@dataclass(frozen=True)
class Paired:
    """The judges on the held-out pairs that both versions have, right in both orders or not.

    `difference` is the new share minus the old one. `only_new` and `only_old` count prompts (clusters) on which one is
    right more often than the other, `p_value` is the exact sign test of the two.
    """

    num_pairs: int
    num_clusters: int
    old: float
    new: float
    difference: float
    interval: tuple[float, float] | None
    only_new: int
    only_old: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """All that changed from one version to the other. `notes` say what could not be compared, and why."""

    old: str
    new: str
    same_stages: tuple[str, ...] = ()
    data: tuple[PartChange, ...] = ()
    moved: tuple[Move, ...] = ()
    started: tuple[Change, ...] = ()
    """The artifacts of earlier runs that each goes on from: its pairs (`since`), its model (a warm start)."""
    sources: tuple[Change, ...] = ()
    config: tuple[Change, ...] = ()
    code: tuple[Change, ...] = ()
    environment: tuple[Change, ...] = ()
    teacher: tuple[Change, ...] = ()
    scores: tuple[Score, ...] = ()
    paired: Paired | None = None
    notes: tuple[str, ...] = field(default=())
