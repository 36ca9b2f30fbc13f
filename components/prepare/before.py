"""What was learned before: the pairs of an earlier `prepare`, and by content all that runs up to it have seen."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest
from components.core.records import read_rows
from components.core.schema import PreferencePair
from components.core.sources import SourceSettings
from components.prepare.config import Config
from components.prepare.parts import Tally
from components.prepare.sources import find_before

if TYPE_CHECKING:
    from components.adapters.stage import Output

logger = logging.getLogger(__name__)

SEEN_FILE, SEEN_BYTES = "seen.bin", 16
TRAINED_FILE, TRAINED_BYTES = "trained.bin", 8
Origin = Literal[0, 1, 2]
NEW: Origin = 0
OLD: Origin = 1
FROZEN: Origin = 2
"""Where a pair comes from: new data; seen before; held out before, which it stays."""


@dataclass(frozen=True)
class Before:
    """An earlier artifact of this stage, its files at hand.

    `seen` are the digests of prompts and answers of all rows that it and those before it have seen; `trained` are those
    of the prompts that went into `distil` or `rl`. Both are empty if a version wrote it that knew neither.
    """

    manifest: Manifest
    folder: Path
    seen: frozenset[bytes]
    trained: frozenset[bytes]

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
    if manifest is None:
        if settings.since:
            logger.info("since: there is no %s yet, so all data is new", settings.since)
        return None
    if {"uri": manifest.uri, "sha256": manifest.digest} not in list(output.sources):
        raise Transient(f"{settings.since} has just become another version; run this again")
    names = [entry.path for entry in manifest.files]
    wanted = [f"{part}.jsonl" for part in ("heldout", "distil", "rl")]
    known = [name for name in (SEEN_FILE, TRAINED_FILE) if name in names]
    folder = output.storage.fetch(manifest, output.workdir / "sources" / "before", only=[*wanted, *known])
    if SEEN_FILE not in names:
        logger.warning("%s has no %s: only the pairs in its parts count as seen before", manifest.uri, SEEN_FILE)
    seen = _read(folder / SEEN_FILE, SEEN_BYTES)
    logger.info("since %s (%s): %s pairs were seen before", settings.since, manifest.uri, len(seen))
    return Before(manifest, folder, seen, _read(folder / TRAINED_FILE, TRAINED_BYTES))


def write_digests(path: Path, digests: Iterable[bytes]) -> None:
    """Write digests of one length, each once, sorted."""
    path.write_bytes(b"".join(sorted(set(digests))))


def _read(path: Path, width: int) -> frozenset[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return frozenset(data[at : at + width] for at in range(0, len(data), width))
