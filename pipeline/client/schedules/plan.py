"""What has to be done so that a server's schedules are those of a file. Nothing here asks the server."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pipeline.client.schedules.desired import HASH_LENGTH, Desired

Action = Literal["create", "replace", "upload", "pause", "resume", "delete", "tidy", "unchanged", "left"]
"""upload: only the newest version of its pipeline is not what the file compiles to; tidy: only what an
earlier, broken off apply left behind is removed; left: not in the file, and not pruned."""

_MARK = re.compile(
    rf"^reasrm:(?:(?P<group>[a-z0-9-]+)/)?(?P<name>[a-z0-9-]+):(?P<hash>[0-9a-f]{{{HASH_LENGTH}}})\s*\Z", re.MULTILINE
)


@dataclass(frozen=True)
class Actual:
    """A recurring run as the server has it."""

    id: str
    name: str
    description: str
    enabled: bool
    created_at: datetime
    fields: Mapping[str, Any]
    """Those of Desired.fields that are known of it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    running: tuple[str, ...] = ()
    """Ids of its runs that have not ended. Kubernetes would delete them together with the recurring run."""

    @property
    def owner(self) -> tuple[str, str] | None:
        """Return (group, name) of a recurring run that this tool made, else None.

        Kubeflow's UI copies the description when a user clones a recurring run, but gives the copy another name.
        """
        found = _MARK.search(self.description)
        return (found["group"] or "", found["name"]) if found and found["name"] == self.name else None

    @property
    def hash(self) -> str:
        """Return the hash in the mark, empty if there is none."""
        found = _MARK.search(self.description)
        return found["hash"] if found else ""


@dataclass(frozen=True)
class FieldChange:
    """A setting's old and new value."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Change:
    """What is to be done for one schedule."""

    action: Action
    name: str
    desired: Desired | None = None
    keep: Actual | None = None
    """The recurring run that stays."""
    remove: tuple[Actual, ...] = ()
    """Those that are disabled and then deleted, as soon as none of their runs is under way."""
    fields: tuple[FieldChange, ...] = ()
    outdated: str = ""
    """Of a schedule that follows the newest version: that version, if it is not what the file compiles to."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to do now; what waits for a run to end is not."""
        if self.action == "left":
            return False
        if self.action == "tidy":
            return any(old.enabled or not old.running for old in self.remove)
        return self.action != "unchanged"


@dataclass(frozen=True)
class Plan:
    """All changes, in the order of the file, then what is not in it."""

    changes: tuple[Change, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing is to be done."""
        return not any(change.changes for change in self.changes)


def make_plan(
    wanted: Sequence[Desired],
    found: Iterable[Actual],
    *,
    group: str = "",
    prune: bool = False,
    outdated: Mapping[str, str] | None = None,
) -> Plan:
    """Compare a file's schedules with a server's; recurring runs of others and of other groups are passed over.

    `outdated` has the newest versions that are not what the schedules compile to, by the schedules' names.
    """
    owned: dict[str, list[Actual]] = {}
    for actual in found:
        if actual.owner is not None and actual.owner[0] == group:
            owned.setdefault(actual.name, []).append(actual)
    changes = [_outdated(plan_one(one, owned.get(one.name, [])), (outdated or {}).get(one.name, "")) for one in wanted]
    for name in sorted(owned.keys() - {one.name for one in wanted}):
        changes.append(Change("delete" if prune else "left", name, remove=tuple(owned[name])))
    return Plan(tuple(changes))


def plan_one(wanted: Desired, owned: Sequence[Actual]) -> Change:
    """Return what one schedule needs, given the recurring runs that are its own."""
    if not owned:
        return Change("create", wanted.name, wanted)
    # KFP cannot change a recurring run: an equal hash means equal settings; what differs is the server's wording.
    same = [one for one in owned if one.hash == wanted.hash]
    if not same:
        return Change("replace", wanted.name, wanted, None, tuple(owned), differences(wanted, newest(owned)))
    # Of two that simultaneous applies have made the first one stays: a later one never takes its place.
    keep = min(same, key=lambda one: (one.created_at, one.id))
    rest = tuple(one for one in owned if one.id != keep.id)
    if keep.enabled != wanted.enabled:
        return Change("resume" if wanted.enabled else "pause", wanted.name, wanted, keep, rest)
    return Change("tidy" if rest else "unchanged", wanted.name, wanted, keep, rest)


def _outdated(change: Change, version: str) -> Change:
    if not version:
        return change
    action: Action = "upload" if change.action in ("unchanged", "tidy") else change.action
    return replace(change, action=action, outdated=version)


def newest(owned: Sequence[Actual]) -> Actual:
    """Return the one of several that counts: an enabled one, else the newest."""
    return max(owned, key=lambda one: (one.enabled, one.created_at, one.id))


def differences(wanted: Desired, actual: Actual) -> tuple[FieldChange, ...]:
    """Return the settings in which a recurring run is not as it should be, as far as they are known."""
    pairs = [(name, actual.fields[name], new) for name, new in wanted.fields.items() if name in actual.fields]
    names = sorted(wanted.parameters.keys() | actual.parameters.keys()) if actual.parameters else []
    pairs += [(f"parameters.{name}", actual.parameters.get(name), wanted.parameters.get(name)) for name in names]
    return tuple(change for name, old, new in pairs for change in _compare(name, old, new))


def _compare(name: str, old: Any, new: Any) -> Iterable[FieldChange]:
    """Yield what differs; within a stage's JSON, setting by setting."""
    if _plain(old) == _plain(new):
        return
    before, after = _table(old), _table(new)
    if before is None or after is None:
        yield FieldChange(name, old, new)
        return
    for key in sorted(before.keys() | after.keys()):
        yield from _compare(f"{name}.{key}", before.get(key), after.get(key))


def _table(value: Any) -> dict[str, Any] | None:
    """Return a table, also one that is written as JSON; None for anything else."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    """Return a value as it is after a way through the server, which has one kind of number only."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def short(value: Any, limit: int = 60) -> str:
    """Return a value for a line of a plan."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
