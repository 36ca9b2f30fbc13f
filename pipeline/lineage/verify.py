"""Do the bytes in S3 still have the hashes that manifests state, and manifests those that their children read?"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from components.adapters.reading import source_digest
from components.adapters.storage import Storage
from components.core.errors import Damaged, InvalidInput
from components.core.manifest import Manifest
from components.prepare.config import Config
from pipeline.lineage.walk import GONE, SOURCE, LineageNode, artifacts

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Finding:
    """What was found at one artifact or source; `drift` says what is not as it was, `note` what else is to be known."""

    name: str
    uri: str
    num_files: int = 0
    num_bytes: int = 0
    drift: tuple[str, ...] = ()
    note: str = ""


def bytes_to_read(tree: LineageNode, storage: Storage) -> int:
    """Return how many bytes `verify` is going to read of the artifacts."""
    return sum(entry.size for manifest in _manifests(tree, storage) for entry in manifest.files)


def verify(tree: LineageNode, storage: Storage, progress: OnBytes | None = None) -> Iterator[Finding]:
    """Yield a finding for each artifact of a tree and each source that it names.

    Raises Transient or InvalidInput where the storage does not let us look, which is no drift.
    """
    told: dict[str, list[str]] = {}
    for node in tree.walk():
        if node.problem and node.problem not in told.setdefault(node.uri, []):
            told[node.uri].append(node.problem)
    if tree.problem and not tree.is_artifact:
        yield Finding(tree.name, tree.uri, drift=(tree.problem,))
    for node in artifacts(tree):
        drift = told.get(node.uri, [])
        try:
            manifest = storage.open(node.uri)
        except Damaged as error:
            yield Finding(node.name, node.uri, drift=tuple(dict.fromkeys([*drift, str(error)])))
            continue
        if manifest is None:
            yield Finding(node.name, node.uri, drift=tuple(drift or [GONE]))
            continue
        drift += storage.verify(manifest, progress)
        size = sum(entry.size for entry in manifest.files)
        yield Finding(node.name, node.uri, len(manifest.files), size, tuple(drift))
        yield from _sources(manifest, storage)


def _manifests(tree: LineageNode, storage: Storage) -> Iterator[Manifest]:
    for node in artifacts(tree):
        try:
            manifest = storage.open(node.uri)
        except Damaged:
            continue
        if manifest is not None:
            yield manifest


def _sources(manifest: Manifest, storage: Storage) -> Iterator[Finding]:
    """Yield how the preference data that the pairs were made from stands to what was read then.

    A source is not ours: it may grow, or lie on another machine. So a difference is told, and is no drift.
    """
    recorded = manifest.statistics.get("sources")
    if manifest.stage != "prepare" or not isinstance(recorded, list):
        return
    try:
        due = Config.model_validate_json(json.dumps(manifest.config)).due
    except ValueError:
        yield Finding(SOURCE, manifest.uri, note="sources not compared: the settings are of another version of reasrm")
        return
    # What an earlier run's artifact gave stands in front of the run's own sources; that is verified as an artifact.
    for settings, known in zip(due, recorded[-len(due) :], strict=False):
        read = str(known.get("sha256", "")) if isinstance(known, dict) else ""
        try:
            digest = source_digest(settings, storage)
        except InvalidInput as error:
            yield Finding(SOURCE, settings.uri, note=f"not compared: {error}")
            continue
        note = "" if digest == read else f"holds other data than was read then: sha256 {digest} and not {read}"
        yield Finding(SOURCE, settings.uri, note=note)
