"""Which bytes of old runs may go: what no registered version, no recent run and no recent work needs.

An artifact is needed if something needed names its uri: in a version's tags, or anywhere in a manifest, such as its
parents, its sources or the checkpoint that it resumed from. What MLflow was not told of a run goes when it is old. What
is not understood counts as needed: objects that do not lie at <root>/<stage>/<key>/ or in the place of what MLflow was
not told are never touched, and a manifest that cannot be read ends the command. So does a registry that does not know
what these runs have published: it is not the one that says what is needed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, Protocol
from urllib.parse import unquote

from components.adapters.model_versions import VersionInfo
from components.adapters.stage import KEY_LENGTH
from components.adapters.storage import ObjectInfo
from components.adapters.tracking import RunInfo
from components.adapters.untold import TRACKING, place_of
from components.core.errors import InvalidInput
from components.core.manifest import MANIFEST_NAME, STAGES, Manifest

Kind = Literal["work of a finished stage", "unfinished work", "not told to MLflow", "artifact"]
ORDER: tuple[Kind, ...] = ("work of a finished stage", "unfinished work", "not told to MLflow", "artifact")
"""In this order things are deleted: first what can be missed most easily."""
PARTIAL, PROMOTIONS = "partial", "promotions"
_ANOTHER = re.compile(r"\+\d+$")  # behind the name of a model that was not the first one called so
NUM_NAMED = 5
AT_ONCE = 16
"""Requests to S3 at the same time."""


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
    """Objects that may go together: of an artifact, of work in progress, or of what MLflow was not told of a run."""

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
    root: str,
    storage: Store,
    versions: Sequence[VersionInfo],
    runs: Sequence[RunInfo],
    policy: Policy,
    now: datetime,
    logs: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Say what may go below an artifact root; `logs` is where registered models say that their promotions are.

    Raises InvalidInput where MLflow cannot say what is needed, and what reading the objects and manifests raises.
    """
    below = _Below(root.rstrip("/"), storage)
    if not below.works:
        raise InvalidInput(f"there are no artifacts below {root}; give the artifact_root of the runs")
    runs = [run for run in runs if below.knows(run)]
    _check_registry(below, versions, runs, logs)
    registered = _Needed(below)
    for version in versions:
        registered.add([version.source_uri, *version.tags.values()])
    recent = _Needed(below)
    since = now - timedelta(days=policy.keep_days)
    newest = _newest_runs(runs, policy, since)
    recent.add(_of_runs(below.root, newest))
    recent.add(uri for uri in below.works if below.newest(uri) >= since)
    unended = [run for run in runs if run.running and run not in newest]
    running = _Needed(below)
    running.add(_of_runs(below.root, unended))
    names = ", ".join(run.run_id for run in unended[:NUM_NAMED]) + (", ..." if len(unended) > NUM_NAMED else "")
    of_running = f"of runs that have not ended in MLflow: {names}"
    items: list[Item] = []
    kept: dict[str, int] = {}

    def keep(why: str, objects: Iterable[ObjectInfo]) -> None:
        kept[why] = kept.get(why, 0) + sum(one.size for one in objects)

    for uri, objects in below.works.items():
        if recent.needs(uri):
            keep("of recent runs", objects)
            continue
        if running.needs(uri):
            keep(of_running, objects)
            continue
        finished = below.is_finished(uri)
        partial = [one for one in objects if one.uri.startswith(f"{uri}/{PARTIAL}/")]
        rest = [one for one in objects if not one.uri.startswith(f"{uri}/{PARTIAL}/")]
        if registered.needs(uri):
            free = [one for one in partial if finished and not registered.needs_object(uri, one.uri)]
            keep("of registered versions", [one for one in objects if one not in free])
            rest, partial = [], free
        if finished:
            items += [Item("work of a finished stage", uri, tuple(partial))] if partial else []
            items += [Item("artifact", uri, tuple(rest))] if rest else []
        elif partial or rest:
            items.append(Item("unfinished work", uri, (*partial, *rest)))
    places = {place_of(below.root, run.run_id) for run in (*newest, *unended)}
    for uri, objects in below.untold.items():
        if uri in places or any((one.modified or now) >= since for one in objects):
            keep("of recent runs", objects)
        else:
            items.append(Item("not told to MLflow", uri, tuple(objects)))
    keep("not ours to judge", below.others)
    return Plan(tuple(sorted(items, key=lambda item: (ORDER.index(item.kind), item.uri))), kept)


def apply_plan(
    plan: Plan,
    look_again: Callable[[], Plan],
    storage: Store,
    done: Callable[[Item], None],
    spared: Callable[[Item], None] = lambda item: None,
) -> int:
    """Delete what the plan and a plan made just now agree on; return the bytes freed.

    So what was registered or begun since the first look is spared, and what somebody works on again since the second:
    each item is listed once more before it goes. `done` is called after each item, `spared` for one that stays.
    """
    again = {(item.kind, item.uri): set(item.objects) for item in look_again().items}
    freed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for item in plan.items:
            objects = _still(item, again.get((item.kind, item.uri), set()), storage)
            if not objects:
                spared(item)
                continue
            # The manifest first: an artifact exists exactly if it does, and no manifest may lack its files.
            top = f"{item.uri}/{MANIFEST_NAME}"
            storage.delete(one.uri for one in objects if one.uri == top)
            for _ in pool.map(lambda one: storage.delete([one.uri]), [one for one in objects if one.uri != top]):
                pass
            freed += sum(one.size for one in objects)
            done(Item(item.kind, item.uri, tuple(objects)))
    return freed


