"""What decides this stage's result beside its configuration: the contents of the data and benchmarks it reads."""

from typing import TYPE_CHECKING, Any

from components.adapters.reading import named, source_digest
from components.core.sources import BenchmarkSettings, SourceSettings
from components.prepare.config import Config

if TYPE_CHECKING:
    from components.adapters.storage import Storage


def sources(settings: Config, storage: "Storage") -> list[dict[str, Any]]:
    """Return uri and sha256 of every source and every benchmark, for the run key."""
    every: tuple[SourceSettings | BenchmarkSettings, ...] = (*settings.due, *settings.benchmarks)
    return [{"uri": named(source), "sha256": source_digest(source, storage)} for source in every]
