"""Which checkpoints a run has in S3, which is the best, and what goes away."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from components.core.errors import Damaged
from components.core.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

QUARANTINED_NAME = f"quarantined-{MANIFEST_NAME}"


@dataclass
class Catalogue:
    """The checkpoints below a prefix, one folder a step. Only rank 0 asks, so nothing here is collective."""

    storage: "Storage"
    prefix: str
    keep: int
    scores: dict[int, float] = field(default_factory=dict)
    """The scores of committed checkpoints, by step, as they were when last read."""

    def uri(self, step: int) -> str:
        """Return where the checkpoint of a step lies."""
        return f"{self.prefix}{step:08d}"

    def whole(self) -> list[int]:
        """Return the steps that have a manifest, in order; reads their scores."""
        steps = [step for step, names in self._objects().items() if MANIFEST_NAME in names]
        self.scores = {step: score for step in steps if (score := self._score(step)) is not None}
        return steps

    def quarantined(self) -> list[int]:
        """Return the steps whose checkpoint was found damaged."""
        return [step for step, names in self._objects().items() if QUARANTINED_NAME in names]

    def open(self, step: int) -> Manifest | None:
        """Return the manifest of a step; None when there is none, or when it is damaged and was now set aside."""
        try:
            return self.storage.open(self.uri(step))
        except Damaged as error:
            self.quarantine(step, error)
        return None

    def quarantine(self, step: int, why: Exception) -> None:
        """Keep the manifest under another name, and delete the bytes: a later upload must not take them for its own."""
        logger.warning("checkpoint of step %s is damaged (%s); trying the one before it", step, why)
        storage, uri = self.storage, self.uri(step)
        storage.write_bytes(f"{uri}/{QUARANTINED_NAME}", storage.read_bytes(f"{uri}/{MANIFEST_NAME}") or b"")
        storage.delete([f"{uri}/{MANIFEST_NAME}"])
        storage.delete([info.uri for info in storage.list(f"{uri}/") if not info.uri.endswith(QUARANTINED_NAME)])
        self.scores.pop(step, None)

    def prune(self, newest: int) -> None:
        """Delete older checkpoints but the best, and what was uploaded for older ones that were never committed."""
        whole = [step for step in self.whole() if step <= newest]
        kept = {*whole[-self.keep :], best_of(self.scores)}
        for step, names in self._objects().items():
            damaged = QUARANTINED_NAME in names and MANIFEST_NAME not in names
            if step < newest and step not in kept and not damaged:
                self.storage.delete([f"{self.uri(step)}/{MANIFEST_NAME}"])  # first: no manifest lacks its files
                self.storage.delete(names.values())
                self.scores.pop(step, None)

    def _score(self, step: int) -> float | None:
        try:
            manifest = self.storage.open(self.uri(step))
        except Damaged:
            return None  # `open` sets it aside once it is asked for
        score = manifest.statistics.get("score") if manifest else None
        return float(score) if isinstance(score, int | float) else None

    def _objects(self) -> dict[int, dict[str, str]]:
        """Return the uris of all objects, by step and name."""
        found: dict[int, dict[str, str]] = {}
        for info in self.storage.list(self.prefix):
            step, _, name = info.uri.removeprefix(self.prefix).partition("/")
            if step.isdecimal():
                found.setdefault(int(step), {})[name] = info.uri
        return dict(sorted(found.items()))


def best_of(scores: Mapping[int, float]) -> int | None:
    """Return the step of the best score, the earliest of equals: as good with less training."""
    return min(scores, key=lambda step: (-scores[step], step), default=None)
