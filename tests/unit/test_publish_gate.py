import math
import subprocess
import sys

import pytest

from components.publish.config import Config
from components.publish.gate import decide

CONFIG = Config(model_name="demo-judge", min_accuracy=0.6, max_invalid_rate=0.2, min_consistency=0.5)


def scored(accuracy=0.75, valid=0.95, consistency=0.7):
    return {
        "accuracy": {"value": accuracy},
        "valid_rate": {"value": valid},
        "position_consistency": {"value": consistency},
    }


@pytest.mark.parametrize(
    ("accuracy", "valid", "consistency", "failed"),
    [
        (0.6, 0.8, 0.5, []),  # exactly on every line
        (1.0, 1.0, 1.0, []),
        (0.599999, 0.8, 0.5, ["accuracy"]),
        (0.6, 0.799999, 0.5, ["invalid rate"]),
        (0.6, 0.8, 0.499999, ["position consistency"]),
        (0.0, 0.0, 0.0, ["accuracy", "invalid rate", "position consistency"]),
    ],
)
def test_gate_boundaries(accuracy, valid, consistency, failed):
    decision = decide({"grpo": scored(accuracy, valid, consistency)}, CONFIG)
    assert [check.name for check in decision.checks if not check.passed] == failed
    assert decision.passed == (not failed)
    assert [reason.split(" is ")[0] for reason in decision.reasons] == failed


@pytest.mark.parametrize("invalid", [0.01, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.35])
def test_gate_is_not_moved_by_float_rounding(invalid):
    config = CONFIG.model_copy(update={"max_invalid_rate": invalid})
    assert decide({"grpo": scored(valid=round(1 - invalid, 6))}, config).passed


@pytest.mark.parametrize("name", ["accuracy", "valid_rate", "position_consistency"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "gives no"),
        ({}, "gives no"),
        ({"value": None}, "gives no"),
        ("0.9", "gives no"),
        ({"value": "0.9"}, "not a number"),
        ({"value": True}, "not a number"),
        ({"value": math.nan}, "not a number"),
        ({"value": math.inf}, "not a number"),
        ({"value": 1.2}, "not between 0 and 1"),
        ({"value": -0.1}, "not between 0 and 1"),
    ],
)
def test_gate_never_passes_without_a_score(name, value, reason):
    decision = decide({"grpo": scored(1.0, 1.0, 1.0) | {name: value}}, CONFIG)
    assert not decision.passed
    assert len(decision.reasons) == 1
    assert reason in decision.reasons[0]
    assert name in decision.reasons[0]
    assert [check.value for check in decision.checks].count(None) == 1


@pytest.mark.parametrize("scores", [{}, {"sft": scored(1.0, 1.0, 1.0)}, {"grpo": None}, {"grpo": {}}, {"grpo": 1.0}])
def test_gate_fails_when_the_judge_was_not_scored(scores):
    decision = decide(scores, CONFIG)
    assert not decision.passed
    assert "no scores of 'grpo'" in decision.reasons[0]
    assert not any(check.passed for check in decision.checks)


def test_gate_holds_the_configured_judge_against_the_thresholds():
    scores = {"sft": scored(accuracy=0.9), "grpo": scored(accuracy=0.1)}
    assert not decide(scores, CONFIG).passed
    assert decide(scores, CONFIG.model_copy(update={"judge": "sft"})).passed


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
        {"model_name": ""},
        {"alias": "latest"},
        {"alias": "v3"},
        {"alias": "a b"},
        {"judge": "base"},
        {"min_accuracy": 1.1},
        {"surprise": 1},
    ],
)
def test_config_refuses_what_the_registry_would(wrong):
    with pytest.raises(ValueError):
        Config.model_validate({"model_name": "demo"} | wrong)
