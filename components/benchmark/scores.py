"""Turn judgments into scores with intervals.

Invalid verdicts count as wrong, both orders count, and pairs (not judgments) are what is resampled, because the two
judgments of one pair are not independent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from components.benchmark.config import Config
from components.core.metrics import PairOutcome, by_pair, invalid_causes
from components.core.schema import Judgment

PROTOCOL = (
    "Every held-out pair is judged in both orders with greedy decoding. Accuracy is the mean over orders, strict "
    "accuracy needs both orders right, position consistency needs the same answer named in both. A judgment without "
    "exactly one verdict counts as wrong. Intervals: Wilson for shares of pairs, percentile bootstrap over pairs else "
    "(Wilson where all pairs agree)."
)


def score_model(judgments: Sequence[Judgment], config: Config) -> dict[str, Any]:
    """Return all scores of one model, each rate as {value, low, high}."""
    outcomes = by_pair(judgments)
    first = [float(j.verdict.winner == "A") for j in judgments if j.verdict.winner is not None]
    return {
        "num_pairs": len(outcomes),
        "num_judgments": len(judgments),
        "accuracy": _mean([outcome.num_right / 2 for outcome in outcomes], config),
        "strict_accuracy": _share(sum(outcome.num_right == 2 for outcome in outcomes), len(outcomes), config),
        "valid_rate": _mean([outcome.num_valid / 2 for outcome in outcomes], config),
        "position_consistency": _share(sum(outcome.consistent for outcome in outcomes), len(outcomes), config),
        "first_slot_rate": _share(int(sum(first)), len(first), config) if first else None,
        "invalid_causes": invalid_causes(judgments),
        "mean_tokens": sum(j.num_tokens for j in judgments) / len(judgments),
        "by_category": _by_category(outcomes),
    }


def _share(count: int, total: int, config: Config) -> dict[str, float]:
    interval = stats.binomtest(count, total).proportion_ci(config.confidence, method="wilson")
    return _rounded(count / total, interval.low, interval.high)


def _mean(values: Sequence[float], config: Config) -> dict[str, float]:
    array = np.asarray(values)
    if np.ptp(array) == 0.0:  # resampling equal values has no width, which is not certainty
        return {**_share(round(float(array[0]) * len(array)), len(array), config), "value": round(float(array[0]), 6)}
    result = stats.bootstrap(
        (array,),
        np.mean,
        n_resamples=config.num_resamples,
        confidence_level=config.confidence,
        method="percentile",
        rng=np.random.default_rng(config.seed),
    )
    return _rounded(float(array.mean()), *result.confidence_interval)


def _rounded(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": round(value, 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def _by_category(outcomes: Sequence[PairOutcome]) -> dict[str, Any]:
    grouped: dict[str, list[int]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.category, []).append(outcome.num_right)
    return {
        category: {"value": round(sum(right) / (2 * len(right)), 6), "num_judgments": 2 * len(right)}
        for category, right in sorted(grouped.items())
    }
