import json
import math
import subprocess
import sys

import pytest

from components.core.manifest import Manifest
from components.publish.config import Config
from components.publish.gate import compared_champion, decide, fact

CONFIG = Config(
    model_name="demo-judge",
    min_accuracy=0.6,
    min_strict_accuracy=0.4,
    max_invalid_rate=0.2,
    min_consistency=0.5,
    max_flip_rate=0.1,
    suites={"RM-Bench": 0.7, "RMB": 0.5},
)
CHECKS = [
    "accuracy",
    "strict accuracy",
    "invalid rate",
    "position consistency",
    "flip rate",
    "RM-Bench score",
    "RMB score",
    "difference to the champion",
]


def scored(accuracy=0.75, valid=0.95, consistency=0.7, strict=0.5):
    return {
        "accuracy": {"value": accuracy},
        "strict_accuracy": {"value": strict},
        "valid_rate": {"value": valid},
        "position_consistency": {"value": consistency},
    }


def statistics(flip=0.05, rm_bench=0.8, rmb=0.6, judge="grpo", **scores):
    """What the manifest of a benchmark says."""
    return {
        "scores": {judge: scored(**scores)},
        "injection": {judge: {"flip_rate": {"value": flip}}},
        "suites": {
            "RM-Bench": {judge: {"official": 0.9, "ours": rm_bench}},
            "RMB": {judge: {"official": None, "ours": rmb}},
        },
        "longer_baseline": {"value": 0.5},
    }


LINE = {"accuracy": 0.6, "strict": 0.4, "valid": 0.8, "consistency": 0.5, "flip": 0.1, "rm_bench": 0.7, "rmb": 0.5}


@pytest.mark.parametrize(
    ("measured", "failed"),
    [
        (LINE, []),
        ({"accuracy": 1.0, "strict": 1.0, "valid": 1.0, "consistency": 1.0, "flip": 0.0, "rm_bench": 1, "rmb": 1}, []),
        ({"accuracy": 0.599999}, ["accuracy"]),
        ({"strict": 0.399999}, ["strict accuracy"]),
        ({"valid": 0.799999}, ["invalid rate"]),
        ({"consistency": 0.499999}, ["position consistency"]),
        ({"flip": 0.100001}, ["flip rate"]),
        ({"rm_bench": 0.699999}, ["RM-Bench score"]),
        ({"rmb": 0.499999}, ["RMB score"]),
        ({"accuracy": 0, "strict": 0, "valid": 0, "consistency": 0, "flip": 1, "rm_bench": 0, "rmb": 0}, CHECKS[:-1]),
    ],
)  # fmt: skip
def test_gate_boundaries(measured, failed):
    decision = decide(statistics(**measured), CONFIG)
    assert [check.name for check in decision.checks] == CHECKS
    assert [check.name for check in decision.checks if not check.passed] == failed
    assert decision.passed == (not failed)
    assert [reason.split(" is ")[0] for reason in decision.reasons] == failed


@pytest.mark.parametrize("invalid", [0.01, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.35])
def test_gate_is_not_moved_by_float_rounding(invalid):
    config = CONFIG.model_copy(update={"max_invalid_rate": invalid})
    assert decide(statistics(valid=round(1 - invalid, 6)), config).passed


BAD = [
    (None, "gives no"),
    ({}, "gives no"),
    ({"value": None}, "gives no"),
    ("0.9", "not a number"),
    ({"value": "0.9"}, "not a number"),
    ({"value": True}, "not a number"),
    ({"value": math.nan}, "not a number"),
    (math.nan, "not a number"),
    ({"value": math.inf}, "not a number"),
    ({"value": 1.2}, "not between 0 and 1"),
    ({"value": -0.1}, "not between 0 and 1"),
]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("scores", "grpo", "accuracy"), "accuracy"),
        (("scores", "grpo", "strict_accuracy"), "strict_accuracy"),
        (("scores", "grpo", "valid_rate"), "valid_rate"),
        (("scores", "grpo", "position_consistency"), "position_consistency"),
        (("injection", "grpo", "flip_rate"), "flip_rate"),
        (("suites", "RM-Bench", "grpo", "ours"), "'grpo' on RM-Bench"),
    ],
)
@pytest.mark.parametrize(("value", "reason"), BAD)
def test_gate_never_passes_without_a_number(path, name, value, reason):
    found = statistics(0.0, 1.0, 1.0, accuracy=1.0, valid=1.0, consistency=1.0, strict=1.0)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    for config in (CONFIG, CONFIG.model_copy(update={"min_strict_accuracy": 0.0, "max_flip_rate": 1.0})):
        decision = decide(found, config)
        assert not decision.passed
        assert len(decision.reasons) == 1
        assert reason in decision.reasons[0]
        assert name in decision.reasons[0]
        assert [check.value for check in decision.checks[:-1]].count(None) == 1


