"""The small JSON file that makes a set of bytes an artifact.

An output exists exactly if its manifest does: the manifest is written last and never changed. It holds no times and
no durations, so doing the same work twice gives the same bytes, and two writers can tell whether they agree.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from components.core.schema import Record

STAGES = ("prepare", "traces", "filter", "sft", "grpo", "benchmark", "publish")
"""The stages that make artifacts, in the order of the work."""
MANIFEST_NAME = "manifest.json"


class FileEntry(Record):
    """One file of an artifact; `path` is relative to the artifact's uri, `size` in bytes, `sha256` in hex."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Parent(Record):
    """An artifact that this one was made from, with the digest of the manifest that was read."""

    uri: str
    digest: str


class Manifest(Record):
    """What an artifact is, where its bytes are, and from what it was made."""

    format: int = 1
    kind: str
    stage: str
    uri: str
    run_key: str
    code_version: str
    config: dict[str, JsonValue]
    files: tuple[FileEntry, ...]
    parents: dict[str, Parent] = {}
    statistics: dict[str, JsonValue] = {}

    def to_bytes(self) -> bytes:
        """Return the canonical JSON form: sorted keys, so that equal manifests are equal bytes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Parse a manifest. Raises ValueError (pydantic's ValidationError is one) when it is not one."""
        return cls.model_validate_json(data)

    @property
    def digest(self) -> str:
        """sha256 over the canonical form, in hex; what children record of their parents."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def entry(self, path: str) -> FileEntry:
        """Return the entry of one file. Raises KeyError naming the files that there are."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise KeyError(f"{path!r} is not in the manifest of {self.uri}; it has {[e.path for e in self.files]}")


def parents_of(inputs: Mapping[str, Manifest]) -> dict[str, Parent]:
    """Return what an artifact made from these inputs records of them."""
    return {name: Parent(uri=manifest.uri, digest=manifest.digest) for name, manifest in inputs.items()}


SINCE, WARM_START, BASE = "since", "warm start", "base model"
"""What an artifact can go on from that an earlier run made, and that is no input of its stage."""


def earlier_of(manifest: Manifest) -> dict[str, Parent]:
    """Return what this one goes on from beside its parents, artifacts of earlier runs, by SINCE, WARM_START or BASE.

    They are read off what the stages record: the statistics `since` of `prepare`, the source of `sft` in S3.
    """
    found: dict[str, Parent] = {}
    since, sources = manifest.statistics.get("since"), manifest.statistics.get("sources")
    if isinstance(since, dict) and since.get("uri"):
        found[SINCE] = Parent(uri=str(since["uri"]), digest=str(since.get("digest", "")))
    listed = [one for one in sources if isinstance(one, dict)] if isinstance(sources, list) else []
    return found | started_from(manifest.stage, manifest.config, listed)


def started_from(stage: str, config: Mapping[str, Any], sources: Iterable[Mapping[str, Any]]) -> dict[str, Parent]:
    """Return the artifact that training starts from, of what a stage reads beside its inputs; none for a hub's model.

    Models lie in S3 as artifacts only.
    """
    return {
        BASE if source["uri"] == config.get("base_model") else WARM_START: Parent(
            uri=str(source["uri"]).rstrip("/"), digest=str(source.get("sha256", ""))
        )
        for source in sources
        if stage == "sft" and str(source.get("uri", "")).startswith("s3://")
    }


def run_key(
    stage: str, config: Mapping[str, Any], parents: Mapping[str, Parent], code_version: str, sources: Any = None
) -> str:
    """Return the name of a piece of work: 64 hex digits over all that decides its result.

    `sources` stands for inputs that are not artifacts of this pipeline (digests of preference files, of a base model).
    """
    work = {
        "stage": stage,
        "config": config,
        "parents": {name: parent.digest for name, parent in parents.items()},
        "code": code_version,
        "sources": sources,
    }
    return hashlib.sha256(json.dumps(work, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(directory: Path) -> tuple[FileEntry, ...]:
    """Hash every file below a directory, in sorted order; a manifest at the top is not one of its own files."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_NAME)
    return tuple(
        FileEntry(path=path.relative_to(directory).as_posix(), size=path.stat().st_size, sha256=hash_file(path))
        for path in paths
    )
