"""Rewards: what each one pays, what no judgment can gain by, and how TRL's trainer gets them."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components.core.errors import ReasrmError
from components.core.rewards import (
    RANGES,
    RewardSettings,
    Rollout,
    count,
    overlong,
    pooled,
    rates,
    score,
    total,
    verdict_reward,
)
from components.core.schema import Label
from components.core.verdict import last_verdict
from components.grpo.rewards import functions

GOLDEN = Path(__file__).parents[3] / "shared/data/golden/rewardbench_sample_qwen32b.json"
MAX_TOKENS = 100
FORM = (
    "<type>Chat</type>\n<rubric>\n1. Kindness (100%)\n<justify>It hurts.</justify>\n</rubric>\n<eval>\n"
    "<quote_A>4</quote_A>\n<summary_A>Kind.</summary_A>\n<quote_B>5</quote_B>\n<summary_B>Rude.</summary_B>\n"
    "One is kind.\n</eval>\n<answer>[[{}]]</answer>"
)
PLAIN = "<eval>One is kind.</eval><answer>[[{}]]</answer>"
HEDGED = "<eval>Both.</eval><answer>[[A]]</answer><answer>[[B]]</answer>"
ALL_ON = RewardSettings(
    verdict=1.0, last_verdict=0.5, form=0.3, consistency=1.0, overlong=0.5, overlong_tokens=MAX_TOKENS // 2
)


def rollout(text: str, label: Label = "A", unit: str = "u", swapped: bool = False, **more: Any) -> Rollout:
    return Rollout(text, more.get("truncated", False), more.get("num_tokens", 10), label, unit, swapped)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<answer>[[A]]</answer>", "A"),
        ("x" * 500 + "<answer>[[B]]</answer>", "B"),
        ("<answer>[[A]]</answer>" + "x" * 58, "A"),
        ("<answer>[[A]]</answer>" + "x" * 59, None),  # the tag must lie wholly within the last 80 characters
        ("<answer> [[A]]</answer>", None),  # exact, no white space
        ("<answer>[[a]]</answer>", None),
        ("[[A]]", None),
        ("", None),
        ("<answer>[[A]]</answer><answer>[[A]]</answer>", "A"),
        ("<answer>[[A]]</answer><answer>[[B]]</answer>", None),
        ("<answer>[[B]]</answer>" + "x" * 60 + "<answer>[[A]]</answer>", "A"),  # the first is out of sight
        ("<eval>he says <answer>[[A]]</answer></eval>", "A"),  # a quotation counts, unlike with our parser
    ],
)
def test_the_papers_rule_reads_the_last_80_characters(text: str, read: str | None) -> None:
    assert last_verdict(text) == read
    assert last_verdict(text, truncated=True) is None


@pytest.mark.skipif(not GOLDEN.exists(), reason="the released RewardBench judgments are not on this machine")
def test_the_papers_rule_agrees_with_our_parser_on_released_judgments() -> None:
    records = json.loads(GOLDEN.read_text(encoding="utf-8"))
    differ = []
    for record in records:
        gold: Label = "B" if record["Is_Chosen_Answer_Shuffled_toPositionB"] else "A"
        paper = last_verdict(record["answers"]) == gold
        if paper != (verdict_reward(record["answers"], gold) == 1.0):
            differ.append(record["source_index"])
    assert len(records) == 232
    assert differ == []


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rollout(FORM.format("A")), {"verdict": 1, "last_verdict": 1, "form": 1, "overlong": 0}),
        (rollout(FORM.format("B")), {"verdict": -1, "last_verdict": -1, "form": 1, "overlong": 0}),
        (rollout(PLAIN.format("A")), {"verdict": 1, "last_verdict": 1, "form": 0, "overlong": 0}),
        (rollout(HEDGED), {"verdict": -1, "last_verdict": -1, "form": 0, "overlong": 0}),
        (rollout(PLAIN.format(" A ")), {"verdict": -1, "last_verdict": -1, "form": 0, "overlong": 0}),
        (rollout("<answer> [[A]] </answer>"), {"verdict": 1, "last_verdict": -1, "form": 0, "overlong": 0}),
        (
            rollout(FORM.format("A"), truncated=True, num_tokens=7),
            {"verdict": -1, "last_verdict": -1, "form": 0, "overlong": -1},
        ),
        (rollout("", num_tokens=0), {"verdict": -1, "last_verdict": -1, "form": 0, "overlong": 0}),
    ],
)
def test_what_one_judgment_earns(one: Rollout, expected: dict[str, float]) -> None:
    found = score([one], ALL_ON, MAX_TOKENS, grammar="rubric")
    assert found == {name: [float({**expected, "consistency": 0}[name])] for name in RANGES}


def test_form_is_that_of_the_grammar_asked_for() -> None:
    thought = rollout("<think>A is kind.</think>\n<answer>[[B]]</answer>")
    on = RewardSettings(form=1.0)
    assert score([thought], on, MAX_TOKENS, grammar="think")["form"] == [1.0]
    assert score([thought], on, MAX_TOKENS, grammar="rubric")["form"] == [0.0]


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(0, 0), (50, 0), (51, -0.02), (75, -0.5), (99, -0.98), (100, -1), (140, -1)]
)
def test_overlong_falls_linearly_before_the_limit(num_tokens: int, expected: float) -> None:
    assert overlong(rollout("x", num_tokens=num_tokens), 100, 50) == pytest.approx(expected)


def test_consistency_pays_right_verdicts_by_the_share_of_right_ones_in_the_other_order() -> None:
    shown = [rollout(PLAIN.format(letter)) for letter in "AAB"]
    exchanged = [rollout(text, "B", swapped=True) for text in (*map(PLAIN.format, "BAA"), HEDGED)]
    alone = [rollout(PLAIN.format("A"), unit="other")]
    found = score([*shown, *exchanged, *alone], RewardSettings(consistency=1.0), MAX_TOKENS, grammar="rubric")
    assert found["consistency"] == [0.25, 0.25, 0, pytest.approx(2 / 3), 0, 0, 0, 0]


def test_steady_but_wrong_earns_nothing_for_it() -> None:
    wrong = [rollout(PLAIN.format("B")), rollout(PLAIN.format("A"), "B", swapped=True)]  # the same wrong answer twice
    assert score(wrong, ALL_ON, MAX_TOKENS, grammar="rubric")["consistency"] == [0, 0]


def test_rewards_need_votes_of_the_whole_step_where_each_process_has_a_part() -> None:
    first, second = [rollout(PLAIN.format("A"))], [rollout(PLAIN.format("B"), "B", swapped=True)]
    whole = score(first + second, ALL_ON, MAX_TOKENS, grammar="rubric")
    votes = pooled([count(first), count(second)])
    parts = [score(part, ALL_ON, MAX_TOKENS, grammar="rubric", votes=votes) for part in (first, second)]
    assert {name: parts[0][name] + parts[1][name] for name in whole} == whole
    assert whole["consistency"] == [1, 1]


texts = st.sampled_from([FORM.format("A"), FORM.format("B"), PLAIN.format("A"), PLAIN.format("B"), HEDGED, "", "[[A]]"])
rollouts = st.builds(
    Rollout,
    text=texts | st.text(max_size=40),
    truncated=st.booleans(),
    num_tokens=st.integers(0, MAX_TOKENS),
    label=st.sampled_from(["A", "B"]),
    unit=st.just("u"),
    swapped=st.booleans(),
)
steps = st.lists(rollouts, max_size=8).map(lambda found: [replace(one, label=gold(one)) for one in found])


def gold(one: Rollout) -> Label:
    """The pair's better answer is one of the two, so its letter is another one in the other order."""
    return "B" if one.swapped else "A"