def _still(item: Item, agreed: set[ObjectInfo], storage: Store) -> list[ObjectInfo]:
    """Return the objects of an item that may go now: all of it, or of work in progress what is left; else none."""
    there = set(storage.list(f"{item.uri}/")) if agreed else set()
    if item.kind == "work of a finished stage":
        return [one for one in item.objects if one in agreed and one in there]
    return list(item.objects) if set(item.objects) == agreed == there else []


def _check_registry(
    below: "_Below", versions: Sequence[VersionInfo], runs: Sequence[RunInfo], logs: Mapping[str, str]
) -> None:
    """Raise InvalidInput if MLflow cannot be the one that these runs report to, or has lost what they told it."""
    remedy = "see that MLFLOW_TRACKING_URI is the server of these runs; if it lost data, restore it first"
    names = {version.name for version in versions}
    # A model that is renamed keeps its log, and one that takes over a name has another one: see `promotions.find_log`.
    owners = {place.rstrip("/"): name for name, place in logs.items()}
    for folder in sorted(below.promoted):
        model = owners.get(folder) or unquote(_ANOTHER.sub("", folder.rpartition("/")[2]))
        if model not in names:
            raise InvalidInput(
                f"{folder}/ says that {model} had a champion, but the registry has no version of it: {remedy}. If the "
                "model was deleted on purpose, delete that folder too"
            )
    named = [uri for version in versions for uri in (version.source_uri, *version.tags.values())]
    if not runs and not any(uri.startswith(f"{below.root}/") for uri in named):
        raise InvalidInput(
            f"MLflow knows no run and no version of what lies below {below.root}, so it cannot say what is needed: "
            f"{remedy}. If nothing is needed any more, delete it with the tools of your S3 server"
        )


def _newest_runs(runs: Sequence[RunInfo], policy: Policy, since: datetime) -> list[RunInfo]:
    in_order = sorted(runs, key=lambda run: -run.started)
    return [run for place, run in enumerate(in_order) if place < policy.keep_runs or run.started >= since.timestamp()]


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
        self.promoted: set[str] = set()  # folders of logs of promotions
        self.untold: dict[str, list[ObjectInfo]] = {}  # what MLflow was not told, by the folder of the run
        for one in storage.list(f"{root}/"):
            stage, _, rest = one.uri.removeprefix(f"{root}/").partition("/")
            key, _, name = rest.partition("/")
            if stage in STAGES and name and len(key) == KEY_LENGTH and not set(key) - set("0123456789abcdef"):
                self.works.setdefault(f"{root}/{stage}/{key}", []).append(one)
                continue
            if stage == TRACKING and name:
                self.untold.setdefault(f"{root}/{stage}/{key}", []).append(one)
                continue
            self.others.append(one)
            if stage == PROMOTIONS and name.endswith(".json"):
                self.promoted.add(f"{root}/{stage}/{key}")
        self._uris = {one.uri for objects in self.works.values() for one in objects}
        self._mentions: dict[str, frozenset[str]] = {}

    def is_finished(self, uri: str) -> bool:
        """Tell whether there is a manifest at a uri."""
        return f"{uri}/{MANIFEST_NAME}" in self._uris

    def newest(self, uri: str) -> datetime:
        """Return when the last object of a work came; now, if S3 does not say."""
        return max(one.modified or datetime.now(UTC) for one in self.works[uri])

    def knows(self, run: RunInfo) -> bool:
        """Tell whether a run works below this root, and not below another one."""
        return any(uri.startswith(f"{self.root}/") for uri in run.uris) or any(
            uri in self.works for uri in _of_runs(self.root, [run])
        )

    def works_at(self, uri: str) -> Iterable[str]:
        """Return the work that a uri is or lies in, or those that lie below it."""
        if f"{self.root}/".startswith(f"{uri}/"):
            return self.works
        if not uri.startswith(f"{self.root}/"):
            return ()
        stage, _, rest = uri.removeprefix(f"{self.root}/").partition("/")
        if not rest:
            return [work for work in self.works if work.startswith(f"{uri}/")]
        work = f"{self.root}/{stage}/{rest.partition('/')[0]}"
        return (work,) if work in self.works else ()

    def mentions(self, uris: Iterable[str]) -> set[str]:
        """Return all uris in the manifests at these uris, each of which is read once."""
        finished = [uri for uri in uris if self.is_finished(uri)]
        unread = [uri for uri in finished if uri not in self._mentions]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for uri, manifest in zip(unread, pool.map(self.storage.open, unread), strict=True):
                self._mentions[uri] = frozenset(_uris_in(manifest))
        return {named for uri in finished for named in self._mentions[uri]}


@dataclass
class _Needed:
    """The works that something needs, with all that their manifests name."""

    below: _Below
    uris: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)

    def add(self, texts: Iterable[str]) -> None:
        """Need what these uris name, and what the manifests there name; texts that are no uris name nothing."""
        todo = set(texts)
        while todo:
            named = {uri.rstrip("/") for uri in todo if uri.startswith("s3://")} - self.named
            self.named |= named
            works = {work for uri in named for work in self.below.works_at(uri)} - self.uris
            self.uris |= works
            todo = self.below.mentions(named | works)  # of artifacts, and of checkpoints within them

    def needs(self, work: str) -> bool:
        """Tell whether a work is needed."""
        return work in self.uris

    def needs_object(self, work: str, uri: str) -> bool:
        """Tell whether an object of a needed work's own work in progress is named, itself or by a folder of it.

        The work's own uri names the artifact, which has no such objects.
        """
        while uri != work:
            if uri in self.named:
                return True
            uri = uri.rpartition("/")[0]
        return False


def _uris_in(manifest: Manifest | None) -> Iterator[str]:
    """Yield all uris of S3 in a manifest."""
    found = _texts(manifest.model_dump(mode="json") if manifest else None)
    return (text for text in found if text.startswith("s3://"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
