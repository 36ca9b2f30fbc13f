import pytest
from scipy import stats

from components.core.significance import difference_interval, sign_test


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 8), (8, 0), (5, 5), (3, 11), (40, 71), (600, 701)])
def test_the_sign_test_is_scipys_exact_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert sign_test(first, second) == pytest.approx(expected, abs=1e-6)


def test_many_counts_do_not_overflow():
    assert sign_test(10_000, 10_001) == 1.0
    assert sign_test(0, 10_000) == 0.0


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="are no counts"):
        sign_test(-1, 2)


def test_the_interval_of_a_difference_is_that_of_its_clusters():
    differences, sizes = [1] * 60 + [0] * 120 + [-1] * 20, [1] * 200
    low, high = difference_interval(differences, sizes, confidence=0.95, num_resamples=2000, seed=0) or (0, 0)
    spread = 1.96 * (sum((value - 0.2) ** 2 for value in differences) / 200 / 200) ** 0.5
    assert (low, high) == (pytest.approx(0.2 - spread, abs=0.01), pytest.approx(0.2 + spread, abs=0.01))


def test_pairs_of_one_prompt_count_as_one_when_the_width_is_looked_for():
    alone = difference_interval([1, 0, -1, 1] * 10, [1] * 40, confidence=0.95, num_resamples=1000, seed=1) or (0, 0)
    together = difference_interval([5, 0, -5, 5] * 2, [5] * 8, confidence=0.95, num_resamples=1000, seed=1) or (0, 0)
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_what_does_not_vary_has_no_interval():
    assert difference_interval([1, 1, 1], [1, 1, 1], confidence=0.95, num_resamples=100, seed=0) is None
    assert difference_interval([], [], confidence=0.95, num_resamples=100, seed=0) is None
