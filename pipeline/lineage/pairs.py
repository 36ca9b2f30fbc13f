"""The pairs of a version's data: which came in, which went out, which changed."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.adapters.storage import Storage
from components.core.errors import ReasrmError
from components.core.manifest import Manifest
from components.core.records import BadRecord, read_rows, to_line
from components.core.schema import PreferencePair
from pipeline.lineage.difference import Move, PartChange

PARTS = ("distil", "rl", "heldout")
HELDOUT = "heldout"


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a pair is, a hash of what it says in the source's order, and its cluster."""

    part: str
    content: bytes
    cluster: str


def read_pairs(manifest: Manifest, storage: Storage, scratch: Path) -> dict[str, Kept]:
    """Return all pairs of a prepare artifact by id. Raises Damaged or ReasrmError if they cannot be read."""
    files = [f"{part}.jsonl" for part in PARTS if any(entry.path == f"{part}.jsonl" for entry in manifest.files)]
    folder = storage.fetch(manifest, scratch / manifest.digest, only=files)
    return {
        pair.id: Kept(name.removesuffix(".jsonl"), _content(pair), pair.cluster or pair.id)
        for name in files
        for pair in _pairs(folder / name)
    }


def _pairs(path: Path) -> Iterator[PreferencePair]:
    with path.open("rb") as file:
        for row in read_rows(file, path.name):
            if isinstance(row, BadRecord):
                raise ReasrmError(f"{row.place}: {row.reason}; run reasrm lineage --verify on it")
            yield PreferencePair.model_validate(row[1])


def _content(pair: PreferencePair) -> bytes:
    """Hash what a judge sees and must answer; the cluster and the order of the answers depend on the other pairs."""
    told = pair.shown(False).model_dump(mode="json", include={"prompt", "response_a", "response_b", "label"})
    return hashlib.sha256(to_line(told)).digest()[:16]


def compare_data(old: Mapping[str, Kept], new: Mapping[str, Kept]) -> tuple[tuple[PartChange, ...], tuple[Move, ...]]:
    """Return for each part what came in and went out, and the pairs that both have in different parts."""
    moved: dict[tuple[str, str], list[str]] = {}
    for name, kept in old.items():
        if name in new and new[name].part != kept.part:
            moved.setdefault((kept.part, new[name].part), []).append(name)
    return (
        tuple(
            PartChange(
                part=part,
                num_old=sum(kept.part == part for kept in old.values()),
                num_new=sum(kept.part == part for kept in new.values()),
                added=tuple(sorted(name for name, kept in new.items() if kept.part == part and name not in old)),
                removed=tuple(sorted(name for name, kept in old.items() if kept.part == part and name not in new)),
                changed=tuple(
                    sorted(
                        name
                        for name, kept in new.items()
                        if kept.part == part and name in old and old[name].content != kept.content
                    )
                ),
            )
            for part in PARTS
        ),
        tuple(Move(*ends, tuple(sorted(ids))) for ends, ids in sorted(moved.items())),
    )