@st.composite
def weights(draw: st.DrawFn) -> RewardSettings:
    number = st.floats(0, 2).map(lambda value: round(value, 3))
    verdict, last = draw(st.floats(0.1, 5)), draw(number)
    form = draw(st.floats(0, verdict))
    return RewardSettings(
        verdict=verdict,
        last_verdict=last,
        form=form,
        consistency=draw(number),
        overlong=draw(st.floats(0, verdict)),
        overlong_tokens=draw(st.integers(1, MAX_TOKENS)),
    )


@given(steps, weights())
@settings(max_examples=200)
def test_totals_stay_within_the_documented_range(step: list[Rollout], chosen: RewardSettings) -> None:
    found = score(step, chosen, MAX_TOKENS, grammar="rubric")
    for name, values in found.items():
        assert all(RANGES[name][0] <= value <= RANGES[name][1] for value in values)
    low, high = chosen.range
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in total(found, chosen))


def exchange(one: Rollout) -> Rollout:
    letters = str.maketrans("AB", "BA")
    parts = one.text.replace("quote_A", "quote_@").replace("summary_A", "summary_@")
    parts = parts.replace("quote_B", "quote_A").replace("summary_B", "summary_A").replace("_@", "_B")
    swapped = parts.replace("[[A]]", "[[@]]").replace("[[B]]", "[[A]]").replace("[[@]]", "[[B]]")
    return replace(one, text=swapped, label=one.label.translate(letters), swapped=not one.swapped)


