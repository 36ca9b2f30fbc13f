"""Whether new pairs are like those before: labels, sources, categories and lengths, compared by named tests.

Shares are compared by their total variation distance, with Pearson's chi-squared over random regroupings of the pairs:
by its own distribution, a few pairs over many sources are an alarm one time in three. Lengths are compared by the
distance of Kolmogorov and Smirnov, with their test. Both distances lie between 0 (alike) and 1 (nothing in common).
"""

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InvalidInput
from components.core.metrics import longer_wins
from components.core.schema import PreferencePair
from components.prepare.accepted import Accepted
from components.prepare.before import NEW
from components.prepare.config import Config
from components.prepare.split import Split, draw

logger = logging.getLogger(__name__)

MOST_PAIRS = 5_000
"""Pairs of each kind that are compared, a seeded sample."""
CHANCE = 0.01
"""Probability under which a distance is no chance."""
REGROUPINGS = 999
MOST_LEVELS = 5

SHARES: Mapping[str, Callable[[PreferencePair], str]] = {
    "label": lambda pair: pair.label,
    "longer_is_better": lambda pair: {0.0: "no", 0.5: "as long"}.get(longer_wins(pair), "yes"),
    "source": lambda pair: pair.source or "none",
    "category": lambda pair: pair.category or "none",
}
LENGTHS: Mapping[str, Callable[[PreferencePair], int]] = {
    "prompt_length": lambda pair: sum(len(message.content) for message in pair.prompt),
    "answer_length": lambda pair: len(pair.response_a) + len(pair.response_b),
}


@dataclass(frozen=True)
class Shift:
    """How far apart old and new are in one thing; `old` and `new` are shares by value, or quartiles in characters."""

    name: str
    test: str
    distance: float
    p_value: float
    drifted: bool
    old: Mapping[str, float]
    new: Mapping[str, float]

    def statistics(self) -> dict[str, Any]:
        """Return the numbers for the manifest."""
        return {
            "name": self.name,
            "test": self.test,
            "distance": round(self.distance, 4),
            "p_value": float(f"{self.p_value:.3g}"),
            "drifted": self.drifted,
            "old": dict(self.old),
            "new": dict(self.new),
        }


def sample_pairs(accepted: Accepted, split: Split, seed: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return samples of the pairs of the artifact before and of the new pairs chosen, in their sources' order."""
    origin, source = np.frombuffer(bytes(accepted.origins), np.uint8), np.array(accepted.sources)
    chosen = np.concatenate(list(split.chosen.values()))
    samples = []
    for numbers in (np.flatnonzero((origin != NEW) & (source < 2)), np.sort(chosen[origin[chosen] == NEW])):
        taken = heapq.nsmallest(MOST_PAIRS, numbers.tolist(), lambda one: draw(seed, "drift", str(one)))
        samples.append([PreferencePair.model_validate_json(accepted.read(one)[1]) for one in sorted(taken)])
    return samples[0], samples[1]


def compare(old: Sequence[PreferencePair], new: Sequence[PreferencePair], limit: float) -> list[Shift]:
    """Return how far apart old and new pairs are; drifted is what is farther than `limit` and no chance."""
    shifts = [
        _shares(name, [value(pair) for pair in old], [value(pair) for pair in new], limit)
        for name, value in SHARES.items()
    ]
    return shifts + [
        _lengths(name, [value(pair) for pair in old], [value(pair) for pair in new], limit)
        for name, value in LENGTHS.items()
    ]


def relabelling(known: int, relabelled: int, limit: float) -> Shift:
    """Return how many of the rows that came again, `known`, have another label than the first time."""
    now = ["other"] * relabelled + ["as before"] * (known - relabelled)
    return _shares("relabelled", ["as before"] * max(known, relabelled), now, limit)


def check_drift(found: Sequence[Shift], settings: Config) -> None:
    """Log what has drifted. Raises InvalidInput with all of it where `on_drift` is stop."""
    lines = [
        f"{shift.name}: distance {shift.distance:.2f} ({shift.test}, p {shift.p_value:.1g}), "
        f"from {_told(shift.old)} to {_told(shift.new)}"
        for shift in found
        if shift.drifted
    ]
    if lines and settings.on_drift == "stop":
        raise InvalidInput(
            f"the new pairs are not like those before, farther than max_drift={settings.max_drift:g}: "
            f'{"; ".join(lines)}. Look at the new data; if it is right, raise max_drift or set on_drift = "warn"'
        )
    for line in lines:
        logger.warning("drift in %s", line)


def _shares(name: str, old: Sequence[str], new: Sequence[str], limit: float) -> Shift:
    counted = Counter(old), Counter(new)
    levels = sorted({*old, *new})
    table = np.array([[counts[level] for level in levels] for counts in counted], float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    distance = float(abs(shares[0] - shares[1]).sum() / 2)
    enough = len(levels) > 1 and bool(old) and bool(new)
    p_value = _p_value(table.astype(np.int64)) if enough else 1.0
    top = sorted(range(len(levels)), key=lambda at: (-abs(shares[0, at] - shares[1, at]), levels[at]))[:MOST_LEVELS]
    told = [{levels[at]: round(float(row[at]), 4) for at in top} for row in shares]
    drifted = distance > limit and p_value < CHANCE
    return Shift(name, "chi-squared of regroupings", distance, p_value, drifted, told[0], told[1])


def _p_value(table: NDArray[np.int64]) -> float:
    """Return how likely pairs that were grouped by chance lie as far apart by chi-squared as the two rows do."""
    both, num_new = table.sum(axis=0), int(table[1].sum())
    draws = np.random.default_rng(0).multivariate_hypergeometric(both, num_new, REGROUPINGS, method="marginals")
    expected = both * (num_new / both.sum())

    def far(new: NDArray[np.int64]) -> NDArray[np.float64]:  # the old row's part is as large, up to a factor
        return np.asarray(((new - expected) ** 2 / expected).sum(axis=-1))

    return float(1 + (far(draws) >= far(table[1]) - 1e-9).sum()) / (1 + REGROUPINGS)


def _lengths(name: str, old: Sequence[int], new: Sequence[int], limit: float) -> Shift:
    from scipy.stats import ks_2samp

    found = ks_2samp(old, new, method="asymp") if old and new else None
    distance, p_value = (float(found.statistic), float(found.pvalue)) if found else (0.0, 1.0)
    told = [_quartiles(values) for values in (old, new)]
    drifted = distance > limit and p_value < CHANCE
    return Shift(name, "Kolmogorov-Smirnov", distance, p_value, drifted, told[0], told[1])


def _quartiles(values: Sequence[int]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (25, 50, 75)} if values else {}


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
