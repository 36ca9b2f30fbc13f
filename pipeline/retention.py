"""Which bytes of old runs may go: what no registered version, no recent run and no recent work needs.

An artifact is needed if something needed names its uri: in a version's tags, or anywhere in a manifest, such as its
parents, its sources or the checkpoint that it resumed from. What is not understood counts as needed: objects that do
not lie at <root>/<stage>/<key>/ are never touched, and a manifest that cannot be read ends the command.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from components.adapters.stage import KEY_LENGTH
from components.adapters.storage import ObjectInfo
from components.adapters.tracking import RunInfo, VersionInfo
from components.core.errors import InvalidInput
from components.core.manifest import MANIFEST_NAME, Manifest

Kind = Literal["work of a finished stage", "unfinished work", "artifact"]
ORDER: tuple[Kind, ...] = ("work of a finished stage", "unfinished work", "artifact")
"""In this order things are deleted: first what can be missed most easily."""
PARTIAL = "partial"


class Store(Protocol):
    """Where artifacts lie; the storage adapter is one."""

    def list(self, prefix_uri: str) -> Sequence[ObjectInfo]:
        """Return all objects below a prefix."""
        ...

    def open(self, uri: str) -> Manifest | None:
        """Return the manifest at a uri, or None if there is none."""
        ...

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects."""
        ...


@dataclass(frozen=True)
class Policy:
    """What stays beside all that registered versions need: the newest runs, and what is younger than some days."""

    keep_runs: int
    keep_days: float


