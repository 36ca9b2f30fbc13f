"""Scores of a finished run as a table: each judge with its intervals, and judges against one another, paired."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.core.errors import ReasrmError
from pipeline.local import Run, serving

Entry = Mapping[str, Any]
"""A suite's part of `scores.json`."""
LEVEL = 0.05
"""A difference is called significant where its p-value is below this and its interval does not reach 0."""


def read_scores(run: Run, directory: Path) -> dict[str, Any]:
    """Return the `scores.json` of a run. Raises ReasrmError when its benchmark did not get that far."""
    manifest = run.manifest("benchmark")
    if manifest is None:
        raise ReasrmError(f"run {run.run_id} has no scores; its logs are in {run.folder / 'logs'}")
    with serving(directory.absolute()):
        from components.adapters.storage import Storage

        folder = Storage.from_env().fetch(manifest, run.folder / "scores", only=["scores.json"])
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return found


def percent(rate: Mapping[str, float]) -> str:
    """Return a rate with its interval in percent."""
    return f"{100 * rate['value']:5.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def compared(entry: Entry, better: str, worse: str) -> dict[str, Any]:
    """Return the paired comparison of two judges: difference of the score in points of one, and p-value."""
    for found in entry["comparisons"]:
        if (found["first"], found["second"]) == (better, worse):
            return {"difference": found["difference"], "p_value": found["p_value"]}
        if (found["first"], found["second"]) == (worse, better):
            swapped = {"value": "value", "low": "high", "high": "low"}
            difference = {name: 0.0 - found["difference"][other] for name, other in swapped.items()}
            return {"difference": difference, "p_value": found["p_value"]}
    raise ReasrmError(f"{better} and {worse} were not compared on {entry['title']}")


def is_better(entry: Entry, better: str, worse: str) -> bool:
    """Say whether one judge is better than another, significantly."""
    found = compared(entry, better, worse)
    return bool(found["p_value"] < LEVEL and found["difference"]["low"] > 0)


def table(entry: Entry, judges: Mapping[str, str], steps: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of Markdown: a row for each judge (name -> heading), and a line for each pair (better, worse)."""
    part = "strict_accuracy"
    lines = [
        f"**{entry['title']}**: {entry['num_items']} items, {entry['num_pairs']} pairs in both orders; percent (95 %)",
        "",
        "| judge | score | accuracy | strict accuracy | valid | consistent |",
        "|---|---|---|---|---|---|",
    ]
    for judge, heading in judges.items():
        measured, score = entry["measures"][judge], entry["scores"][judge]["ours"]["score"]
        cells = [score, *(measured[name] for name in ("accuracy", part, "valid_rate", "position_consistency"))]
        lines.append(f"| {heading} | {' | '.join(percent(cell) for cell in cells)} |")
    lines.append("")
    for better, worse in steps:
        found = compared(entry, better, worse)
        verdict = "significant" if is_better(entry, better, worse) else "not significant"
        lines.append(
            f"{judges[better]} over {judges[worse]}: {percent(found['difference'])} points, sign test "
            f"p = {found['p_value']:.4g}: {verdict}"
        )
    return [*lines, ""]