@given(steps)
@settings(max_examples=200)
def test_letters_make_no_difference(step: list[Rollout]) -> None:
    kept = [replace(one, text=one.text if "[[" in one.text else "") for one in step]
    before = score(kept, ALL_ON, MAX_TOKENS, grammar="rubric")
    for name, values in score([exchange(one) for one in kept], ALL_ON, MAX_TOKENS, grammar="rubric").items():
        places = [place for place, one in enumerate(kept) if name != "form" or "<type>" not in one.text]
        assert [values[place] for place in places] == [before[name][place] for place in places]


@given(steps, st.randoms())
@settings(max_examples=100)
def test_order_of_rollouts_makes_no_difference(step: list[Rollout], chance: random.Random) -> None:
    places = list(range(len(step)))
    chance.shuffle(places)
    before = total(score(step, ALL_ON, MAX_TOKENS, grammar="rubric"), ALL_ON)
    after = total(score([step[place] for place in places], ALL_ON, MAX_TOKENS, grammar="rubric"), ALL_ON)
    assert after == [before[place] for place in places]


@given(steps, weights(), st.integers(0, MAX_TOKENS))
@settings(max_examples=200)
def test_neither_hedging_nor_a_wrong_verdict_beats_the_right_one(
    others: list[Rollout], chosen: RewardSettings, num_tokens: int
) -> None:
    """Whatever else is in the step, and even where the others are well-formed and short and it is not."""
    right = rollout(PLAIN.format("A"), num_tokens=num_tokens)
    wrong = [rollout(text, num_tokens=0) for text in (FORM.format("B"), HEDGED, "", "[[A]]")]
    step = [right, *wrong, *others]
    best, form, hedge, *rest = total(score(step, chosen, MAX_TOKENS, grammar="rubric"), chosen)[:5]
    assert best >= max(form, hedge, *rest) - 1e-9
    assert hedge <= form  # no verdict is worth no more than a wrong one


