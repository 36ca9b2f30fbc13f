"""Is one judge better than another? Both judged the same items, so what is resampled is the difference.

Two judges err on the same hard items; the interval of the difference is narrower than two separate ones suggest.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from components.benchmark.aggregate import Cells, combined, divided, resampler_of, suite_units
from components.benchmark.intervals import Rate, difference, percentiles, rate, wilson
from components.benchmark.resample import Resampler
from components.core.errors import InvalidInput
from components.core.significance import sign_test
from components.core.suites import Outcome, Suite

NUM_NAMED = 3
FEW = 10
"""Of fewer clusters that speak for a judge, resamples do not tell how many more there could have been."""
_EQUAL = 1e-9  # sums that differ by less differ by rounding only


class Comparison(TypedDict):
    """`difference` is of the suite's score, the first judge's minus the second's.

    `only_first` and `only_second` count prompts (clusters): those on which what the suite averages adds up to more for
    one judge than for the other. Comparisons on one prompt are not independent, so a prompt speaks once, for one judge
    or for none. `p_value` is the exact sign test of the two counts, two-sided; where a prompt has one pair it is
    McNemar's. Every prompt counts alike here, while the score may weigh them, so the two can point to different judges.
    """

    difference: Rate
    only_first: int
    only_second: int
    p_value: float


def compare(
    suite: Suite,
    first: Sequence[Outcome],
    second: Sequence[Outcome],
    protocol: str,
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Comparison:
    """Compare two judges on the same items, whose order does not matter.

    Raises:
        InvalidInput: the items are not the same, or do not fit the suite; the message names some.
    """
    _require_the_same(suite, first, second)
    units = [suite_units(suite, side, protocol) for side in (first, second)]
    resampler = resampler_of(units[0], num_resamples=num_resamples, seed=seed)
    cells = Cells.of(units[0], resampler), Cells.of(units[1], resampler)
    only_first, only_second = _ahead(*cells)
    return Comparison(
        difference=_difference(suite, cells, resampler, confidence, min(only_first, only_second)),
        only_first=only_first,
        only_second=only_second,
        p_value=sign_test(only_first, only_second),
    )


def _require_the_same(suite: Suite, first: Sequence[Outcome], second: Sequence[Outcome]) -> None:
    sides = tuple({outcome.id: outcome for outcome in side} for side in (first, second))
    for side, given, place in zip(sides, (first, second), ("first", "second"), strict=True):
        if len(side) != len(given):
            raise InvalidInput(f"{suite.title}: items of the {place} judge occur twice; give each item once")
    missing = [sorted(sides[1 - side].keys() - sides[side].keys()) for side in (0, 1)]
    if any(missing):
        told = [
            f"{len(names)} are missing from the {place} ({', '.join(names[:NUM_NAMED])})"
            for names, place in zip(missing, ("first", "second"), strict=True)
            if names
        ]
        raise InvalidInput(
            f"{suite.title}: the two judges have different items: {' and '.join(told)}; compare them on the same items"
        )
    apart = [name for name, outcome in sides[0].items() if outcome.cluster != sides[1][name].cluster]
    if apart:
        raise InvalidInput(
            f"{suite.title}: {len(apart)} items have another cluster in the second judge's outcomes "
            f"({', '.join(sorted(apart)[:NUM_NAMED])}); an item's cluster is its prompt"
        )
    for name, outcome in sides[0].items():
        numbers = len(outcome.results), len(sides[1][name].results)
        if all(numbers) and numbers[0] != numbers[1]:
            raise InvalidInput(
                f"{suite.title}: item {name} has {numbers[0]} results of the first judge and {numbers[1]} of the "
                "second; give one for each comparison"
            )


def _ahead(first: Cells, second: Cells) -> tuple[int, int]:
    """Return on how many clusters each judge has more, over the cells that both have.

    A judge that gives scores may have cells that one who writes has not (RewardBench 2); they are no comparison.
    """
    names = [name for name in first.names if name in second.names]
    columns = [[side.names.index(name) for name in names] for side in (first, second)]
    apart = (first.sums[:, columns[0]] - second.sums[:, columns[1]]).sum(axis=1)
    return int((apart > _EQUAL).sum()), int((apart < -_EQUAL).sum())


def _difference(
    suite: Suite, cells: tuple[Cells, Cells], resampler: Resampler, confidence: float, num_against: int
) -> Rate:
    """Return the difference of the scores on the same resamples.

    A judge that is behind on no cluster is so on none of any resample: one win on three pairs would be a lead for sure.
    So where few clusters (`num_against`) speak for one of the two, the interval is no narrower than that of the shares.
    """
    scores = [float(suite.combine(side.means())["score"]) for side in cells]
    value = scores[0] - scores[1]
    resampled = [combined(suite.combine, side.resampled(resampler))["score"] for side in cells]
    found = percentiles(value, resampled[0] - resampled[1], confidence)
    if found is not None and num_against >= FEW:
        return found
    shares = _without_width(value, cells, confidence)
    return (
        shares if found is None else rate(value, min(found["low"], shares["low"]), max(found["high"], shares["high"]))
    )


def _without_width(value: float, cells: Sequence[Cells], confidence: float) -> Rate:
    """Return the interval that does without resamples: from the shares of clusters that speak for each judge."""
    means = [divided(side.sums.sum(axis=1), side.counts.sum(axis=1)) for side in cells]
    apart = means[0] - means[1]
    apart = apart[np.isfinite(apart)]
    num = len(apart)
    plus, minus = (float(np.maximum(side, 0).sum()) for side in (apart, -apart))
    return difference(value, wilson(plus, num, confidence), wilson(minus, num, confidence))
