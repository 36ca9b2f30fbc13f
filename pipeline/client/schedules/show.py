"""Plans and schedules as text for a terminal; plain where there is none."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from components.core.redact import redact
from pipeline.client.schedules.desired import Desired, next_run
from pipeline.client.schedules.plan import Action, Actual, Change, Plan, short

MARKS: Mapping[Action, tuple[str, str]] = {
    "create": ("+", "green"),
    "replace": ("~", "yellow"),
    "upload": ("↑", "yellow"),
    "pause": ("‖", "yellow"),
    "resume": ("▸", "green"),
    "delete": ("-", "red"),
    "tidy": ("-", "yellow"),
    "unchanged": ("=", "dim"),
    "left": ("?", "dim"),
}
EXPLAINED: Mapping[Action, str] = {
    "create": "to create",
    "replace": "to replace",
    "upload": "to upload",
    "pause": "to pause",
    "resume": "to resume",
    "delete": "to delete",
    "tidy": "to tidy up",
    "unchanged": "unchanged",
    "left": "not in the file",
}


def plan_text(plan: Plan, now: datetime) -> Group:
    """Return a plan for reading: one line per schedule, one per setting that changes, and the sum."""
    lines: list[RenderableType] = []
    for change in plan.changes:
        mark, style = MARKS[change.action]
        lines.append(
            Text.assemble((f"{mark} {change.action:<9} ", style), (change.name, "bold"), f"  {_about(change, now)}")
        )
        lines += [_field(one.name, one.old, one.new) for one in change.fields]
        if change.outdated:
            newest = f"its runs take {change.outdated}, the newest version, which is not what this file compiles to"
            lines.append(Text(f"      {newest}"))
        if change.action == "replace" and not change.fields:
            lines.append(Text("      settings that the server does not show", "dim"))
        lines += [Text(f"      {line}", "dim") for line in _old(change)]
    counts = Counter(change.action for change in plan.changes)
    total = ", ".join(f"{counts[action]} {EXPLAINED[action]}" for action in MARKS if counts[action])
    lines.append(Text(f"{total or 'no schedules'}." + (" Nothing to do." if plan.empty else "")))
    return Group(*lines)


def plan_json(plan: Plan) -> list[dict[str, Any]]:
    """Return a plan for other programs."""
    return [
        {
            "schedule": change.name,
            "action": change.action,
            "changes": change.changes,
            "fields": [
                {"name": one.name, "old": _redacted(one.old), "new": _redacted(one.new)} for one in change.fields
            ],
            "newest_version": change.outdated or None,
            "keeps": change.keep.id if change.keep else None,
            "removes": [one.id for one in change.remove] if change.action != "left" else [],
        }
        for change in plan.changes
    ]


def list_json(found: Iterable[Actual]) -> list[dict[str, Any]]:
    """Return schedules for other programs."""
    return [
        {
            "schedule": full_name(one),
            "ours": one.owner is not None,
            "enabled": one.enabled,
            "id": one.id,
            "created": one.created_at.astimezone(UTC).isoformat(),
            "under_way": list(one.running),
            **{name: _redacted(value) for name, value in one.fields.items()},
        }
        for one in _sorted(found)
    ]


def _sorted(found: Iterable[Actual]) -> list[Actual]:
    return sorted(found, key=lambda one: (one.name, one.created_at))


def _redacted(value: object) -> object:
    return redact(value) if isinstance(value, str) else value


def _about(change: Change, now: datetime) -> str:
    if change.desired is not None and change.action in ("create", "replace", "upload", "resume"):
        return f"{trigger(change.desired.fields)} · {change.desired.fields['version']} · {_next(change.desired, now)}"
    if change.action == "left":
        return "stays as it is; --prune deletes it"
    return ""


def _next(wanted: Desired, now: datetime) -> str:
    if not wanted.enabled:
        return "paused"
    found = next_run(wanted.schedule, now)
    if found is not None:
        return f"next {found.astimezone(UTC):%a %Y-%m-%d %H:%M} UTC"
    begins_anew = wanted.schedule.interval and wanted.schedule.start is None
    return "counts from now" if begins_anew else "no run before its end"


def _field(name: str, old: object, new: object) -> Text:
    return Text(f"      {name}: {redact(short(old))} -> {redact(short(new))}")


def _old(change: Change) -> Iterable[str]:
    for one in change.remove:
        if change.action == "left":
            continue
        state = "enabled" if one.enabled else "disabled"
        waits = f", stays disabled until its run {one.running[0]} has ended" if one.running else ""
        yield f"removes {one.id} ({state}, of {one.created_at:%Y-%m-%d %H:%M}{waits})"


def trigger(fields: Mapping[str, object]) -> str:
    """Return when a schedule runs."""
    return str(fields.get("cron") or "") or f"every {_span(int(str(fields.get('interval') or 0)))}"


def _span(seconds: int) -> str:
    for unit, size in (("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def list_table(found: Iterable[Actual]) -> Table:
    """Return the schedules of a namespace; those of others without what only our own descriptions say."""
    table = Table(box=None, pad_edge=False)
    for heading in ("schedule", "state", "when (UTC)", "version", "experiment", "under way", "id"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")
    for one in _sorted(found):
        state = Text("enabled", "green") if one.enabled else Text("paused", "yellow")
        version = " ".join(str(one.fields.get(name) or "") for name in ("version", "content")).strip()
        table.add_row(
            full_name(one), state, trigger(one.fields), version, str(one.fields.get("experiment") or ""),
            str(len(one.running) or ""), one.id,
        )  # fmt: skip
    return table


def full_name(one: Actual) -> str:
    """Return the name as the commands take it: with its group, if it has one."""
    group = one.owner[0] if one.owner else ""
    return f"{group}/{one.name}" if group else one.name
