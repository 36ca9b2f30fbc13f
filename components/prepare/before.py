"""What was learned before: the pairs of an earlier `prepare`, and by content all that runs up to it have seen."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest
from components.core.records import read_rows
from components.core.schema import PreferencePair
from components.core.sources import SourceSettings
from components.prepare.accepted import Accepted
from components.prepare.config import Config
from components.prepare.near import PERMUTATIONS
from components.prepare.parts import Tally
from components.prepare.sources import find_before

if TYPE_CHECKING:
    from components.adapters.stage import Output

logger = logging.getLogger(__name__)

SEEN_FILE, SEEN_BYTES = "seen.bin", 16
"""A row's digest in 15 bytes, and in one whether the lesser answer was the better one, or a mark."""
CONTRADICTED, NO_LABEL = 2, 3
"""Marks: the row came with both labels; it has none, as it was bad or on a benchmark's question."""
TRAINED_FILE = "trained.bin"
TRAINED = np.dtype([("prompt", "<u8"), ("opening", "<u8"), ("signature", "u1", PERMUTATIONS)])
"""A prompt that was trained on: what it is compared by, with the low bytes of its signature, which tell 255 of 256
unlike numbers apart; 144 bytes."""
Origin = Literal[0, 1, 2]
NEW: Origin = 0
OLD: Origin = 1
FROZEN: Origin = 2
"""Where a pair comes from: new data; seen before; held out before, which it stays."""


@dataclass(frozen=True)
class Before:
    """An earlier artifact of this stage, its files at hand.

    `seen` has the labels by the digests of all rows that it and those before it have seen; `trained` are the prompts
    that any of them put into `distil` or `rl`. Both are empty if a version wrote it that knew neither.
    """

    manifest: Manifest
    folder: Path
    seen: Mapping[bytes, int]
    trained: NDArray[np.void]

    @property
    def sources(self) -> tuple[SourceSettings, SourceSettings]:
        """What stands in front of a run's own sources: the held-out pairs, and those trained on."""
        return SourceSettings(uri=f"{self.manifest.uri}/heldout.jsonl"), SourceSettings(uri=f"{self.manifest.uri}/")

    def rows(self, number: int) -> Iterator[tuple[str, Any]]:
        """Yield place and row of the pairs of one of `sources`, each once and in its source's order."""
        for name in ("heldout",) if number == 0 else ("distil", "rl"):
            with (self.folder / f"{name}.jsonl").open("rb") as file:
                for item in read_rows(file, f"{self.manifest.uri}/{name}.jsonl"):
                    if not isinstance(item, tuple):
                        raise InvalidInput(f"{item.place}: {item.reason}; name another artifact in since")
                    place, row = item
                    if number or not row["swapped"]:
                        yield place, row

    def heldout(self) -> tuple[bytes, Tally]:
        """Return the held-out file as it is, and the counts of its pairs."""
        tally = Tally()
        for _, row in self.rows(0):
            pair = PreferencePair.model_validate(row)
            tally.count((pair, pair.shown(swapped=True)))
        return (self.folder / "heldout.jsonl").read_bytes(), tally


def open_before(settings: Config, output: "Output") -> Before | None:
    """Fetch what was learned before. Raises Transient if it is another artifact than the run key stands for."""
    manifest = find_before(settings, output.storage)
    named = list(output.sources)[len(settings.sources) + len(settings.benchmarks) :]
    if named != ([{"uri": manifest.uri, "sha256": manifest.digest}] if manifest else []):
        raise Transient(f"{settings.since} has just become another version, or nobody; run this again")
    if manifest is None:
        if settings.since:
            logger.info("since: there is no %s yet, so all data is new", settings.since)
        return None
    names = [entry.path for entry in manifest.files]
    wanted = [f"{part}.jsonl" for part in ("heldout", "distil", "rl")]
    known = [name for name in (SEEN_FILE, TRAINED_FILE) if name in names]
    folder = output.storage.fetch(manifest, output.workdir / "sources" / "before", only=[*wanted, *known])
    seen, trained = _read_seen(folder / SEEN_FILE), _bytes_of(folder / TRAINED_FILE)
    if SEEN_FILE not in names or len(trained) % TRAINED.itemsize or any(label > NO_LABEL for label in seen.values()):
        logger.warning("%s has no %s of today: only the pairs in its parts count as seen", manifest.uri, SEEN_FILE)
        seen, trained = {}, b""
    logger.info("since %s (%s): %s pairs were seen before", settings.since, manifest.uri, len(seen))
    return Before(manifest, folder, seen, np.frombuffer(trained, TRAINED))


def write_seen(path: Path, found: Mapping[bytes, int], before: Before | None) -> None:
    """Write the rows that a run has seen with those seen before; what was contradicted stays so."""
    seen = dict(before.seen) if before else {}
    for row, label in found.items():
        if row not in seen or (seen[row] != CONTRADICTED and label != NO_LABEL):
            seen[row] = label
    path.write_bytes(b"".join(row + bytes([label]) for row, label in sorted(seen.items())))


def write_trained(path: Path, accepted: Accepted, pairs: NDArray[np.intp], before: Before | None) -> None:
    """Write the prompts of these pairs with those trained on before, each once, in the order of their digests."""
    numbers = np.unique(np.array(accepted.prompts, np.intp)[pairs])
    found = np.zeros(len(numbers), TRAINED)
    found["prompt"] = prompt_names(accepted)[numbers]
    found["opening"] = np.array(accepted.openings, np.uint64)[numbers]
    found["signature"] = accepted.prompt_rows[numbers] & 0xFF
    every = np.concatenate([before.trained, found]) if before else found
    _, first = np.unique(every["prompt"], return_index=True)
    path.write_bytes(every[first].tobytes())


def prompt_names(accepted: Accepted) -> NDArray[np.uint64]:
    """Return the digests of the accepted prompts, by number."""
    return np.frombuffer(b"".join(accepted.prompt_names), "<u8")


def _read_seen(path: Path) -> dict[bytes, int]:
    data = _bytes_of(path)
    return {data[at : at + SEEN_BYTES - 1]: data[at + SEEN_BYTES - 1] for at in range(0, len(data), SEEN_BYTES)}


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
