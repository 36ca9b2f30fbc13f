"""How a run's models compare with the champion on the held-out pairs, for the gate."""

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "none"
"""Stands for the champion's digest where no version has the alias yet."""


def against_champion(
    champion: str, sources: Sequence[Mapping[str, Any]], digests: Mapping[str, str], suite: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return which champion was judged and the paired difference of each other judge to it; None without a champion.

    `champion` is `name@alias` of the settings, `digests` are those of our own models by judge, and `suite` is the
    held-out pairs' part of `scores.json`. `digest` is "none" where no version had the alias; `judged_as` is the judge
    that is the champion. Differences are of the suite's score under our protocol: other judge minus champion.
    """
    if not champion:
        return None
    digest = next((str(source["sha256"]) for source in sources if source["uri"] == champion), NONE)
    judged_as = next((name for name, one in digests.items() if one == digest), None)
    differences = {}
    for row in suite["comparisons"]:
        if judged_as not in (row["first"], row["second"]):
            continue
        other = row["second"] if row["first"] == judged_as else row["first"]
        rate = row["difference"]
        if row["first"] == judged_as:
            rate = {"value": 0.0 - rate["value"], "low": 0.0 - rate["high"], "high": 0.0 - rate["low"]}
        differences[other] = {part: rate[part] for part in ("value", "low", "high")} | {"p_value": row["p_value"]}
    return {"name": champion, "digest": digest, "judged_as": judged_as, "differences": differences}
