"""From votes to verdicts and rewards, without a judge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.ranking import best_first, judgments_at_most, matches_at_most, ranking, tally


def play(method, answers, better, seed=0):
    """Rewards by a judge whose score of (one, other) is `better(one, other)`, and the matches that were played."""
    rules, scores, played = ranking(method, answers, seed), None, []
    while True:
        try:
            wanted = next(rules) if scores is None else rules.send(scores)
        except StopIteration as end:
            return end.value, played
        played += wanted
        scores = [better(answers[one], answers[other]) for one, other in wanted]


def longer(one, other):
    return float(len(one) > len(other))


@pytest.mark.parametrize(
    ("as_given", "exchanged", "winner", "confidence", "consistent", "score"),
    [
        (["A"], ["A"], "A", 1.0, True, 1.0),
        (["A"], ["B"], None, None, False, 0.5),
        (["B"], [None], "B", 0.5, None, 0.25),
        ([None], [None], None, None, None, None),
        (["A", "A", "B"], ["A", None, "B"], "A", 0.5, None, 0.5 + 1 / 12),
        (["A", "A", "B"], ["A", "A", None], "A", 4 / 6, True, 0.75),
    ],
)
def test_votes_of_both_orders_become_a_verdict(as_given, exchanged, winner, confidence, consistent, score):
    found = tally(as_given, exchanged)
    assert (found.winner, found.consistent) == (winner, consistent)
    assert found.confidence == (confidence if confidence is None else pytest.approx(confidence))
    assert found.score_a == (score if score is None else pytest.approx(score))


@pytest.mark.parametrize(("as_given", "exchanged"), [([], []), (["A"], []), (["A"], ["A", "B"])])
def test_an_order_that_lacks_votes_is_an_error(as_given, exchanged):
    with pytest.raises(ValueError, match="same number"):
        tally(as_given, exchanged)


def test_round_robin_gives_the_mean_over_all_others():
    rewards, played = play("round_robin", ["bb", "a", "dddd", "ccc"], longer)
    assert rewards == pytest.approx([1 / 3, 0, 1, 2 / 3])
    assert len(played) == matches_at_most("round_robin", 4) == 6


def test_a_judge_that_prefers_the_first_place_separates_nobody():
    votes = tally(["A", "A"], ["B", "B"])
    rewards, _ = play("round_robin", ["a", "b", "c"], lambda one, other: votes.score_a)
    assert rewards == [0.5, 0.5, 0.5]


def test_equal_answers_are_compared_once_and_are_even():
    rewards, played = play("round_robin", ["bb", "a", "bb"], longer)
    assert played == [(0, 1)]
    assert rewards == [0.75, 0.0, 0.75]


@pytest.mark.parametrize("method", ["round_robin", "knockout"])
def test_an_empty_answer_loses_unasked(method):
    rewards, played = play(method, ["", "a", "bb", " \n"], longer)
    assert played in ([(1, 2)], [(2, 1)])
    assert rewards[0] == rewards[3] <= rewards[1] < rewards[2] == 1
    assert play(method, ["", "a"], longer) == ([0.0, 1.0], [])
    assert play(method, ["a", "a"], longer) == ([0.5, 0.5], [])
    assert play(method, ["", " "], longer) == ([0.5, 0.5], [])


def test_what_nobody_spoke_about_has_no_reward():
    answers = ["a", "bb", "ccc"]
    rewards, _ = play("round_robin", answers, lambda one, other: None if "a" in (one, other) else longer(one, other))
    assert rewards == [None, 0.25, 0.75]
    for method in ("round_robin", "knockout"):
        assert play(method, answers, lambda one, other: None)[0] == [None] * 3


def test_a_match_that_nobody_understood_is_no_advantage():
    rewards, _ = play("round_robin", ["a", "b", "b", ""], lambda one, other: None)
    assert rewards == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])  # better than the empty one, and that is all one knows
    rewards, _ = play("round_robin", ["a", "b", "b"], lambda one, other: None)
    assert rewards == [None, None, None]
    rewards, _ = play("round_robin", ["x", "bb", "ccc"], lambda one, other: None if "x" in (one, other) else 0.0)
    assert rewards == [None, 0.25, 0.75]


@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=2, max_size=11), st.integers(0, 3))
def test_a_knockout_finds_the_best_in_one_match_less_than_there_are_texts(answers, seed):
    def by_text(one, other):
        return float((len(one), one) > (len(other), other))

    rewards, played = play("knockout", answers, by_text, seed)
    texts = set(answers)
    assert len(played) == len(texts) - 1
    best = max(texts, key=lambda text: (len(text), text))
    if len(texts) > 1:
        assert {reward for reward, text in zip(rewards, answers, strict=True) if text == best} == {1.0}
        assert all(0 <= reward < 1 for reward, text in zip(rewards, answers, strict=True) if text != best)
    again, _ = play("knockout", answers[::-1], by_text, seed)
    assert again[::-1] == rewards  # the order in which answers are given makes no difference


@given(st.lists(st.text("ab", max_size=4), min_size=2, max_size=7))
def test_rewards_of_a_round_robin_sum_to_half_the_number_of_answers(answers):
    rewards, played = play("round_robin", answers, longer)
    assert len(played) <= matches_at_most("round_robin", len(answers))
    if all(longer(a, b) + longer(b, a) == 1 for a in answers for b in answers if a != b and a.strip() and b.strip()):
        assert sum(rewards) == pytest.approx(len(answers) / 2)


def test_the_bounds_are_what_the_methods_cost():
    assert judgments_at_most("round_robin", 8, 1) == 56
    assert judgments_at_most("knockout", 8, 3) == 42
    with pytest.raises(ValueError, match="two or more"):
        ranking("knockout", ["a"])


def test_the_best_come_first_and_those_without_a_reward_last():
    assert best_first([0.5, None, 1.0, 0.5]) == [2, 0, 3, 1]
