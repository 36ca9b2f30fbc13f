"""Two versions on the held-out pairs that both have, from the verdicts that their benchmarks kept."""

import gzip
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from components.adapters.storage import Storage
from components.core.errors import ReasrmError
from components.core.manifest import Manifest
from components.core.records import BadRecord, read_rows
from components.core.schema import Judgment
from components.core.significance import difference_interval, sign_test
from pipeline.lineage.difference import Paired
from pipeline.lineage.pairs import HELDOUT, Kept

CONFIDENCE, NUM_RESAMPLES, SEED = 0.95, 2000, 0


def read_judge(manifest: Manifest, judge: str, storage: Storage, scratch: Path) -> dict[str, bool]:
    """Return for each held-out pair whether the judge named the better answer in both orders.

    Several samples of an order vote, and a tie is not right. Raises ReasrmError where the verdicts cannot be read; a
    benchmark that kept none of this judge gives none.
    """
    name = f"verdicts/{judge}.jsonl.gz"
    if all(entry.path != name for entry in manifest.files):
        return {}
    votes: dict[str, dict[bool, int]] = defaultdict(lambda: {False: 0, True: 0})
    with gzip.open(storage.fetch(manifest, scratch / manifest.digest, only=[name]) / name) as file:
        for row in read_rows(file, name):
            if isinstance(row, BadRecord):
                raise ReasrmError(f"{manifest.uri}/{row.place}: {row.reason}")
            judgment = Judgment.model_validate(row[1])
            if judgment.suite == HELDOUT:
                votes[judgment.pair_id][judgment.swapped] += {True: 1, False: -1, None: 0}[judgment.right]
    return {pair: all(count > 0 for count in orders.values()) for pair, orders in votes.items()}


def compare_judges(
    old: Mapping[str, Kept], new: Mapping[str, Kept], by_old: Mapping[str, bool], by_new: Mapping[str, bool]
) -> Paired | None:
    """Compare on the pairs that both versions hold out with the same content; None if there are none."""
    common = sorted(
        name
        for name in by_old.keys() & by_new.keys() & old.keys() & new.keys()
        if old[name].part == new[name].part == HELDOUT and old[name].content == new[name].content
    )
    if not common:
        return None
    apart: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = defaultdict(int)
    for name in common:
        cluster = new[name].cluster
        apart[cluster] += by_new[name] - by_old[name]
        sizes[cluster] += 1
    only_new, only_old = (sum(value * sign > 0 for value in apart.values()) for sign in (1, -1))
    shares = [sum(side[name] for name in common) / len(common) for side in (by_old, by_new)]
    return Paired(
        num_pairs=len(common),
        num_clusters=len(apart),
        old=round(shares[0], 6),
        new=round(shares[1], 6),
        difference=round(shares[1] - shares[0], 6),
        interval=difference_interval(
            list(apart.values()),
            [sizes[name] for name in apart],
            confidence=CONFIDENCE,
            num_resamples=NUM_RESAMPLES,
            seed=SEED,
        ),
        only_new=only_new,
        only_old=only_old,
        p_value=sign_test(only_new, only_old),
    )
