"""Data and models that a run reads: whether they are there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from components.adapters.hub import SCHEME
from components.core.teachers import OfflineTeacher, RecordedTeacher
from pipeline.checks.finding import Finding, missing, ok
from pipeline.checks.hub import check_hub, hub_model
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from components.adapters.storage import Storage


@dataclass(frozen=True)
class Place:
    """Something that is read, under the name of its setting."""

    setting: str
    uri: str
    kind: Literal["dataset", "model"] = "dataset"
    revision: str = ""

    @property
    def on_hub(self) -> bool:
        """Whether it is on the Hugging Face hub."""
        return self.uri.startswith(SCHEME) or (self.kind == "model" and hub_model(self.uri) is not None)


def places(config: RunConfig) -> list[Place]:
    """Return all that a run reads beside what its own stages make, each once."""
    found = [Place("preference_data", source.uri, revision=source.revision) for source in config.preference_data]
    found += [Place("benchmarks", one.uri, revision=one.revision) for one in config.benchmarks]
    found.append(Place("base_model", config.base_model, "model"))
    for teacher in config.teacher:
        if isinstance(teacher, RecordedTeacher):
            found.append(Place("teacher", teacher.uri))
        elif isinstance(teacher, OfflineTeacher):
            found.append(Place("teacher", teacher.model, "model"))
    if config.filter.attempts:
        found.append(Place("filter.attempts", config.filter.attempts))
    found += [Place("benchmark.judges", uri, "model") for judge in config.benchmark.judges for uri in judge.references]
    return list(dict.fromkeys(found))


def check_place(place: Place, hub_secret: str) -> Iterator[Finding]:
    """See that a pod can read it; contents are not read."""
    name = f"{place.setting} {place.uri}"
    if place.on_hub:
        yield from check_on_hub(place, hub_secret)
    elif not place.uri.startswith("s3://"):
        remedy = f"reasrm upload {place.uri} s3://..., and set {place.setting} to that"
        yield missing(name, "is on this machine, where no pod sees it", remedy)
    else:
        from components.adapters.storage import Storage

        storage = Storage.from_env()
        if _is_there(place, storage):
            yield ok(name, "is there")
        else:
            what = "no committed model (manifest.json)" if place.kind == "model" else "nothing"
            yield missing(name, f"there is {what} at {storage.endpoint}", f"reasrm upload ... {place.uri}")


def check_on_hub(place: Place, secret: str) -> Iterator[Finding]:
    """Ask the hub for a place that is there."""
    model = hub_model(place.uri) if place.kind == "model" else None
    repository, revision = model or (place.uri.removeprefix(SCHEME), place.revision)
    yield check_hub(f"{place.setting} {place.uri}", repository, place.kind, revision, secret)


def _is_there(place: Place, storage: "Storage") -> bool:
    if place.kind == "model":
        return storage.open(place.uri.rstrip("/")) is not None
    return bool(storage.list(place.uri)) if place.uri.endswith("/") else storage.exists(place.uri)
