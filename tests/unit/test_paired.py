"""Two judges on the same items, against a case worked by hand."""

import random
from math import sqrt

import pytest

from components.benchmark.aggregate import aggregate
from components.benchmark.paired import compare
from components.core.errors import InvalidInput
from components.core.suites import Outcome, suite_named

PAIRS, RM_BENCH, RMB, RB2 = (suite_named(name) for name in ("pairs", "rm-bench", "rmb", "rewardbench-2"))
USUAL = {"confidence": 0.95, "num_resamples": 2000, "seed": 0}


def judged(results: list[float], each: int = 1) -> list[Outcome]:
    """Outcomes of one pair each, `each` on one prompt."""
    return [Outcome(id=f"p{n}", cluster=f"prompt {n // each}", results=(result,)) for n, result in enumerate(results)]


def test_two_released_judges_on_rewardbench_cannot_be_told_apart() -> None:
    """Of 2,985 pairs 106 are right for the first judge only and 92 for the second only; 92.93 % and 92.46 % right."""
    both = 2774 - 106
    first = judged([1.0] * 106 + [0.0] * 92 + [1.0] * both + [0.0] * (2985 - 198 - both))
    second = judged([0.0] * 106 + [1.0] * 92 + [1.0] * both + [0.0] * (2985 - 198 - both))
    found = compare(PAIRS, first, second, "ours", **USUAL)
    assert (found["only_first"], found["only_second"]) == (106, 92)
    assert found["difference"]["value"] == pytest.approx(14 / 2985, abs=1e-6)  # 0.47 points
    error = sqrt(198 - 14**2 / 2985) / 2985
    assert error == pytest.approx(0.0047, abs=2e-5)
    width = found["difference"]["high"] - found["difference"]["low"]
    assert width / (2 * 1.959964) == pytest.approx(error, rel=0.05)
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    assert found["p_value"] == pytest.approx(0.355, abs=0.01)


@pytest.mark.parametrize(
    ("pairs", "wins", "losses", "low", "high"),
    [
        (3, 0, 0, -0.57, 0.57),
        (3, 1, 0, -0.38, 1),
        (24, 1, 0, -0.11, 0.22),
        (24, 8, 0, 0.11, 0.54),
        (1000, 5, 0, 0, 0.02),
    ],
)
def test_a_judge_that_is_behind_on_no_pair_does_not_lead_for_sure(
    pairs: int, wins: int, losses: int, low: float, high: float
) -> None:
    rest = [1.0] * (pairs - wins - losses)
    first, second = ([float(side)] * wins + [float(not side)] * losses + rest for side in (1, 0))
    found = compare(PAIRS, judged(first), judged(second), "ours", **USUAL)["difference"]
    assert low <= found["low"] < found["value"] + 1e-9 and found["high"] <= high
    assert found["low"] < -0.09 or pairs * wins > 100


def test_of_prompts_with_one_pair_the_test_is_mcnemars() -> None:
    found = compare(PAIRS, judged([1.0] * 6 + [0.0] * 4), judged([0.0] * 10), "ours", **USUAL)
    assert (found["only_first"], found["only_second"]) == (6, 0)
    assert found["p_value"] == 2 / 2**6


def test_half_right_is_more_than_wrong_and_less_than_right() -> None:
    found = compare(PAIRS, judged([1.0, 0.5, 0.5, 0.5]), judged([0.5, 1.0, 0.0, 0.5]), "ours", **USUAL)
    assert (found["only_first"], found["only_second"], found["p_value"]) == (2, 1, 1.0)


def test_a_prompt_speaks_once_however_many_pairs_it_has() -> None:
    # Three pairs a prompt: 2 against 1, 3 against 0, 1 against 1, 0 against 1.
    first, second = ([float(sign) for sign in signs] for signs in ("110111100000", "001000010010"))
    found = compare(PAIRS, judged(first, each=3), judged(second, each=3), "ours", **USUAL)
    assert (found["only_first"], found["only_second"], found["p_value"]) == (2, 1, 1.0)


def test_a_list_counts_as_the_suite_counts_it() -> None:
    """A list is right if all its comparisons are: two of three are no more than one of three."""

    def rows(*results: list[float]) -> list[Outcome]:
        path = {"category_path": "BoN_set/Helpfulness/Chat"}
        return [Outcome.model_validate({"id": f"l{n}", "results": one} | path) for n, one in enumerate(results)]

    found = compare(RMB, rows([1, 1, 0], [1, 1, 1]), rows([1, 0, 0], [1, 1, 0]), "ours", **USUAL)
    assert (found["only_first"], found["only_second"]) == (1, 0)


def test_judges_with_and_without_scores_are_compared_by_what_both_have() -> None:
    """The terms of Ties that need scores are the scalar judge's alone: they are no lead."""
    tie = {"subset": "Ties", "num_correct": 2, "results": [1, 1]}
    ref = {"subset": "Ties", "num_correct": 1, "results": [1, 1]}
    rows = [Outcome.model_validate({"id": f"tied:{n}"} | tie) for n in range(3)]
    rows += [Outcome.model_validate({"id": f"ref:{n}"} | ref) for n in range(3)]
    scored = [
        row.model_copy(update={"scores": (5.0, 4.9, 0.0) if row.id.startswith("tied") else (5.0, 0.0, 0.0)})
        for row in rows
    ]
    found = compare(RB2, scored, rows, "official", **USUAL)
    assert (found["only_first"], found["only_second"]) == (0, 0)
    worse = [row.model_copy(update={"results": (1.0, 0.0)}) if row.id == "ref:0" else row for row in rows]
    found = compare(RB2, scored, worse, "official", **USUAL)
    assert (found["only_first"], found["only_second"]) == (1, 0)


