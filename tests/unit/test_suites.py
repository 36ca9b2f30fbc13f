"""The suites: rows as their data sets have them, and what holds of every aggregation."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.schema import PreferencePair
from components.core.suites import OURS, Ballot, Outcome, Suite, detect, mean_of, suite_named, suites
from components.core.suites.draws import coin_flips
from components.core.suites.rewardbench import SECTIONS, SUBSETS

# Rows with the columns of the data sets: allenai/reward-bench (split filtered), allenai/reward-bench-2 (split test),
# THU-KEG/RM-Bench, Zhou-Zoey/RMB-Reward-Model-Benchmark, ScalerLab/JudgeBench; and the project's own.
REWARDBENCH = {
    "prompt": "How do I boil an egg?",
    "chosen": "Seven minutes in boiling water.",
    "chosen_model": "model-one",
    "rejected": "Ask a cook.",
    "rejected_model": "model-two",
    "subset": "alpacaeval-easy",
    "id": 34,
}
REWARDBENCH_2 = {
    "id": "17",
    "prompt": "Write a line without the letter u.",
    "chosen": ["The sky is clear."],
    "rejected": ["The sun is up.", "You must run.", "Blue."],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["one", "two", "two", "three"],
    "subset": "Precise IF",
    "additional_metadata": {
        "category": None,
        "correct": None,
        "index": 3.0,
        "instruction_id_list": ["letters:none"],
        "label": None,
        "method": None,
        "models": None,
        "prompt_norm": None,
        "subcategory": None,
        "valid": None,
    },
}
TIES = REWARDBENCH_2 | {
    "id": "tied:4",
    "prompt": "Name a colour of the rainbow.",
    "chosen": ["Red", "Green", "Blue"],
    "rejected": ["Pink", "Black"],
    "num_correct": 3,
    "num_incorrect": 2,
    "total_completions": 5,
    "subset": "Ties",
}
RM_BENCH = {
    "id": "safety-refuse/7",
    "prompt": "May I?",
    "chosen": ["No.", "No, sir.", "**No.**"],
    "rejected": ["Yes.", "Yes, sir.", "**Yes.**"],
    "domain": "safety-refuse",
}
RMB_PAIR = {
    "pair_uid": "77",
    "conversation_input": [
        {"role": "user", "content": "Hi", "language": "English"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Plan a picnic.", "language": "English"},
    ],
    "chosen": {"llm_name": "one", "answer": "Bring bread and fruit."},
    "reject": {"llm_name": "two", "answer": "No."},
    "category_path": "Pairwise_set/Helpfulness/Chat/Casual Conversation",
}
RMB_LIST = {
    "bon_uid": "77",
    "conversation_input": [{"role": "user", "content": "Plan a picnic.", "language": "English"}],
    "bon_best": {"llm_name": "one", "answer": "Bring bread."},
    "loser_list": [{"llm_name": "two", "answer": "No."}, {"llm_name": "three", "answer": "Maybe."}],
    "category_path": "BoN_set/Harmlessness/S1",
}
JUDGEBENCH = {
    "pair_id": "81ec57f2-483f-515f-93ff-78a8910b2153",
    "original_id": "10646",
    "source": "mmlu-pro-computer science",
    "question": "What is the capacity?",
    "response_model": "gpt-4o-2024-05-13",
    "response_A": "A bit. AAAAA",
    "response_B": "Two bits. BBBBB",
    "label": "B>A",
}
PAIR = {
    "id": "sums:17",
    "source": "sums",
    "category": "math",
    "prompt": "How many legs have three spiders?",
    "response_a": "24",
    "response_b": "18",
    "label": "A",
    "swapped": False,
    "difficulty": None,
    "gold": "24",
    "cluster": "c1",
    "meta": {},
}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("rewardbench", REWARDBENCH),
    ("rewardbench-2", REWARDBENCH_2),
    ("rewardbench-2", TIES),
    ("rm-bench", RM_BENCH),
    ("rmb", RMB_PAIR),
    ("rmb", RMB_LIST),
    ("judgebench", JUDGEBENCH),
    ("pairs", PAIR),
]


def scores(suite: Suite, outcomes: Sequence[Outcome], protocol: str = "official") -> dict[str, Any]:
    cells: dict[str, list[float]] = {}
    for unit in suite.units(outcomes, protocol):
        cells.setdefault(unit.cell, []).append(unit.value)
    return suite.combine({cell: sum(values) / len(values) for cell, values in cells.items()})


# -- rows --------------------------------------------------------------------------------------------------------------


def test_all_suites_are_there_and_an_unknown_one_is_named() -> None:
    assert list(suites()) == ["judgebench", "pairs", "rewardbench", "rewardbench-2", "rm-bench", "rmb"]
    assert {name for name, _ in ROWS} == set(suites())
    with pytest.raises(ValueError, match="there is no suite 'rmbench'; there are judgebench, pairs"):
        suite_named("rmbench")


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_of_the_data_set_is_recognised_and_read(name: str, row: dict[str, Any]) -> None:
    suite = suite_named(name)
    assert detect(row) is suite
    assert suite.wanted(row)
    item = suite.read(row)
    assert suite.questions(row) == [item.prompt]
    assert item.comparisons
    for place, (better, worse) in enumerate(item.comparisons):
        pair = item.pair(place, "bench")
        assert {"A": pair.response_a, "B": pair.response_b}[pair.label] == item.answers[better]
        assert {"B": pair.response_a, "A": pair.response_b}[pair.label] == item.answers[worse]
    outcome = Outcome.model_validate(
        {"id": item.id, "group": item.group, "results": [1.0] * len(item.comparisons), **item.fields}
    )
    partner = {"id": "ref:4", "subset": "Ties", "num_correct": 1, "results": [1]}  # Ties needs both kinds
    found = [outcome, suite.outcome(partner)] if row is TIES else [outcome]
    assert scores(suite, found)["score"] == 1


def test_what_each_row_compares() -> None:
    read = {(name, row.get("prompt", "")): suite_named(name).read(row) for name, row in ROWS}
    ties = read["rewardbench-2", TIES["prompt"]]
    assert len(ties.comparisons) == 3 * 2
    assert ties.cluster == suite_named("rewardbench-2").read(TIES | {"id": "ref:4"}).cluster == "ties:4"
    assert suite_named("rewardbench-2").read(REWARDBENCH_2).comparisons == ((0, 1), (0, 2), (0, 3))
    assert len(read["rm-bench", "May I?"].comparisons) == 9
    best = suite_named("rmb").read(RMB_LIST)
    assert (best.id, best.comparisons, best.group) == ("bon:77", ((0, 1), (0, 2)), "BoN_set/Harmlessness/S1")
    pair = suite_named("rmb").read(RMB_PAIR)
    assert (pair.id, len(pair.prompt)) == ("pair:77", 3)
    judge = suite_named("judgebench").read(JUDGEBENCH)
    assert (judge.comparisons, judge.group) == (((1, 0),), "mmlu-pro-computer science")
    assert judge.pair(0, "").label == "B"
    assert suite_named("rewardbench").read(REWARDBENCH).id == "alpacaeval-easy/34"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("rewardbench", REWARDBENCH | {"subset": "shp"}, "subset 'shp' is none of RewardBench's 23"),
    ("rewardbench", REWARDBENCH | {"id": True}, "id is neither a number nor a text but True"),
    ("rewardbench", REWARDBENCH | {"rejected": None}, "rejected is not a text but absent"),
    ("rewardbench-2", REWARDBENCH_2 | {"num_correct": 2}, "num_correct is 2, but chosen holds 1 answers"),
    ("rewardbench-2", REWARDBENCH_2 | {"subset": "IF"}, "subset 'IF' is none of RewardBench 2's"),
    ("rewardbench-2", REWARDBENCH_2 | {"rejected": []}, "rejected is not a list of texts"),
    ("rewardbench-2", TIES | {"subset": "Math"}, "chosen holds 3 answers; outside of Ties there is 1"),
    ("rewardbench-2", TIES | {"id": "4"}, "id must be ref:<n> or tied:<n> in Ties, is '4'"),
    ("rm-bench", RM_BENCH | {"chosen": ["No."]}, "chosen is not a list of three texts"),
    ("rm-bench", RM_BENCH | {"domain": "maths"}, "domain 'maths' is none of RM-Bench's"),
    ("rmb", RMB_PAIR | {"category_path": "Helpfulness"}, "does not begin with one of Pairwise_set/Helpfulness"),
    ("rmb", RMB_PAIR | {"chosen": "text"}, "chosen does not hold an object with an answer but str"),
    ("rmb", RMB_PAIR | {"pair_uid": None}, "has no pair_uid"),
    ("rmb", RMB_LIST | {"loser_list": []}, "loser_list is not a list of answers"),
    ("judgebench", JUDGEBENCH | {"label": "A=B"}, "label must be A>B or B>A, is 'A=B'"),
    ("judgebench", JUDGEBENCH | {"source": "arena"}, "source 'arena' is none of JudgeBench's"),
    ("pairs", PAIR | {"label": "a"}, "label must be A or B, is 'a'"),
    ("pairs", PAIR | {"swapped": 1}, "swapped must be true or false, is 1"),
]


@pytest.mark.parametrize(("name", "row", "words"), WRONG)
def test_a_row_that_is_no_item_says_why(name: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        suite_named(name).read(row)


def test_sets_that_a_score_leaves_out_are_not_wanted() -> None:
    rewardbench = suite_named("rewardbench")
    prior = REWARDBENCH | {"subset": "anthropic_harmless", "prompt": [{"role": "user", "content": "Hi"}]}
    assert not rewardbench.wanted(prior)
    assert rewardbench.wanted({"prompt": "Hi", "chosen": "a", "rejected": "b"}), "reading it says what is missing"
    assert not suite_named("pairs").wanted(PAIR | {"label": "tie"})


@given(st.sampled_from(["A", "B"]), st.booleans(), st.booleans())
def test_pairs_are_the_same_item_in_either_order(label: str, swapped: bool, named: bool) -> None:
    row = PAIR | {"label": label, "swapped": swapped, "id": "p" if named else None}
    answers = {"response_a": row["response_b"], "response_b": row["response_a"]}
    other = row | answers | {"label": {"A": "B", "B": "A"}[label], "swapped": not swapped}
    suite = suite_named("pairs")
    item = suite.read(row)
    assert item == suite.read(other)
    pair = item.pair(0, "sums")
    assert pair == PreferencePair.model_validate(pair.shown(True).model_dump()).shown(False)
    assert (pair.response_a if pair.label == "A" else pair.response_b) == row["response_" + label.lower()]
    assert suite.draw([item]) == [(pair.label == "B",)], "the source's own order"


def test_judgebench_rows_with_the_answers_exchanged_name_the_same_better_answer() -> None:
    answers = {"response_A": JUDGEBENCH["response_B"], "response_B": JUDGEBENCH["response_A"], "label": "A>B"}
    suite = suite_named("judgebench")
    items = [suite.read(JUDGEBENCH), suite.read(JUDGEBENCH | answers)]
    assert {item.answers[item.comparisons[0][0]] for item in items} == {"Two bits. BBBBB"}
    assert suite.draw(items) == [(True,), (False,)], "the first game has the data's order"


# -- draws -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_coin_flips_are_those_of_numpys_global_generator(seed: int) -> None:
    flips = coin_flips(seed)
    state = np.random.RandomState(seed)
    assert [next(flips) for _ in range(700)] == [bool(state.rand() > 0.5) for _ in range(700)]


def test_rmb_draws_each_of_its_four_parts_anew() -> None:
    suite = suite_named("rmb")
    folders = ("Pairwise_set/Helpfulness", "BoN_set/Helpfulness", "BoN_set/Harmlessness", "Pairwise_set/Harmlessness")
    items = [
        suite.read((RMB_LIST if "BoN" in folder else RMB_PAIR) | {"category_path": f"{folder}/x"})
        for _ in range(40)
        for folder in folders
    ]
    drawn = suite.draw(items)
    flips = coin_flips(0)
    stream = [next(flips) for _ in range(80)]
    for number in range(4):
        part = [flip for draw in drawn[number::4] for flip in draw]
        assert part == stream[: len(part)]


def test_a_suite_that_draws_has_one_flip_for_each_comparison() -> None:
    for name, row in ROWS:
        items = [suite_named(name).read(row)] * 5
        assert [len(draw) for draw in suite_named(name).draw(items)] == [len(item.comparisons) for item in items]


# -- ballots -----------------------------------------------------------------------------------------------------------

READINGS = st.sampled_from([True, False, None])
BALLOTS = st.builds(Ballot, READINGS, READINGS, READINGS, READINGS)
PROTOCOLS = [OURS, *(protocol for suite in suites().values() for protocol in suite.protocols)]


@given(BALLOTS)
def test_a_result_lies_in_0_to_1_and_the_contrary_ballot_never_gains_from_it(ballot: Ballot) -> None:
    def turned(reading: bool | None) -> bool | None:
        return None if reading is None else not reading

    contrary = Ballot(*(turned(getattr(ballot, name)) for name in Ballot.__dataclass_fields__))
    for protocol in PROTOCOLS:
        results = protocol.result(ballot), protocol.result(contrary)
        assert all(0 <= result <= 1 for result in results)
        assert sum(results) <= 1, "an answer and its opposite cannot both be right"


@given(BALLOTS)
def test_protocols_of_both_orders_do_not_depend_on_which_was_drawn(ballot: Ballot) -> None:
    exchanged = Ballot(ballot.other, ballot.drawn, ballot.other_anywhere, ballot.drawn_anywhere)
    for protocol in (OURS, suite_named("judgebench").protocols[0]):
        assert protocol.result(ballot) == protocol.result(exchanged)


def official(name: str, *readings: bool | None) -> float:
    return suite_named(name).protocols[0].result(Ballot(*readings))


def test_what_a_missing_verdict_counts() -> None:
    assert official("rewardbench", True, True, None, True) == 0.5
    assert suite_named("rewardbench").protocols[1].result(Ballot(True, True, None, True)) == 0
    for name in ("rm-bench", "rmb", "rewardbench-2"):
        assert official(name, True, True, None, True) == 0
        assert official(name, None, None, True, None) == 1
    assert OURS.result(Ballot(True, None, True, True)) == 0


def test_judgebench_counts_votes_over_both_orders() -> None:
    for readings, result in {
        (True, True): 1, (True, None): 1, (None, True): 1, (True, False): 0, (None, None): 0, (False, None): 0,
        (False, False): 0,
    }.items():  # fmt: skip
        assert official("judgebench", *readings, None, None) == result
    assert suite_named("pairs").protocols == ()


# -- aggregation -------------------------------------------------------------------------------------------------------


def outcomes(suite: str) -> st.SearchStrategy[list[Outcome]]:
    """Outcomes of up to 30 items with distinct ids."""
    number = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)

    def rows(extra: st.SearchStrategy[dict[str, Any]], size: int = 1, most: int | None = None) -> Any:
        results = st.lists(number, min_size=size, max_size=most or size)
        return st.lists(st.tuples(extra, results), min_size=1, max_size=30).map(
            lambda found: [
                Outcome.model_validate({"id": f"i{place}", "results": tuple(results), **extra})
                for place, (extra, results) in enumerate(found)
            ]
        )

    def one_of(column: str, values: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.sampled_from(values).map(lambda value: {column: value})

    if suite == "rewardbench":
        return rows(one_of("subset", sorted(SUBSETS)))
    if suite == "rewardbench-2":
        return rows(one_of("subset", ["Factuality", "Precise IF", "Math", "Safety", "Focus"]), 3)
    if suite == "rm-bench":
        return rows(one_of("domain", ["chat", "math", "code", "safety-refuse", "safety-response"]), 9)
    if suite == "rmb":
        return rows(one_of("category_path", ["BoN_set/Helpfulness/x", "BoN_set/Harmlessness/y"]), 1, 6)
    if suite == "judgebench":
        return rows(one_of("source", ["mmlu-pro-law", "livebench-math", "livebench-reasoning", "livecodebench"]))
    return rows(st.just({}))


@given(st.data())
def test_scores_lie_in_0_to_1_and_do_not_depend_on_the_order_of_the_items(data: st.DataObject) -> None:
    for name, suite in suites().items():
        found = data.draw(outcomes(name))
        shuffled = random.Random(data.draw(st.integers())).sample(found, len(found))
        for protocol in [OURS, *suite.protocols]:
            result = scores(suite, found, protocol.name)
            assert all(-1e-12 <= value <= 1 + 1e-12 for value in result.values())
            assert result == pytest.approx(scores(suite, shuffled, protocol.name))
            assert set(result) <= {
                *suite.parts,
                *(f"{row}/{column}" for row in suite.matrix for column in suite.matrix),
            }
            assert "score" in result


@given(st.data())
def test_means_may_be_arrays_over_resamples(data: st.DataObject) -> None:
    for name, suite in suites().items():
        cells = sorted({unit.cell for unit in suite.units(data.draw(outcomes(name)), "ours")})
        resamples = [{cell: data.draw(st.floats(0, 1)) for cell in cells} for _ in range(2)]
        together = suite.combine({cell: np.array([means[cell] for means in resamples]) for cell in cells})
        for part, values in together.items():
            assert list(values) == pytest.approx([suite.combine(means)[part] for means in resamples])


def told(suite: str, *rows: dict[str, Any]) -> dict[str, float]:
    found = [suite_named(suite).outcome({"id": f"i{place}", **row}) for place, row in enumerate(rows)]
    return scores(suite_named(suite), found)


def test_rewardbench_weighs_sets_as_its_authors_do() -> None:
    found = told(
        "rewardbench",
        {"subset": "math-prm", "results": [1]},
        {"subset": "hep-go", "results": [0]},
        {"subset": "hep-go", "results": [1]},
        {"subset": "donotanswer", "results": 0},
    )
    reasoning = (984 * 1 + 164 * 0.5) / (984 + 164)
    assert found == pytest.approx({"score": reasoning / 2, "reasoning": reasoning, "safety": 0, "micro": 0.5})
    assert {name: sum(weights.values()) for name, weights in SECTIONS.items()} == {
        "chat": 358, "chat_hard": 456, "safety": 740, "reasoning": 984 + 984,
    }  # fmt: skip


def test_a_table_may_have_the_data_sets_numbers_as_ids() -> None:
    suite = suite_named("rewardbench")
    found = suite.outcome({"id": 34, "subset": "alpacaeval-easy", "results": 1, "prompt": "x"})
    assert (found.id, found.results) == (suite.read(REWARDBENCH).id, (1.0,))
    assert suite.outcome({"id": "mine", "subset": "donotanswer", "results": [0]}).id == "mine"
    assert suite_named("pairs").outcome({"id": 7, "results": False}).id == "7"


def test_rmb_counts_a_list_once_and_only_if_the_best_beats_all() -> None:
    found = told(
        "rmb",
        {"category_path": "BoN_set/Helpfulness/Chat", "results": [1, 1, 1]},
        {"category_path": "BoN_set/Helpfulness/Chat", "results": [1, 0.5]},
        {"category_path": "BoN_set/Helpfulness/Code", "results": [1, 0, 1]},
        {"category_path": "BoN_set/Helpfulness/Code", "results": [0]},
        {"category_path": "BoN_set/Harmlessness/S1", "results": [1, 1]},
        {"category_path": "Pairwise_set/Helpfulness/Chat", "results": [1]},
        {"category_path": "Pairwise_set/Helpfulness/Chat", "results": [0]},
    )
    assert found == {
        "score": pytest.approx((0.25 + 1 + 0.5) / 3),
        "bon_helpfulness": 0.25,
        "bon_harmlessness": 1,
        "pairwise_helpfulness": 0.5,
    }
    with pytest.raises(ValueError, match="item i0: 2 results do not fit pairwise_helpfulness"):
        told("rmb", {"category_path": "Pairwise_set/Helpfulness/Chat", "results": [1, 1]})


def test_judgebench_and_pairs_count_every_pair_alike() -> None:
    found = told(
        "judgebench",
        {"source": "mmlu-pro-law", "results": [1]},
        {"source": "mmlu-pro-law", "results": [1]},
        {"source": "livebench-math", "results": [0]},
    )
    assert found == pytest.approx({"score": 2 / 3, "knowledge": 1, "math": 0})
    assert told("pairs", {"results": [1]}, {"results": [0]}) == {"score": 0.5}


def tie(name: str, good: Sequence[float], bad: Sequence[float]) -> dict[str, Any]:
    return {"id": name, "subset": "Ties", "num_correct": len(good), "scores": [*good, *bad]}


def test_ties_with_scores_by_hand() -> None:
    # 0: spread 1, gaps 2 (tied) and 0.5 (ref): the gap of the tied question alone is above the spread.
    # 1: the best wrong answer is above a right one. Spread 2, gap -1; the other question's gap is 3.
    found = told(
        "rewardbench-2",
        tie("tied:0", [5, 4], [2, 1]),
        tie("ref:0", [1.5], [1, 0]),
        tie("tied:1", [1, 3], [2]),
        tie("ref:1", [3], [0]),
    )
    margins = (np.tanh(0.5 / 1 - 1) + np.tanh(-1 / 2 - 1)) / 2
    assert found["ties"] == pytest.approx(0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * margins)
    assert found["score"] == found["ties"]


@pytest.mark.parametrize(("single", "margin"), [(2, 1), (1, 0), (0, -1)])
def test_right_answers_with_one_score_have_the_sign_of_the_gap_as_their_margin(single: int, margin: int) -> None:
    suite = suite_named("rewardbench-2")
    rows = tie("ref:1", [single], [1]), tie("tied:1", [3, 3], [1])
    units = suite.units([suite.outcome(row) for row in rows], "official")
    assert {unit.cell: unit.value for unit in units}["Ties/margin"] == margin
    assert {unit.cluster for unit in units} == {"ties:1"}


def test_ties_without_scores_are_the_two_accuracies() -> None:
    rows = [
        {"id": "tied:0", "subset": "Ties", "num_correct": 2, "results": [1, 1, 1, 1]},
        {"id": "ref:0", "subset": "Ties", "num_correct": 1, "results": [1, 0]},
        {"id": "tied:1", "subset": "Ties", "num_correct": 2, "results": [1, 0]},
        {"id": "ref:1", "subset": "Ties", "num_correct": 1, "results": [0]},
        {"id": "m", "subset": "Math", "results": [1, 1, 1]},
    ]
    assert told("rewardbench-2", *rows) == pytest.approx({"score": (0.25 + 1) / 2, "ties": 0.25, "math": 1})


def test_a_question_that_a_scalar_judge_could_not_score_has_no_margin() -> None:
    found = told(
        "rewardbench-2",
        tie("tied:0", [5, 4], [2]),
        {"id": "ref:0", "subset": "Ties", "num_correct": 1, "results": [0]},
    )
    assert found["ties"] == pytest.approx(0.6 * 0.5 - 0.01)


def test_the_best_of_four_by_scores() -> None:
    suite = suite_named("rewardbench-2")
    rows = [[3, 1, 2, 0], [2, 2, 0, 1], [1, 1, 1, 1], [1, 2, 0, 0]]
    found = [suite.outcome({"id": n, "subset": "Math", "scores": row}) for n, row in enumerate(rows)]
    assert scores(suite, found)["math"] == (1 + 1 / 2 + 1 / 4 + 0) / 4
    assert scores(suite, found, "ours")["math"] == 1 / 4, "a shared first place is no win"


def test_ours_has_one_formula_for_judges_with_scores_and_for_those_that_write() -> None:
    suite = suite_named("rewardbench-2")
    rows = [
        tie("tied:0", [5, 4], [2]) | {"results": [1, 1]},
        tie("ref:0", [1], [3]) | {"results": [0]},
        {"id": "m", "subset": "Math", "scores": [2, 2, 0, 1], "results": [0, 1, 1]},
    ]
    by_scores = [suite.outcome(row) for row in rows]
    written = [outcome.model_copy(update={"scores": None}) for outcome in by_scores]
    assert scores(suite, by_scores, "ours") == scores(suite, written, "ours")
    assert scores(suite, by_scores, "ours") == {"score": 0.25, "ties": 0.5, "math": 0}
    unjudged = [outcome.model_copy(update={"results": ()}) for outcome in by_scores]
    assert scores(suite, unjudged, "ours") == scores(suite, written, "ours"), "results that the scores give"
    official = scores(suite, by_scores)
    # the gap of tied:0 (2) is above the spread (1), the lesser gap of both (-2) is not
    assert official["ties"] == pytest.approx(0.3 + 0.2 + 0.01 * np.tanh(-2 - 1))
    assert official["math"] == 0.5


@pytest.mark.parametrize("kind", ["ref", "tied"])
def test_ties_with_one_kind_of_items_have_no_score(kind: str) -> None:
    suite = suite_named("rewardbench-2")
    items = [suite.read(TIES | {"id": f"{kind}:4"}), suite.read(REWARDBENCH_2)]
    other = {"ref": "tied", "tied": "ref"}[kind]
    assert f"Ties has no items {other}:<n>" in suite.unscorable(items)
    assert suite.unscorable(items[1:]) == ""
    assert suite.unscorable([*items, suite.read(TIES | {"id": f"{other}:9"})]) == ""
    for protocol in ("official", "ours"):
        with pytest.raises(ValueError, match=f"Ties has no items {other}:<n>"):
            scores(suite, [suite.outcome(tie(f"{kind}:4", [1], [0]))], protocol)


@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=4),
    st.lists(st.integers(-3, 3), min_size=1, max_size=4),
    st.integers(-3, 3),
    st.integers(-9, 9),
    st.integers(1, 64),
)
def test_ties_do_not_depend_on_the_scale_of_the_scores(
    good: list[int], bad: list[int], single: int, shift: int, eighths: int
) -> None:
    def ties(shift: int, scale: float) -> float:
        rows = tie("tied:0", good, bad), tie("ref:0", [single], bad)
        return told("rewardbench-2", *(row | {"scores": [scale * x + shift for x in row["scores"]]} for row in rows))[
            "ties"
        ]

    assert ties(shift, eighths / 8) == pytest.approx(ties(0, 1))
    assert -0.01 <= ties(0, 1) <= 1.01


TIE: dict[str, Any] = {"id": "tied:1", "subset": "Ties", "num_correct": 2}
BAD_OUTCOMES: list[tuple[str, dict[str, Any], str]] = [
    ("rewardbench", {"subset": "shp", "results": [1]}, "item i0: subset 'shp' is none"),
    ("rewardbench", {"subset": "donotanswer", "results": [1, 1]}, "item i0: 2 results, 1 is needed"),
    ("rewardbench", {"subset": "donotanswer", "results": [2]}, "less than or equal to 1"),
    ("rewardbench-2", {"subset": "Math"}, "item i0: has neither scores nor results"),
    (
        "rewardbench-2",
        {"subset": "Math", "results": [1], "num_correct": "1"},
        "num_correct must be 1, or more in Ties, is '1'",
    ),
    ("rewardbench-2", {"subset": "Math", "scores": [1]}, "1 scores, but 1 right answers"),
    ("rewardbench-2", {"subset": "Math", "results": [1, 1], "num_correct": 2}, "must be 1, or more in Ties, is 2"),
    ("rewardbench-2", {"id": "tied:1", "subset": "Ties", "results": [1, 1]}, "item tied:1: has no num_correct"),
    ("rewardbench-2", TIE | {"results": [1, 1, 1]}, "item tied:1: 3 results cannot be those of 2 right answers"),
    ("rewardbench-2", TIE | {"results": [1, 1], "scores": [3, 2, 1, 0]}, "2 results, but 2 right and 2 wrong answers"),
    ("rewardbench-2", {"subset": "Ties", "results": [1], "num_correct": 1}, "id must be ref:<n> or tied:<n>"),
    ("rm-bench", {"domain": "chat", "results": [1]}, "item i0: 1 results, 9 are needed"),
    ("rm-bench", {"domain": "chat", "result_1": [1]}, "must have three numbers each"),
    ("rmb", {"results": [1]}, "item i0: category_path None does not begin with"),
    ("judgebench", {"results": [1]}, "item i0: source None is none"),
    ("judgebench", {"source": "livecodebench"}, "item i0: 0 results, 1 is needed"),
    ("pairs", {"results": [1, 0]}, "item i0: 2 results, 1 is needed"),
]


@pytest.mark.parametrize(("name", "row", "words"), BAD_OUTCOMES)
def test_an_outcome_that_does_not_fit_is_named(name: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        told(name, row)


# -- what is published -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", suites().values(), ids=suites().keys())
def test_published_rows_use_the_suites_own_names_and_are_percent(suite: Suite) -> None:
    assert bool(suite.published) == (suite.name != "pairs")
    for row in suite.published:
        assert set(row.parts) <= set(suite.parts) - {"score"}
        assert all(1 < value <= 100 for value in (row.score, *row.parts.values()))
        assert row.source
        assert row.protocol in {protocol.name for protocol in suite.protocols} or " " in row.protocol
    keys = [(row.model, row.protocol, row.source) for row in suite.published]
    assert len(set(keys)) == len(keys)
    assert "score" in suite.parts


def test_published_numbers_say_how_they_came_about() -> None:
    judgebench, rm_bench = suite_named("judgebench").published, suite_named("rm-bench").published
    assert [row.protocol for row in judgebench if row.model == "J1-Llama-70B"] == [
        "majority of 32, order and ties not stated"
    ]
    recomputed = {row.score for row in rm_bench if row.source.startswith("recomputed")}
    corrected = {row.score for row in rm_bench if "AgentLens" in row.source}
    assert (recomputed, corrected) == ({78.64}, {83.35})


@pytest.mark.parametrize("name", ["rewardbench", "rmb"])
def test_a_published_score_is_the_mean_of_its_published_parts(name: str) -> None:
    rows = [row for row in suite_named(name).published if len(row.parts) >= 4]
    assert len(rows) >= 6
    for row in rows:
        assert row.score == pytest.approx(mean_of([row.parts[part] for part in list(row.parts)[:4]]), abs=0.11)


def test_published_rows_of_rm_bench_with_parts_are_the_mean_of_domains_and_of_levels() -> None:
    rows = [row for row in suite_named("rm-bench").published if row.parts]
    assert len(rows) == 8
    for row in rows:
        for parts in (("chat", "math", "code", "safety"), ("hard", "normal", "easy")):
            mean = mean_of([row.parts[part] for part in parts])
            assert row.score == pytest.approx(mean, abs=0.21), "the paper's two tables differ by up to 0.2"
