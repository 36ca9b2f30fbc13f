"""What a checkpoint was made with, and whether a run may go on from it."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.adapters import ranks
from components.core.config import StageConfig
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import FileEntry, Manifest, Parent

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

KIND = "checkpoint"
MAX_SHOWN_CHARS = 120
_ABSENT = object()
_COMPARED_APART = {"sharding", "resume_from"}


@dataclass(frozen=True)
class Difference:
    """A setting or an input that is not as it was; `known` is False where one of the two codes does not know it."""

    key: str
    old: Any
    new: Any
    known: bool = True

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.old)}, is {_shown(self.new)}"


@dataclass(frozen=True)
class Fingerprint:
    """What decides how a training run goes on: code, settings, data, and how its state is spread over processes."""

    stage: str
    code_version: str
    config: StageConfig
    parents: Mapping[str, Parent]
    sources: Sequence[Mapping[str, Any]]
    sharding: str

    def manifest(
        self, uri: str, run_key: str, files: Sequence[FileEntry], *, step: int, score: float | None
    ) -> Manifest:
        """Return the manifest of a checkpoint that this run made."""
        return Manifest(
            kind=KIND,
            stage=self.stage,
            uri=uri,
            run_key=run_key,
            code_version=self.code_version,
            config=self.config.decisive(),
            files=tuple(files),
            parents=dict(self.parents),
            statistics={
                "step": step,
                "score": score,
                "world_size": ranks.world_size(),
                "sharding": self.sharding,
                "sources": [dict(source) for source in self.sources],
            },
        )

    def check(self, manifest: Manifest, storage: "Storage", way_out: str) -> None:
        """Raise InvalidInput, naming all that differs, unless the run may go on from this checkpoint.

        Another code version is no hindrance, and neither are settings that only one of the two codes knows, as long
        as they have their defaults here; a warning names them.
        """
        if manifest.kind != KIND or manifest.stage != self.stage:
            raise InvalidInput(
                f"{manifest.uri} is a {manifest.kind} of stage {manifest.stage!r}, not a {KIND} of {self.stage!r}; "
                f"{way_out}"
            )
        differing = [*self._settings(manifest), *self._data(manifest, storage)]
        problems = [str(difference) for difference in differing if difference.known]
        if problems:
            problems = [f"it was made with other settings or data: {'; '.join(problems)}"]
        problems += self._spread(manifest)
        if problems:
            raise InvalidInput(f"cannot go on from the checkpoint {manifest.uri}: {'; '.join(problems)}; {way_out}")
        if manifest.code_version != self.code_version:
            unknown = "; ".join(str(difference) for difference in differing) or "no setting was added or removed"
            logger.warning(
                "the checkpoint %s is of code version %s, this is %s (%s): the same losses are not promised",
                manifest.uri, manifest.code_version, self.code_version, unknown,
            )  # fmt: skip

    def _settings(self, manifest: Manifest) -> Iterator[Difference]:
        chosen = self.config.model_dump(mode="json", exclude_defaults=True)
        other_code = manifest.code_version != self.code_version
        for found in differences(manifest.config, self.config.decisive(), chosen):
            if found.key not in _COMPARED_APART:
                yield found if other_code else Difference(found.key, found.old, found.new)

    def _data(self, manifest: Manifest, storage: "Storage") -> Iterator[Difference]:
        for name in sorted(manifest.parents.keys() | self.parents.keys()):
            old, new = manifest.parents.get(name), self.parents.get(name)
            if old is None or new is None or (old.digest != new.digest and not _same_files(old, new, storage)):
                yield Difference(f"inputs.{name}", _parent_text(old), _parent_text(new))
        old_sources, new_sources = _digests(manifest.statistics.get("sources")), _digests(self.sources)
        for uri in sorted(old_sources.keys() | new_sources.keys()):
            before, now = old_sources.get(uri, _ABSENT), new_sources.get(uri, _ABSENT)
            if before != now:
                yield Difference(f"sources.{uri}", before, now)

    def _spread(self, manifest: Manifest) -> list[str]:
        sharding = manifest.statistics.get("sharding", "none")
        world_size = manifest.statistics.get("world_size", 1)
        if sharding != self.sharding:
            return [
                f"it was saved with sharding {sharding}, this run has {self.sharding}: set sharding to {sharding}, or "
                "start from the weights of an exported model"
            ]
        if sharding != "none" and world_size != ranks.world_size():
            return [
                f"it was saved by {world_size} processes with sharding {sharding}, this run has "
                f"{ranks.world_size()}: its shards fit the same number only; start with {world_size} processes "
                "(processes x nodes), or start from the weights of an exported model"
            ]
        return []


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], chosen: Mapping[str, Any], prefix: str = ""
) -> Iterator[Difference]:
    """Compare two nested settings; `chosen` has those new ones that are not at their default."""
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, chosen.get(key) or {}, f"{prefix}{key}.")
        else:
            known = now is not _ABSENT and (before is not _ABSENT or key in chosen)
            yield Difference(f"{prefix}{key}", before, now, known)


def _same_files(old: Parent, new: Parent, storage: "Storage") -> bool:
    """Say whether an input that newer code made again came out the same; one that is gone or damaged did not."""
    try:
        before, now = storage.open(old.uri), storage.open(new.uri)
    except Transient:
        raise
    except ReasrmError:
        return False
    return before is not None and before.digest == old.digest and now is not None and before.files == now.files


def _parent_text(parent: Parent | None) -> Any:
    return _ABSENT if parent is None else f"{parent.uri} (digest {parent.digest[:12]})"


def _digests(sources: Any) -> dict[str, str]:
    return {str(source["uri"]): str(source["sha256"]) for source in sources or ()}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