def test_equally_good_judges_seldom_look_different_though_pairs_on_a_prompt_fall_together() -> None:
    """Nine pairs on a prompt that mostly fall together, as in RM-Bench: 5 % of such tests may be below 0.05."""
    draw = random.Random(3)

    def results() -> list[float]:
        shares = [draw.choice((0.1, 0.9)) for _ in range(40)]
        return [float(draw.random() < share) for share in shares for _ in range(9)]

    settings = USUAL | {"num_resamples": 100}
    found = [compare(PAIRS, judged(results(), 9), judged(results(), 9), "ours", **settings) for _ in range(200)]
    assert sum(one["p_value"] < 0.05 for one in found) <= 16  # 200 times 5 %, and twice the standard deviation


def test_a_judge_is_as_good_as_itself_and_that_is_no_certainty() -> None:
    rows = judged([1.0] * 30 + [0.0] * 20)
    found = compare(PAIRS, rows, list(reversed(rows)), "ours", **USUAL)
    # 0 of 50 prompts speak for either: Wilson's upper limit of 0 of 50 on both sides
    assert found["difference"] == {"value": 0.0, "low": -0.071348, "high": 0.071348}
    assert (found["only_first"], found["only_second"], found["p_value"]) == (0, 0, 1.0)


def test_exchanging_the_judges_turns_the_difference_round() -> None:
    draw = random.Random(1)
    first, second = (judged([float(draw.random() < share) for _ in range(300)], each=3) for share in (0.7, 0.6))
    there, back = (compare(PAIRS, *sides, "ours", **USUAL) for sides in ((first, second), (second, first)))
    assert there["difference"]["low"] == pytest.approx(-back["difference"]["high"], abs=2e-6)
    assert there["difference"]["value"] == pytest.approx(-back["difference"]["value"], abs=2e-6)
    assert (there["only_first"], there["only_second"]) == (back["only_second"], back["only_first"])
    assert there["p_value"] == back["p_value"]


def test_pairs_on_one_prompt_widen_the_difference() -> None:
    """The judges differ by whole prompts, so three pairs on a prompt tell no more than one."""
    draw = random.Random(2)
    prompts = [(float(draw.random() < 0.7), float(draw.random() < 0.6)) for _ in range(100)]
    first, second = ([prompt[side] for prompt in prompts for _ in range(3)] for side in (0, 1))
    width = []
    for each in (1, 3):
        found = compare(PAIRS, judged(first, each), judged(second, each), "ours", **USUAL)["difference"]
        width.append(found["high"] - found["low"])
    assert width[1] / width[0] == pytest.approx(sqrt(3), rel=0.1)


def test_judges_that_err_on_the_same_items_are_told_apart_by_what_separate_intervals_hide() -> None:
    base = [float(n % 10 < 7) for n in range(400)]
    better = [1.0 if n % 40 == 9 else right for n, right in enumerate(base)]
    sides = judged(better), judged(base)
    first, second = (aggregate(PAIRS, side, "ours", **USUAL)["score"] for side in sides)
    assert first["low"] < second["high"]
    found = compare(PAIRS, *sides, "ours", **USUAL)
    assert found["difference"]["low"] > 0
    assert found["p_value"] == pytest.approx(2 / 2**10, abs=1e-6)


def test_the_difference_is_that_of_the_suites_score_and_not_of_the_pairs() -> None:
    """One item of chat and three of maths: a domain counts as much as another."""

    def rows(chat: float, math: float) -> list[Outcome]:
        domains = [("chat", chat)] + [("math", math)] * 3
        return [
            Outcome.model_validate({"id": f"i{n}", "domain": domain, "results": [result] * 9})
            for n, (domain, result) in enumerate(domains)
        ]

    found = compare(RM_BENCH, rows(1, 0), rows(0, 0), "official", **USUAL)
    assert found["difference"]["value"] == 0.5
    assert (found["only_first"], found["only_second"]) == (1, 0)


ROWS = judged([1.0, 0.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (ROWS[:3], r"different items: 2 are missing from the second \(p3, p4\)"),
        ([*ROWS, Outcome(id="new", results=(1.0,))], r"1 are missing from the first \(new\)"),
        ([*ROWS, ROWS[0]], "items of the second judge occur twice"),
        ([ROWS[0].model_copy(update={"cluster": "x"}), *ROWS[1:]], r"1 items have another cluster .*\(p0\)"),
        (
            [ROWS[0].model_copy(update={"results": (1.0, 1.0)}), *ROWS[1:]],
            "item p0 has 1 results .* and 2 of the second",
        ),
    ],
)
def test_judges_of_different_items_are_not_compared(second: list[Outcome], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        compare(PAIRS, ROWS, second, "ours", **USUAL)