@dataclass(frozen=True)
class Item:
    """Objects that may go together: all of an artifact, or the work in progress below it."""

    kind: Kind
    uri: str
    objects: tuple[ObjectInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the objects."""
        return sum(one.size for one in self.objects)


@dataclass(frozen=True)
class Plan:
    """What may go, in the order of deletion, and the bytes that stay, by reason."""

    items: tuple[Item, ...]
    kept: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes that may go."""
        return sum(item.size for item in self.items)


def make_plan(
    root: str, storage: Store, versions: Sequence[VersionInfo], runs: Sequence[RunInfo], policy: Policy, now: datetime
) -> Plan:
    """Say what may go below an artifact root. Raises what reading the objects and manifests raises."""
    below = _Below(root.rstrip("/"), storage)
    if not below.works:
        raise InvalidInput(f"there are no artifacts below {root}; give the artifact_root of the runs")
    registered = _Needed(below)
    for version in versions:
        registered.add([version.source_uri, *version.tags.values()])
    recent = _Needed(below)
    recent.add(_of_runs(below.root, _kept_runs(runs, policy, now)))
    recent.add(uri for uri in below.works if below.newest(uri) >= now - timedelta(days=policy.keep_days))
    items: list[Item] = []
    kept: dict[str, int] = {}

    def keep(why: str, objects: Iterable[ObjectInfo]) -> None:
        kept[why] = kept.get(why, 0) + sum(one.size for one in objects)

    for uri, objects in below.works.items():
        if recent.needs(uri):
            keep("of recent runs", objects)
            continue
        finished = below.is_finished(uri)
        partial = [one for one in objects if one.uri.startswith(f"{uri}/{PARTIAL}/")]
        rest = [one for one in objects if not one.uri.startswith(f"{uri}/{PARTIAL}/")]
        if registered.needs(uri):
            free = [one for one in partial if finished and not registered.needs_object(one.uri)]
            keep("of registered versions", [one for one in objects if one not in free])
            rest, partial = [], free
        if finished:
            items += [Item("work of a finished stage", uri, tuple(partial))] if partial else []
            items += [Item("artifact", uri, tuple(rest))] if rest else []
        elif partial or rest:
            items.append(Item("unfinished work", uri, (*partial, *rest)))
    keep("not ours to judge", below.others)
    return Plan(tuple(sorted(items, key=lambda item: (ORDER.index(item.kind), item.uri))), kept)


def apply_plan(plan: Plan, look_again: Callable[[], Plan], storage: Store, done: Callable[[Item], None]) -> int:
    """Delete what the plan and a plan made just now agree on; return the bytes freed.

    So what was registered or begun since the first look is spared. `done` is called after each item.
    """
    again = {(item.kind, item.uri): set(item.objects) for item in look_again().items}
    freed = 0
    for item in plan.items:
        still = again.get((item.kind, item.uri), set())
        objects = [one for one in item.objects if one in still]
        if not objects or (item.kind != "work of a finished stage" and len(objects) < len(still)):
            continue
        # The manifest first: an artifact exists exactly if it does, and no manifest may lack its files.
        storage.delete(sorted((one.uri for one in objects), key=lambda uri: (not uri.endswith(MANIFEST_NAME), uri)))
        freed += sum(one.size for one in objects)
        done(Item(item.kind, item.uri, tuple(objects)))
    return freed


def _kept_runs(runs: Sequence[RunInfo], policy: Policy, now: datetime) -> list[RunInfo]:
    newest = sorted(runs, key=lambda run: -run.started)[: policy.keep_runs]
    since = (now - timedelta(days=policy.keep_days)).timestamp()
    return newest + [run for run in runs if run.running or run.started >= since]


def _of_runs(root: str, runs: Iterable[RunInfo]) -> Iterator[str]:
    for run in runs:
        yield from run.uris
        yield from (f"{root}/{stage}/{key[:KEY_LENGTH]}" for stage, key in run.works)


class _Below:
    """The objects below an artifact root, by the uri of the work that they belong to."""

    def __init__(self, root: str, storage: Store) -> None:
        self.root, self.storage = root, storage
        self.works: dict[str, list[ObjectInfo]] = {}
        self.others: list[ObjectInfo] = []
        for one in storage.list(f"{root}/"):
            stage, _, rest = one.uri.removeprefix(f"{root}/").partition("/")
            key, _, name = rest.partition("/")
            if stage and name and len(key) == KEY_LENGTH and not set(key) - set("0123456789abcdef"):
                self.works.setdefault(f"{root}/{stage}/{key}", []).append(one)
            else:
                self.others.append(one)
        self._uris = {one.uri for objects in self.works.values() for one in objects}

    def is_finished(self, uri: str) -> bool:
        """Tell whether there is a manifest at a uri."""
        return f"{uri}/{MANIFEST_NAME}" in self._uris

    def newest(self, uri: str) -> datetime:
        """Return when the last object of a work came; now, if S3 does not say."""
        return max(one.modified or datetime.now(UTC) for one in self.works[uri])


@dataclass
class _Needed:
    """The works that something needs, with all that their manifests name."""

    below: _Below
    uris: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)

    def add(self, texts: Iterable[str]) -> None:
        """Need what these uris name, and what the manifests there name; texts that are no uris name nothing."""
        todo = list(texts)
        while todo:
            uri = todo.pop().rstrip("/")
            if not uri.startswith("s3://") or uri in self.named:
                continue
            self.named.add(uri)
            if self.below.is_finished(uri):  # an artifact, or a checkpoint within one
                todo += _mentions(self.below.storage.open(uri))
            for work in self._works_at(uri):
                if work not in self.uris:
                    self.uris.add(work)
                    if self.below.is_finished(work):
                        todo += _mentions(self.below.storage.open(work))

    def needs(self, work: str) -> bool:
        """Tell whether a work is needed."""
        return work in self.uris

    def needs_object(self, uri: str) -> bool:
        """Tell whether an object of a needed work's own work in progress is named, itself or by a folder of it.

        The work's own uri names the artifact, which has no such objects.
        """
        return any(uri == name or uri.startswith(f"{name}/") for name in self.named if name not in self.below.works)

    def _works_at(self, uri: str) -> Iterator[str]:
        """Yield the work that a uri is or lies in, or those that lie below it."""
        stage, _, rest = uri.removeprefix(f"{self.below.root}/").partition("/")
        work = f"{self.below.root}/{stage}/{rest.partition('/')[0]}"
        if uri.startswith(f"{self.below.root}/") and work in self.below.works:
            yield work
        else:
            yield from (one for one in self.below.works if one.startswith(f"{uri}/"))


def _mentions(value: Manifest | None) -> Iterator[str]:
    """Yield all texts in a manifest."""
    yield from _texts(value.model_dump(mode="json") if value else None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
