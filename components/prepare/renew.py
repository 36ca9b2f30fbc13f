"""Which pairs a run takes where an earlier one has learned already: the new, some of the old, and what is held out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.prepare.accepted import Accepted
from components.prepare.before import FROZEN, NEW, OLD, Before, prompt_names
from components.prepare.config import Config
from components.prepare.near import near_any
from components.prepare.sieve import Sieve
from components.prepare.split import PARTS, Split, draw

HELDOUT, RL = PARTS.index("heldout"), PARTS.index("rl")


@dataclass(frozen=True)
class Renewal:
    """The part of each accepted pair (a place in PARTS) and whether it may be taken."""

    parts: NDArray[np.intp]
    kept: NDArray[np.bool_]


def renew(
    parts: NDArray[np.intp],
    kept: NDArray[np.bool_],
    first: NDArray[np.intp],
    sieve: Sieve,
    before: Before,
    settings: Config,
) -> Renewal:
    """Change what the hash says to what the earlier run has fixed; `first` names the cluster of each pair.

    A cluster with a held-out prompt is held out. One with a prompt that was trained on is not, whatever the hash says
    now. A new pair in a cluster with both is dropped, as it is fit for neither.
    """
    accepted = sieve.accepted
    origin = np.frombuffer(bytes(accepted.origins), np.uint8)
    frozen, old = origin == FROZEN, origin == OLD
    learned = _learned(accepted, origin == NEW, before, settings)
    trained = (old | learned[np.array(accepted.prompts, np.intp)]) & ~frozen
    by_frozen, by_trained = np.isin(first, first[frozen]), np.isin(first, first[trained])
    parts = np.where(by_frozen, HELDOUT, np.where(by_trained & (parts == HELDOUT), RL, parts))
    for number in np.flatnonzero(kept & (origin == NEW) & by_frozen & by_trained).tolist():
        sieve.drop_between(number)
    return Renewal(parts, frozen | (kept & ~(by_frozen & trained) & (~old | _drawn(accepted, old, before, settings))))


def _learned(accepted: Accepted, new: NDArray[np.bool_], before: Before, settings: Config) -> NDArray[np.bool_]:
    """Return which of the prompts, by number, any run so far has trained on, or on one that belongs into its cluster.

    Those that are not at hand any more are known by `trained.bin` alone; only new pairs' prompts are held against it.
    """
    openings, known = np.array(accepted.openings, np.uint64), before.trained
    learned = np.isin(prompt_names(accepted), known["prompt"]) | np.isin(openings, known["opening"])
    asked = np.unique(np.array(accepted.prompts, np.intp)[new])
    asked = asked[~learned[asked]]
    rows = (accepted.prompt_rows[asked] & 0xFF).astype(np.uint8)
    learned[asked] = near_any(rows, known["signature"], settings.same_prompt)
    return learned


def _drawn(accepted: Accepted, old: NDArray[np.bool_], before: Before, settings: Config) -> NDArray[np.bool_]:
    """Return which of the old pairs are trained on again; each artifact that a run starts from draws others."""
    drawn = np.zeros(len(accepted), np.bool_)
    for number in np.flatnonzero(old).tolist():
        name = f"{before.manifest.digest}\0{accepted.contents[number].hex()}"
        drawn[number] = draw(settings.seed, "replay", name) < settings.replay_share
    return drawn


def describe_renewal(split: Split, sieve: Sieve, before: Before) -> dict[str, Any]:
    """Return what the manifest says of new and old: pairs by part, and the rows that were new."""
    origin = np.frombuffer(bytes(sieve.accepted.origins), np.uint8)
    by_part = {part: origin[split.chosen[part]] for part in PARTS}
    return {
        "uri": before.manifest.uri,
        "digest": before.manifest.digest,
        "new": {part: int((found == NEW).sum()) for part, found in by_part.items()},
        "replayed": {part: int((by_part[part] == OLD).sum()) for part in ("distil", "rl")},
        "frozen": int((origin == FROZEN).sum()),
        "new_overlap": dict(sorted(sieve.new_overlap.items())),
        "learned_overlap": dict(sorted(sieve.learned_overlap.items())),
        "relabelled": {part: sieve.relabelled[part] for part in ("heldout", "other")},
    }


def nothing_new(split: Split, sieve: Sieve, settings: Config) -> str:
    """Return why this run has nothing to learn, or nothing if it has."""
    origin = np.frombuffer(bytes(sieve.accepted.origins), np.uint8)
    new = sum(int((origin[split.chosen[part]] == NEW).sum()) for part in ("distil", "rl"))
    if new < settings.min_new_pairs:
        return f"{new} new pairs to train on, min_new_pairs is {settings.min_new_pairs}"
    empty = [part for part in ("distil", "rl") if not len(split.chosen[part])]
    if empty and not (empty == ["distil"] and settings.distil_share == 0):
        return f"of {new} new pairs to train on, none falls into {' or '.join(empty)}"
    return ""