@pytest.mark.parametrize("missing", ["injection", "suites"])
@pytest.mark.parametrize("value", [None, {}, [], 0.5])
def test_gate_fails_when_something_was_not_measured_at_all(missing, value):
    for found in (statistics() | {missing: value}, {k: v for k, v in statistics().items() if k != missing}):
        decision = decide(found, CONFIG)
        assert not decision.passed
        hint = {"injection": "attacks were not measured; set benchmark.attacks", "suites": "has no suite 'RM-Bench'"}
        assert hint[missing] in decision.reasons[0]
        assert len(decision.reasons) == {"injection": 1, "suites": 2}[missing]


def test_gate_says_why_there_is_no_flip_rate():
    found = statistics()
    found["injection"]["grpo"] = {"flip_rate": None, "clean_right": 0, "reason": "the judge had none right"}
    (reason,) = decide(found, CONFIG).reasons
    assert reason.endswith("the benchmark gives no flip_rate, because the judge had none right")


def test_gate_leaves_attacks_and_suites_alone_unless_asked():
    config = CONFIG.model_copy(update={"max_flip_rate": None, "suites": {}})
    decision = decide({"scores": {"grpo": scored()}}, config)
    assert decision.passed
    assert [check.name for check in decision.checks] == [*CHECKS[:4], CHECKS[-1]]
    assert decide(statistics(flip=1.0, rm_bench=0.0), config).passed
    # Attacks are checked by default.
    plain = Config(model_name="demo-judge")
    assert not decide({"scores": {"grpo": scored()}}, plain).passed
    assert decide(statistics(), plain).passed


def test_a_suite_is_held_against_its_score_under_our_protocol():
    found = statistics(rm_bench=0.1)
    found["suites"]["RM-Bench"]["grpo"]["official"] = 1.0
    (reason,) = decide(found, CONFIG).reasons
    assert reason == "RM-Bench score is 0.1, needs at least 0.7"
    found["suites"]["RM-Bench"]["grpo"]["ours"] = {"value": 0.7, "low": 0.6, "high": 0.8}
    assert decide(found, CONFIG).passed


@pytest.mark.parametrize(
    "scores", [None, {}, {"sft": scored(1.0, 1.0, 1.0)}, {"grpo": None}, {"grpo": {}}, {"grpo": 1.0}]
)
def test_gate_fails_when_the_judge_was_not_scored(scores):
    decision = decide(statistics() | {"scores": scores}, CONFIG)
    assert not decision.passed
    assert "no scores of 'grpo'" in decision.reasons[0]
    assert not any(check.passed for check in decision.checks[:4])


def test_gate_holds_the_configured_judge_against_the_thresholds():
    weak, good = statistics(0.9, 0.0, 0.0, accuracy=0.1), statistics(judge="sft", accuracy=0.9)
    found = {
        "scores": weak["scores"] | good["scores"],
        "injection": weak["injection"] | good["injection"],
        "suites": {name: weak["suites"][name] | good["suites"][name] for name in weak["suites"]},
    }
    assert len(decide(found, CONFIG).reasons) == 4
    assert decide(found, CONFIG.model_copy(update={"judge": "sft"})).passed


def test_gate_is_light_to_import():
    heavy = "{'boto3', 'jinja2', 'matplotlib', 'mlflow', 'numpy', 'torch'}"
    program = f"import sys, components.publish.gate; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_name": "a/b"},
        {"model_name": "a:b"},
        {"model_name": "it's"},
        {"model_name": "a@b"},
        {"model_name": ""},
        {"alias": "latest"},
        {"alias": "v3"},
        {"alias": "challenger"},
        {"alias": "previous"},
        {"margin": -0.1},
        {"alias": "a b"},
        {"judge": "base"},
        {"min_accuracy": 1.1},
        {"min_strict_accuracy": -0.1},
        {"max_flip_rate": 1.1},
        {"max_flip_rate": math.nan},
        {"max_flip_rate": "none of it"},
        {"suites": {"RM-Bench": 1.1}},
        {"suites": {"RM-Bench": None}},
        {"suites": ["RM-Bench"]},
        {"surprise": 1},
    ],
)
def test_config_refuses_what_the_registry_would(wrong):
    with pytest.raises(ValueError):
        Config.model_validate({"model_name": "demo"} | wrong)


