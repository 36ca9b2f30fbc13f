"""Are two judges apart on the same items, or is it luck? What needs no numpy: the exact sign test, a bootstrap."""

import random
from collections.abc import Sequence

_EQUAL = 1e-9  # what differs by less differs by rounding only


def sign_test(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact sign test (binomial, one half), rounded to six digits.

    The counts are of independent units on which one side did better than the other. Where each is one pair of right or
    wrong verdicts it is McNemar's exact test. No such unit gives 1.

    Raises:
        ValueError: a count is negative.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts of {only_first} and {only_second} are no counts")
    total, least = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for number in range(least):
        term = term * (total - number) // (number + 1)
        ways += term
    p_value: float = 2 * ways / 2**total
    return round(min(1.0, p_value), 6)


def difference_interval(
    differences: Sequence[float], sizes: Sequence[int], *, confidence: float, num_resamples: int, seed: int
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a paired difference, resampling clusters of items.

    `differences` are per cluster the sum over its items of first minus second, `sizes` how many items it has. None
    where all resamples are equal: that says nothing of the width.
    """
    draws, places = random.Random(seed), range(len(differences))  # noqa: S311
    found = []
    for _ in range(num_resamples if differences else 0):
        chosen = draws.choices(places, k=len(places))
        found.append(sum(differences[place] for place in chosen) / sum(sizes[place] for place in chosen))
    found.sort()
    if not found or found[-1] - found[0] < _EQUAL:
        return None
    tail = (1 - confidence) / 2
    low, high = (found[round(share * (len(found) - 1))] for share in (tail, 1 - tail))
    return round(low, 6), round(high, 6)
