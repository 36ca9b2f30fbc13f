"""Which texts are nearly equal: MinHash signatures, bands to find candidates, and the signatures again to verify them.

A text is the set of its passages of SHINGLE words. A signature has PERMUTATIONS numbers; the share in which two of them
agree estimates the Jaccard similarity of the sets with a standard error of at most 0.045 (0.03 at a similarity of 0.9).
Candidates are texts that agree in one whole band of numbers; the width of a band is chosen so that a pair of texts at
the threshold is found in more than 99.9 % of all cases. Nothing here depends on the number of processes.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from components.adapters.words import BASE, Hashes, name_of, passages

PERMUTATIONS = 128
SHINGLE = 5
RECALL = 0.999
MOST_COMPARED = 1_000
_SEED = 5  # of the permutations; another one would give other signatures for no reason

Signatures = NDArray[np.uint32]


def shingles(normalised: str, text: str) -> Hashes:
    """Return the passages that stand for a text; one of fewer than SHINGLE words is a single passage."""
    found = passages(normalised, SHINGLE)
    return found if len(found) else np.array([name_of(normalised or text)], np.uint64)


def signatures(sets: Sequence[Hashes]) -> Signatures:
    """Return the signatures of sets of passages, one a row."""
    if not sets:
        return np.empty((0, PERMUTATIONS), np.uint32)
    ends = np.cumsum([0, *(len(one) for one in sets)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), ends, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), np.uint32)


@dataclass(frozen=True)
class Twins:
    """Which pairs repeat an earlier one: `of[i]` is the number of the pair that i repeats, or -1."""

    of: NDArray[np.intp]
    similarity: NDArray[np.float32]


def find_twins(
    answers: Signatures,
    prompts: Signatures,
    prompt_of: NDArray[np.intp],
    threshold: float,
    short: NDArray[np.bool_] | None = None,
) -> Twins:
    """Return for each pair the most similar earlier one that is no copy itself, where it reaches the threshold.

    Both must reach it, the similarity of the answers (a row of `answers` a pair) and that of the prompts (row
    `prompt_of[pair]` of `prompts`), and the lower counts: other answers to one long prompt are no copies. A pair whose
    answers are `short` is only compared with those on the very same prompt: "Yes" and "No" answer many questions.
    """
    within = clusters(prompts, threshold)[prompt_of]
    if short is not None:
        within = np.where(short, len(prompts) + prompt_of, within)
    of = np.full(len(answers), -1, np.intp)
    similarity = np.zeros(len(answers), np.float32)
    buckets: dict[int, list[int]] = defaultdict(list)
    for pair, keys in _suspects(answers, threshold, within):
        earlier = np.array(sorted({one for key in keys for one in buckets[key]}), np.intp)
        if len(earlier):
            alike = np.minimum(
                _similarity(answers, pair, earlier), _similarity(prompts, int(prompt_of[pair]), prompt_of[earlier])
            )
            best = int(alike.argmax())
            if alike[best] >= threshold:
                of[pair], similarity[pair] = earlier[best], alike[best]
                continue
        for key in keys:
            buckets[key].append(pair)
    return Twins(of, similarity)


def clusters(rows: Signatures, threshold: float, openings: NDArray[np.uint64] | None = None) -> NDArray[np.intp]:
    """Return for each text the first one of its cluster: all that similarity reaches from text to text.

    Texts with the same number in `openings` are in one cluster too. At a threshold of 1 only these are.
    """
    left: list[NDArray[np.intp]] = []
    right: list[NDArray[np.intp]] = []
    bands = _shared_bands(rows, threshold, np.zeros(len(rows), np.intp)) if threshold < 1 else ()
    for members in bands:
        for one, others in _joined(rows, members, threshold):
            left.append(np.full(len(others), one, np.intp))
            right.append(others)
    if openings is not None:
        _, first_with, same = np.unique(openings, return_index=True, return_inverse=True)
        left.append(first_with[same])
        right.append(np.arange(len(rows)))
    if not left:
        return np.arange(len(rows))
    ends = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(ends[0]), np.bool_), ends), shape=(len(rows), len(rows)))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return np.asarray(first[labels], np.intp)


def near_any(rows: NDArray[np.uint8], known: NDArray[np.uint8], threshold: float) -> NDArray[np.bool_]:
    """Return which of the texts reach the threshold with any of the known ones, by the low bytes of signatures.

    Only the texts are held against the known ones, so this takes seconds for a few thousand against a million. Of a
    band that a template puts into very many known texts, MOST_COMPARED are looked at; those outside it tell them apart.
    """
    near = np.zeros(len(rows), np.bool_)
    if threshold >= 1 or not len(known):
        return near
    width = band_width(threshold)
    for band in range(PERMUTATIONS // width):
        left = np.flatnonzero(~near)
        columns = slice(band * width, (band + 1) * width)
        keys, theirs = _keys(rows[left, columns]), _keys(known[:, columns])
        candidates = np.flatnonzero(np.isin(theirs, keys))
        order = candidates[np.argsort(theirs[candidates], kind="stable")]
        starts, ends = (np.searchsorted(theirs[order], keys, side) for side in ("left", "right"))
        for row, start, end in zip(left.tolist(), starts.tolist(), ends.tolist(), strict=True):
            if start < end:
                among = order[start : end : -(-(end - start) // MOST_COMPARED)]
                alike = (known[among] == rows[row]).mean(axis=1, dtype=np.float32)
                near[row] = bool((alike >= threshold).any())
    return near


def _keys(columns: NDArray[np.uint8]) -> NDArray[np.uint64]:
    keys = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        keys = (keys ^ column) * np.uint64(BASE)
        keys ^= keys >> np.uint64(32)
    return keys


def band_width(threshold: float) -> int:
    """Return the numbers in a band: the most with which a pair at the threshold is found with RECALL."""
    widths = [
        width for width in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**width) ** (PERMUTATIONS // width) >= RECALL
    ]
    return max(widths, default=1)


def _similarity(rows: Signatures, row: int, others: NDArray[np.intp]) -> NDArray[np.float32]:
    return np.asarray((rows[others] == rows[row]).mean(axis=1, dtype=np.float32))


def _joined(rows: Signatures, members: NDArray[np.intp], threshold: float) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield (text, those that it brings into its cluster), each text of a shared band being brought in once."""
    while len(members):
        reached, members = [int(members[0])], members[1:]
        while reached and len(members):
            one = reached.pop()
            alike = _similarity(rows, one, members) >= threshold
            if alike.any():
                yield one, members[alike]
                reached += members[alike].tolist()
                members = members[~alike]


def _shared_bands(rows: Signatures, threshold: float, within: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Yield, ascending, the texts that agree in a band and in `within`, for each band that at least two share."""
    width = band_width(threshold)
    for band in range(PERMUTATIONS // width):
        keys = within.astype(np.uint64)  # texts that meet in a key by chance are verified away
        for column in rows[:, band * width : (band + 1) * width].T:
            keys = (keys ^ column) * np.uint64(BASE)
            keys ^= keys >> np.uint64(32)
        order = np.argsort(keys, kind="stable")
        bounds = np.concatenate(([0], np.flatnonzero(np.diff(keys[order])) + 1, [len(rows)]))
        for group in np.flatnonzero(np.diff(bounds) > 1):
            yield order[bounds[group] : bounds[group + 1]]


def _suspects(rows: Signatures, threshold: float, within: NDArray[np.intp]) -> Iterator[tuple[int, list[int]]]:
    """Yield (text, its shared bands by number) in the order of the texts; one that shares none is no suspect."""
    shared: dict[int, list[int]] = defaultdict(list)
    for key, members in enumerate(_shared_bands(rows, threshold, within)):
        for member in members.tolist():
            shared[member].append(key)
    yield from sorted(shared.items())