def test_the_check_of_attacks_can_be_turned_off_in_toml_and_in_json():
    assert Config.model_validate({"model_name": "demo"}).max_flip_rate == 0.2
    off = Config.model_validate({"model_name": "demo", "max_flip_rate": "off"})
    assert off.max_flip_rate is None
    assert Config.model_validate_json(off.model_dump_json()) == off


def against(digest="a" * 64, judged_as="champion", name="demo-judge@champion", **differences):
    """What the benchmark says of the champion."""
    return {"name": name, "digest": digest, "judged_as": judged_as, "differences": differences}


def low(number, value=0.0):
    return {"value": value, "low": number, "high": 1.0}


@pytest.mark.parametrize(
    ("champion", "passed", "words"),
    [
        (None, True, "not compared: benchmark.champion is not set"),
        (against("none", None), True, "no champion yet"),
        (against(judged_as="grpo"), True, "this model is the champion"),
        (against(grpo=low(0.01)), True, "on the same held-out pairs +0, and at least +0.01 by its interval"),
        (against(grpo=low(-0.019999)), True, "at least -0.02"),
        (against(grpo=low(-0.02)), False, "is -0.02, needs more than -0.02"),
        (against(grpo=low(-0.5, -0.3)), False, "on the same held-out pairs -0.3, and at least -0.5"),
        (against(sft=low(0.5)), False, "gives no difference of 'grpo' to the champion"),
        (against(grpo={"value": math.nan, "low": math.nan}), False, "gives no difference of 'grpo'"),
        (against(grpo={"value": 0.5, "low": True}), False, "gives no difference of 'grpo'"),
        (against(judged_as=None), False, "gives no difference of 'grpo'"),
        (against("none", None, name="other@champion"), False, "judged 'other@champion', not 'demo-judge@champion'"),
        ({}, False, "judged None, not 'demo-judge@champion'"),
    ],
)
def test_the_lower_bound_of_the_paired_difference_lies_above_the_margin(champion, passed, words):
    decision = decide(statistics() | {"champion": champion}, CONFIG)
    check = decision.checks[-1]
    assert (decision.passed, check.passed, check.threshold) == (passed, passed, -0.02)
    assert words in (check.text + check.note if passed else decision.reasons[0])


def test_the_check_against_the_champion_can_be_turned_off():
    off = Config.model_validate({"model_name": "demo-judge", "margin": "off"})
    worse = statistics() | {"champion": against(grpo=low(-0.9, -0.8))}
    assert decide(worse, off).passed
    assert compared_champion(worse, off) is None
    assert compared_champion(worse, CONFIG) == "a" * 64
    assert compared_champion(statistics(), CONFIG) is None


def test_a_fact_that_does_not_hold_is_a_reason():
    bad = fact("weights finite", ["tensor a", "tensor b", "tensor c", "tensor d", "tensor e"], "all")
    decision = decide(statistics(), CONFIG, [fact("lineage complete", [], "all 6 artifacts"), bad])
    assert not decision.passed
    assert decision.reasons == ("weights finite: tensor a; tensor b; tensor c; and 2 more",)
    assert [check.text for check in decision.checks[-2:-1]] == ["lineage complete all 6 artifacts"]


@pytest.mark.parametrize(("flip", "passed"), [(0.1, True), (0.3, False)])
def test_the_gate_as_a_task_reads_the_whole_manifest(tmp_path, flip, passed):
    manifest = Manifest(
        kind="scores",
        stage="benchmark",
        uri="s3://bucket/benchmark/1",
        run_key="0" * 64,
        code_version="1",
        config={},
        files=(),
        statistics=statistics(flip=flip, accuracy=0.9),
    )
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest.to_bytes())
    config = json.dumps({"suites": {"RM-Bench": 0.8}, "min_accuracy": 0.9})
    program = "import json, sys; from components.publish.ask import ask; print(json.dumps(ask(*sys.argv[1:])))"
    table = tmp_path / "out" / "decision.md"
    command = [sys.executable, "-c", program, config, "demo-judge", str(path), str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == [passed, "" if passed else "flip rate is 0.3, needs at most 0.2"]
    word = "yes" if passed else "no"
    assert f"| flip rate | {100 * flip:.1f}% | at most 20.0% | {word} |" in table.read_text("utf-8")
