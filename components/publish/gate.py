"""The gate: is a judge good enough to get the alias? Pure, so that the DAG can ask before `publish` does."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from components.core.schema import Record
from components.publish.config import Config

DIGITS = 9  # 1 - 0.95 is 0.05000000000000004: a judge exactly on the line must pass.


class Check(Record):
    """One number against its threshold; `value` is None where the benchmark has none."""

    name: str
    value: float | None
    bound: Literal["at least", "at most"]
    threshold: float
    passed: bool

    @property
    def text(self) -> str:
        """Say the check in words."""
        measured = "has no value" if self.value is None else f"is {self.value:.4g}"
        return f"{self.name} {measured}, needs {self.bound} {self.threshold:.4g}"


class Decision(Record):
    """Whether a judge passes, each check, and the reasons against it (empty exactly if it passed)."""

    judge: str
    passed: bool
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]


def decide(scores: Mapping[str, Any], config: Config) -> Decision:
    """Hold a judge's scores (`statistics["scores"]` of the benchmark) against the thresholds.

    A score that is missing, not a number or not a share is a failed check with its reason, never a pass.
    """
    found = scores.get(config.judge)
    judge: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    outcomes = (
        _check("accuracy", *_share(judge, "accuracy"), "at least", config.min_accuracy),
        _check("invalid rate", *_invalid_rate(judge), "at most", config.max_invalid_rate),
        _check("position consistency", *_share(judge, "position_consistency"), "at least", config.min_consistency),
    )
    checks = tuple(check for check, _ in outcomes)
    reasons = tuple(reason for check, reason in outcomes if not check.passed)
    if not judge:
        reasons = (f"the benchmark has no scores of {config.judge!r}, only of {sorted(scores)}", *reasons)
    return Decision(judge=config.judge, passed=not reasons, checks=checks, reasons=reasons)


def _check(
    name: str, value: float | None, fault: str, bound: Literal["at least", "at most"], threshold: float
) -> tuple[Check, str]:
    passed = value is not None and (value >= threshold if bound == "at least" else value <= threshold)
    check = Check(name=name, value=value, bound=bound, threshold=threshold, passed=passed)
    return check, f"{check.text}: {fault}" if fault else check.text


def _share(judge: Mapping[str, Any], name: str) -> tuple[float | None, str]:
    score = judge.get(name)
    value = score.get("value") if isinstance(score, Mapping) else None
    if value is None:
        return None, f"the benchmark gives no {name}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"the benchmark's {name} is {value!r}, not a number"
    if not 0 <= value <= 1:
        return None, f"the benchmark's {name} is {value!r}, not between 0 and 1"
    return round(float(value), DIGITS), ""


def _invalid_rate(judge: Mapping[str, Any]) -> tuple[float | None, str]:
    valid, fault = _share(judge, "valid_rate")
    return (None if valid is None else round(1 - valid, DIGITS)), fault
