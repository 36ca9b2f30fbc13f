"""What the benchmark reads beside its inputs: base model, benchmarks, champion, the other judges' models."""

from typing import TYPE_CHECKING, Any

from components.adapters.models import fingerprint
from components.adapters.reading import named, source_digest
from components.adapters.registry import MODEL_TAG, check_files, find_artifact
from components.benchmark.against import NONE
from components.benchmark.config import Config

if TYPE_CHECKING:
    from components.adapters.storage import Storage


def sources(config: Config, storage: "Storage") -> list[dict[str, Any]]:
    """Return uri and sha256 of each. The champion's is that of its manifest, or "none" as long as there is none.

    Raises Transient or InvalidInput for what does not answer or is not there, files of the champion among it.
    """
    found = fingerprint(config.base_model, storage)
    found += [
        {"uri": named(benchmark), "sha256": source_digest(benchmark, storage)}
        for benchmark in config.benchmarks
        if benchmark.judged
    ]
    for judge in config.judges:
        for reference in judge.references:
            found += fingerprint(reference, storage)
    if config.champion:
        champion = find_artifact(config.champion, storage, MODEL_TAG)
        if champion:
            check_files(f"benchmark.champion: {config.champion}", champion, storage)
        found.append({"uri": config.champion, "sha256": champion.digest if champion else NONE})
    return found