@pytest.mark.parametrize(
    ("given_settings", "complaint"),
    [
        ({"verdict": 0}, "no reward pays for the right verdict"),
        ({"verdict": 0, "form": 1}, "no reward pays for the right verdict"),
        ({"form": 2.5}, "a wrong one could earn more"),
        ({"verdict": 0, "consistency": 1, "form": 0.5}, "a wrong one could earn more"),
        ({"overlong": 1}, "overlong needs overlong_tokens"),
        ({"verdict": -1}, "greater than or equal to 0"),
        ({"verdict": float("nan")}, "less than or equal to 10"),
        ({"honesty": 1}, "Extra inputs are not permitted"),
    ],
)
def test_weights_that_pay_for_the_wrong_thing_are_refused(given_settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        RewardSettings.model_validate(given_settings)


def test_the_cold_start_ablation_of_the_paper_can_be_set() -> None:
    """R = R_answer in {0, 1} + R_format in {0, 1} (arXiv 2505.02387, equation 11), but for a constant."""
    assert RewardSettings(verdict=0.5, form=1.0).range == (-0.5, 1.5)


def test_overlong_cannot_begin_before_the_first_token() -> None:
    with pytest.raises(ValueError, match="overlong_tokens 50 is over the longest completion, 40"):
        score([], ALL_ON, 40, grammar="rubric")


def test_rates_count_majorities_of_both_orders() -> None:
    def judged(unit: str, swapped: bool, said: str) -> list[Rollout]:
        label: Label = "B" if swapped else "A"
        return [rollout(PLAIN.format(letter), label, unit, swapped) for letter in said]

    said = {
        ("strict", False): "AAB", ("strict", True): "BB",
        ("wrong in both", False): "B", ("wrong in both", True): "A",
        ("first slot", False): "A", ("first slot", True): "A",
        ("split", False): "AB", ("split", True): "B",
        ("one order", False): "AA",
    }  # fmt: skip
    found = rates(count(one for (unit, swapped), letters in said.items() for one in judged(unit, swapped, letters)))
    assert found == {
        "valid_rate": 1.0,
        "accuracy": pytest.approx(9 / 14),
        "strict_accuracy": 0.25,
        "consistent_rate": 0.5,
    }
    assert rates(count(judged("one order", False, "AC"))) == {"valid_rate": 0.5, "accuracy": 0.5}
    assert rates({}) == {}


END, OTHER = 7, 5


def batch(texts: list[str], labels: str, swapped: list[bool], ids: list[list[int]] | None = None) -> dict[str, Any]:
    logged: list[tuple[str, float]] = []
    return {
        "prompts": [None] * len(texts),
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": ids or [[OTHER, END] for _ in texts],
        "label": list(labels),
        "unit": ["u"] * len(texts),
        "swapped": swapped,
        "key": ["k"] * len(texts),
        "trainer_state": SimpleNamespace(),
        "log_extra": None,
        "log_metric": lambda name, value: logged.append((name, value)),
        "logged": logged,
    }


def test_trl_gets_one_function_a_reward_over_one_reading_of_the_batch() -> None:
    asked = []
    chosen = RewardSettings(verdict=1.0, consistency=0.5, overlong=0.25, overlong_tokens=10)
    rewards, given_weights = functions(
        chosen,
        MAX_TOKENS,
        lambda: asked.append(1) or [END],
        grammar="rubric",  # type: ignore[func-returns-value]
    )
    assert [function.__name__ for function in rewards] == ["verdict", "consistency", "overlong"]
    assert given_weights == [1.0, 0.5, 0.25]
    one = batch([PLAIN.format("A"), PLAIN.format("B"), PLAIN.format("B")], "AAB", [False, False, True])
    assert [function(**one) for function in rewards] == [[1, -1, 1], [1, 0, 0.5], [0, 0, 0]]
    assert one["logged"] == [("valid_rate", 1.0), ("accuracy", pytest.approx(2 / 3)), ("consistent_rate", 0.0)]
    assert len(asked) == 1
    two = batch([PLAIN.format("A")], "A", [False], [[OTHER, OTHER]])  # cut off
    assert [function(**two) for function in rewards] == [[-1], [0], [-1]]
    assert two["logged"] == [("valid_rate", 0.0), ("accuracy", 0.0)]
    two["label"][0] = "B"
    assert [rewards[0](**two) for _ in range(2)] == [[-1], [-1]]
    assert len(asked) == 4  # the same list again is another batch: nothing old is given out


def test_what_goes_wrong_in_a_reward_is_raised() -> None:
    rewards, _ = functions(RewardSettings(), MAX_TOKENS, lambda: [END], grammar="rubric")
    with pytest.raises(ReasrmError, match="pair 'u' has the label 'C'"):
        rewards[0](**batch([PLAIN.format("A")], "C", [False]))
    with pytest.raises(KeyError):
        rewards[0](**{name: value for name, value in batch(["x"], "A", [False]).items() if name != "unit"})
    with pytest.raises(ValueError, match="shorter"):
        rewards[0](**batch(["x", "y"], "A", [False, True]))
    assert rewards[0](**batch([PLAIN.format("A")], "A", [False])) == [1]


PROCESS = """
import json, sys
import torch.distributed
from components.core.rewards import RewardSettings
from components.adapters import ranks
from components.grpo.rewards import functions
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=ranks.rank(), world_size=2)
letter = "AB"[ranks.rank()]
logged = {}
rewards, _ = functions(RewardSettings(consistency=1.0), 10, lambda: [7], grammar="rubric")
batch = dict(prompts=[0], completions=[[{"content": f"<answer>[[{letter}]]</answer>"}]], completion_ids=[[7]],
             label=[letter], unit=["u"], swapped=[bool(ranks.rank())], log_metric=logged.__setitem__)
print(json.dumps([[function(**batch) for function in rewards], logged]))
"""


def test_a_pair_whose_orders_lie_on_two_processes_is_seen_whole(tmp_path: Path) -> None:
    place = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "meet")]
    running = [
        subprocess.Popen(command, env={**place, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [json.loads(process.communicate(timeout=400)[0]) for process in running]
    assert said == [[[[1.0], [1.0]], {"valid_rate": 1.0, "accuracy": 1.0, "consistent_rate": 1.0}]] * 2
