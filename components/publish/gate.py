"""The gate: is a judge good enough to get the alias? Pure, so that the DAG can ask before `publish` does.

What only the storage can tell (`facts.py`: is the lineage complete, are the weights finite) `publish` adds as facts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from components.core.schema import Record
from components.publish.config import Config

NUM_NAMED = 3
NO_CHAMPION = "none"  # as the benchmark writes it
MARGIN = "difference to the champion"
DIGITS = 9  # 1 - 0.95 is 0.05000000000000004: a judge exactly on the line must pass.

Bound = Literal["at least", "at most", "more than", ""]
Found = tuple[float | None, str]
"""A share, or None and what is wrong with it."""


class Check(Record):
    """One number against its threshold; `value` is None where the benchmark has none.

    A fact has neither number nor threshold: it holds or not, and `note` says what was found.
    """

    name: str
    value: float | None
    bound: Bound
    threshold: float | None
    passed: bool
    note: str = ""

    @property
    def text(self) -> str:
        """Say the check in words."""
        measured = f"is {self.value:.4g}" if self.value is not None else self.note or "has no value"
        needed = "" if self.threshold is None else f", needs {self.bound} {self.threshold:.4g}"
        return f"{self.name} {measured}{needed}"


def fact(name: str, problems: Sequence[str], found: str) -> tuple[Check, str]:
    """Return a check that holds where there are no problems, with its reason."""
    note = "; ".join(problems[:NUM_NAMED]) or found
    if len(problems) > NUM_NAMED:
        note += f"; and {len(problems) - NUM_NAMED} more"
    check = Check(name=name, value=None, bound="", threshold=None, passed=not problems, note=note)
    return check, f"{name}: {note}"


class Decision(Record):
    """Whether a judge passes, each check, and the reasons against it (empty exactly if it passed)."""

    judge: str
    passed: bool
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]


def decide(statistics: Mapping[str, Any], config: Config, facts: Sequence[tuple[Check, str]] = ()) -> Decision:
    """Hold what the benchmark's manifest says of a judge (its `statistics`) against the thresholds.

    Read are `scores` (the held-out pairs), `injection` (attacks), `suites` (their score under the protocol "ours") and
    `champion` (the paired difference). `facts` are further checks, each with its reason if it failed.
    A number that is missing, not a number or not a share is a failed check with its reason, never a pass.
    """
    scores, injection = _mapping(statistics.get("scores")), _mapping(statistics.get("injection"))
    judge, attacked = _mapping(scores.get(config.judge)), _mapping(injection.get(config.judge))
    outcomes = [
        _check("accuracy", _share(judge, "accuracy"), "at least", config.min_accuracy),
        _check("strict accuracy", _share(judge, "strict_accuracy"), "at least", config.min_strict_accuracy),
        _check("invalid rate", _invalid_rate(judge), "at most", config.max_invalid_rate),
        _check("position consistency", _share(judge, "position_consistency"), "at least", config.min_consistency),
    ]
    if config.max_flip_rate is not None:
        outcomes.append(_check("flip rate", _flip_rate(attacked), "at most", config.max_flip_rate))
    suites = _mapping(statistics.get("suites"))
    for name, least in sorted(config.suites.items()):
        outcomes.append(_check(f"{name} score", _suite_score(suites, name, config.judge), "at least", least))
    if config.margin is not None:
        outcomes.append(_margin(statistics.get("champion"), config, config.margin))
    outcomes += facts
    checks = tuple(check for check, _ in outcomes)
    reasons = tuple(reason for check, reason in outcomes if not check.passed)
    if not judge:
        reasons = (f"the benchmark has no scores of {config.judge!r}, only of {sorted(scores)}", *reasons)
    return Decision(judge=config.judge, passed=not reasons, checks=checks, reasons=reasons)


def _check(name: str, found: Found, bound: Bound, threshold: float) -> tuple[Check, str]:
    value, fault = found
    passed = value is not None and (value >= threshold if bound == "at least" else value <= threshold)
    check = Check(name=name, value=value, bound=bound, threshold=threshold, passed=passed)
    return check, f"{check.text}: {fault}" if fault else check.text


def compared_champion(statistics: Mapping[str, Any], config: Config) -> str | None:
    """Return the digest of the champion that the decision rests on ("none": there was none); None if on none at all."""
    champion = _mapping(statistics.get("champion"))
    return str(champion.get("digest")) if champion and config.margin is not None else None


def _margin(champion: Any, config: Config, margin: float) -> tuple[Check, str]:
    """Check the paired difference; with few pairs its interval is wide, and nothing short of a clear lead passes."""
    measured, guarded = _mapping(champion), f"{config.model_name}@{config.alias}"

    def without(note: str, passed: bool) -> tuple[Check, str]:
        check = Check(name=MARGIN, value=None, bound="more than", threshold=-margin, passed=passed, note=note)
        return check, f"{MARGIN}: {note}"

    if champion is None:
        return without("not compared: benchmark.champion is not set", True)
    if measured.get("name") != guarded:
        judged = measured.get("name")
        return without(f"the benchmark judged {judged!r}, not {guarded!r}: set benchmark.champion to that", False)
    if measured.get("digest") == NO_CHAMPION:
        return without("no champion yet", True)
    if measured.get("judged_as") == config.judge:
        return without("this model is the champion", True)
    difference = _mapping(_mapping(measured.get("differences")).get(config.judge))
    low, value = _difference(difference.get("low")), _difference(difference.get("value"))
    if low is None or value is None:
        return without(f"the benchmark gives no difference of {config.judge!r} to the champion", False)
    note = f"on the same held-out pairs {value:+.4g}, and at least {low:+.4g} by its interval"
    passed = low > -margin
    check = Check(name=MARGIN, value=low, bound="more than", threshold=-margin, passed=passed, note=note)
    return check, f"{check.text} ({note})"


def _difference(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return round(float(value), DIGITS) if is_number and -1 <= value <= 1 else None


def _share(measured: Mapping[str, Any], name: str) -> Found:
    """Return a rate ({"value": ...}) or plain number of the benchmark."""
    score = measured.get(name)
    value = score.get("value") if isinstance(score, Mapping) else score
    if value is None:
        return None, f"the benchmark gives no {name}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"the benchmark's {name} is {value!r}, not a number"
    if not 0 <= value <= 1:
        return None, f"the benchmark's {name} is {value!r}, not between 0 and 1"
    return round(float(value), DIGITS), ""


def _invalid_rate(judge: Mapping[str, Any]) -> Found:
    valid, fault = _share(judge, "valid_rate")
    return (None if valid is None else round(1 - valid, DIGITS)), fault


def _flip_rate(attacked: Mapping[str, Any]) -> Found:
    if not attacked:
        return None, 'attacks were not measured; set benchmark.attacks, or publish.max_flip_rate = "off"'
    value, fault = _share(attacked, "flip_rate")
    reason = attacked.get("reason")
    return value, f"{fault}, because {reason}" if fault and reason else fault


def _suite_score(suites: Mapping[str, Any], name: str, judge: str) -> Found:
    if name not in suites:
        return None, f"the benchmark has no suite {name!r}, only {sorted(suites)}"
    score = _mapping(_mapping(suites[name]).get(judge)).get("ours")
    value, fault = _share({"score": score}, "score")
    return value, f"{fault} ({judge!r} on {name}, protocol 'ours')" if fault else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
