"""What the manifest says of the pairs: what was read, what was left out and why, what the parts are like."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.prepare.parts import Tally
from components.prepare.sieve import Counts, Sieve
from components.prepare.split import PARTS, Part, Split

MOST_LISTED = 30
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def describe(
    sources: Sequence[Mapping[str, Any]],
    benchmarks: Mapping[str, Mapping[str, Any]],
    sieve: Sieve,
    split: Split,
    tallies: Mapping[Part, Tally],
) -> dict[str, Any]:
    """Return the statistics of a finished split; fractions are rounded to four digits."""
    counts = {part: len(split.chosen[part]) for part in PARTS}
    num_pairs = sum(counts.values())
    return {
        **_of_sources(sources, benchmarks, sieve, split),
        "pairs": counts,
        "unused": {part: split.fallen[part] - counts[part] for part in PARTS},
        "clusters": _clusters(split),
        "escaped_marks": sum(tally.escaped_marks for tally in tallies.values()),
        "label_a_share": {part: round(tallies[part].label_a / max(1, tallies[part].rows), 4) for part in PARTS},
        "categories": {part: _listed(tallies[part].categories) for part in PARTS},
        "longer_is_better": round(tallies["heldout"].longer / tallies["heldout"].pairs, 4),
        "picks_longer": round(sum(tally.longer for tally in tallies.values()) / num_pairs, 4),
        "difficulty": {part: found for part in PARTS if (found := _quantiles(tallies[part].difficulties))},
    }


def describe_rows(
    sources: Sequence[Mapping[str, Any]], benchmarks: Mapping[str, Mapping[str, Any]], sieve: Sieve
) -> dict[str, Any]:
    """Return the statistics of what was read, where no split was written."""
    return _of_sources(sources, benchmarks, sieve, None)


def _of_sources(
    sources: Sequence[Mapping[str, Any]],
    benchmarks: Mapping[str, Mapping[str, Any]],
    sieve: Sieve,
    split: Split | None,
) -> dict[str, Any]:
    return {
        "sources": [
            {**about, **_of_rows(counted), **({"pairs": _pairs_of(number, sieve, split)} if split else {})}
            for number, (about, counted) in enumerate(zip(sources, sieve.counts, strict=True))
        ],
        "benchmarks": {
            name: {**about, "dropped": {kind: n for (one, kind), n in sorted(sieve.overlap.items()) if one == name}}
            for name, about in benchmarks.items()
        },
        **_of_rows(sieve.total),
    }


def _of_rows(counts: Counts) -> dict[str, Any]:
    return {
        "rows": counts.rows,
        "bad": _listed(counts.bad),
        "dropped": _listed(counts.dropped),
        "overlap": _listed(counts.overlap),
    }


def _pairs_of(source: int, sieve: Sieve, split: Split) -> dict[str, int]:
    of = np.array(sieve.accepted.sources)
    return {part: int((of[split.chosen[part]] == source).sum()) for part in PARTS}


def _clusters(split: Split) -> dict[str, int]:
    """Return the number of prompt clusters among the chosen pairs, and the pairs of the largest."""
    chosen = np.concatenate([split.chosen[part] for part in PARTS])
    _, sizes = np.unique(split.first_of_cluster[chosen], return_counts=True)
    return {"number": len(sizes), "largest": int(sizes.max())}


def _quantiles(difficulties: Sequence[float]) -> dict[str, float]:
    if not difficulties:
        return {}
    found = np.quantile(np.array(difficulties), QUANTILES)
    return {"pairs": len(difficulties)} | {
        f"p{100 * share:.0f}": round(float(value), 4) for share, value in zip(QUANTILES, found, strict=True)
    }


def _listed(counter: Counter[str]) -> dict[str, int]:
    """Return the largest counts by name, what is beyond MOST_LISTED summed up."""
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[MOST_LISTED:])
    return dict(ordered[:MOST_LISTED]) | ({"(rest)": rest} if rest else {})
