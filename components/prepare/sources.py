"""What decides this stage's result beside its configuration: the contents of the data and benchmarks it reads."""

from typing import TYPE_CHECKING, Any

from components.adapters.reading import named, source_digest
from components.core.errors import InvalidInput
from components.core.manifest import Manifest
from components.core.sources import BenchmarkSettings, SourceSettings
from components.prepare.config import Config

if TYPE_CHECKING:
    from components.adapters.storage import Storage


def sources(settings: Config, storage: "Storage") -> list[dict[str, Any]]:
    """Return uri and sha256 of every source, every benchmark and what was learned before, for the run key."""
    every: tuple[SourceSettings | BenchmarkSettings, ...] = (*settings.due, *settings.benchmarks)
    found = [{"uri": named(source), "sha256": source_digest(source, storage)} for source in every]
    before = find_before(settings, storage)
    return [*found, {"uri": before.uri, "sha256": before.digest}] if before else found


def find_before(settings: Config, storage: "Storage") -> Manifest | None:
    """Return the artifact that `since` stands for now, or None if there is none (yet).

    Raises:
        Transient: MLflow or S3 does not answer.
        InvalidInput: there is no such artifact, or it is not one of this stage that holds pairs.
    """
    if not settings.since:
        return None
    from components.adapters.registry import PAIRS_TAG, find_artifact  # it loads MLflow's adapter

    manifest = find_artifact(settings.since, storage, PAIRS_TAG)
    if manifest is not None and (manifest.stage != "prepare" or manifest.statistics.get("nothing_new")):
        raise InvalidInput(f"since is {settings.since}, but {manifest.uri} is no `prepare` artifact with pairs in it")
    return manifest
