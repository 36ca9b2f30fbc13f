"""Watch a run: a table of its stages that is painted over on a terminal, and a line for each change elsewhere."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.redact import redact
from pipeline.client.endpoint import Kfp, NotAllowed, NotFound
from pipeline.client.stages import FINISHED, Stage, Status, known, stages_of, stages_seen, statuses
from pipeline.client.submit import run_url
from pipeline.screen import duration

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 900.0
"""How long a server may be out of order before watching ends; the run itself goes on."""
QUIET_SECONDS = 300.0
"""A log gets a line at least this often."""
MARKS: Mapping[str, tuple[str, str]] = {
    "done": ("✓", "green"),
    "cached": ("✓", "green"),
    "starting": ("▸", "cyan"),
    "pending": ("▸", "yellow"),
    "running": ("▸", "cyan"),
    "stopping": ("▸", "yellow"),
    "failed": ("✗", "red"),
    "stopped": ("✗", "yellow"),
    "skipped": ("-", "dim"),
}
STATES = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "yellow", "CANCELING": "yellow", "RUNNING": "cyan"}
SEARCHED = 200
"""How many of the newest runs are searched for one that is given by its name, or by how its id begins."""
SHORT = 8
"""How much of a run's id a table shows; it is enough to name the run."""
QUIET = {"waiting", "skipped", "cached", "untold"}
"""States without a time and without parts."""
Notes = Callable[[str], Mapping[str, str]]


@dataclass(frozen=True)
class View:
    """A run as it is now."""

    run_id: str
    name: str
    state: str
    url: str
    created: datetime | None
    finished: datetime | None
    stages: tuple[Status, ...] = ()
    error: str = ""
    note: str = ""
    """Why this is not news: the server did not answer."""

    @property
    def failed(self) -> Status | None:
        """The stage that failed first, if one did."""
        return next((stage for stage in self.stages if stage.state == "failed"), None)


class Screen(Protocol):
    """Where a run is shown."""

    def update(self, view: View) -> None:
        """Show how it is now."""

    def end(self) -> None:
        """Leave the last picture standing."""


class LiveScreen:
    """Paints the stages on a terminal."""

    def __init__(self, console: Console) -> None:
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="ellipsis")

    def update(self, view: View) -> None:
        """Paint the run."""
        if not self.live.is_started:
            self.live.console.print(header(view), soft_wrap=True)
            self.live.start()
        table = stages_table(view)
        self.live.update(Group(table, Text(f"… {view.note}", "yellow")) if view.note else table, refresh=True)

    def end(self) -> None:
        """Leave the last picture standing."""
        self.live.stop()


class PlainScreen:
    """Writes a line when a stage changes, and now and then in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seen: dict[str, str] = {}
        self.last = 0.0

    def update(self, view: View) -> None:
        """Write what has changed since the last call."""
        if not self.seen:
            self._write("", header(view).plain)
        if view.note:
            self._write("note", view.note)
        for stage in view.stages:
            if stage.state != "waiting":
                self._write(stage.name, f"{stage.name}: {outcome(stage).plain}")
        if time.monotonic() - self.last > QUIET_SECONDS:
            self._write("run", f"run {view.name}: {view.state.lower()} since {_elapsed(view.created, None)}")

    def end(self) -> None:
        """Nothing is left to write."""

    def _write(self, key: str, line: str) -> None:
        if self.seen.get(key) != line:
            self.seen[key], self.last = line, time.monotonic()
            self.console.print(Text(line), soft_wrap=True)


def open_screen(console: Console) -> Screen:
    """Return the screen that suits where standard output goes."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def no_notes(run_id: str) -> Mapping[str, str]:
    """Say nothing about a run's pods."""
    return {}


@dataclass
class Watcher:
    """Looks at one run again and again. `notes` says what its pods say, by stage."""

    kfp: Kfp
    run_id: str
    notes: Notes = no_notes
    stages: list[Stage] | None = None

    def look(self) -> View:
        """Return the run as it is now. Raises as `Kfp.call`."""
        run = self.kfp.call(self.kfp.runs.run_service_get_run, self.run_id)
        if self.stages is None:
            self.stages = self._stages(run)
        found = statuses(self.stages or stages_seen(run), run)
        if any(stage.state in ("failed", "running", "pending", "starting") for stage in found):
            notes = self.notes(self.run_id)
            found = [_with_note(stage, notes.get(stage.name, "")) for stage in found]
        error = run.error.message if run.error and run.error.message else ""
        return replace(summary(self.kfp, run), stages=tuple(found), error=redact(error))

    def follow(self, screen: Screen) -> View:
        """Show the run until it has ended, and return it.

        Raises as `Kfp.call`, but a server that is out of order for a while does not end it. One that lets us look no
        longer, as when a token has expired, raises Transient: the run goes on.
        """
        view: View | None = None
        lost: float | None = None
        try:
            while True:
                try:
                    view, lost = self.look(), None
                except Transient as error:
                    lost = lost or time.monotonic()
                    if view is None or time.monotonic() - lost > PATIENCE_SECONDS:
                        raise Transient(
                            f"{error}. The run is not touched by that; {look_again(self.run_id)}"
                        ) from error
                    view = replace(view, note=str(error))
                except NotAllowed as error:
                    kind = Transient if view else NotAllowed
                    raise kind(f"{error}. The run is not touched by that; {look_again(self.run_id)}") from error
                screen.update(view)
                if view.state in FINISHED and lost is None:
                    return view
                time.sleep(POLL_SECONDS)
        finally:
            screen.end()

    def _stages(self, run: Any) -> list[Stage]:
        """Return the stages of the pipeline that the run is of, or none if that is gone."""
        spec, reference = run.pipeline_spec, run.pipeline_version_reference
        if not spec and reference and reference.pipeline_version_id:
            get = self.kfp.pipelines.pipeline_service_get_pipeline_version
            try:
                spec = self.kfp.call(get, reference.pipeline_id, reference.pipeline_version_id).pipeline_spec
            except NotFound:
                return []
        return stages_of(spec) if spec else []


def summary(kfp: Kfp, run: Any) -> View:
    """Return a run without its stages."""
    finished = run.finished_at if known(run.finished_at) else None
    url = run_url(kfp, run.run_id)
    return View(run.run_id, run.display_name or "", run.state or "PENDING", url, run.created_at, finished)


def recent(kfp: Kfp, limit: int) -> list[View]:
    """Return the newest runs of the namespace. Raises as `Kfp.call`."""
    query = {"namespace": kfp.namespace} if kfp.namespace else {}
    rows = kfp.rows(kfp.runs.run_service_list_runs, "runs", limit=limit, sort_by="created_at desc", **query)
    return [summary(kfp, run) for run in rows]


def find_run(kfp: Kfp, text: str) -> str:
    """Return the id of a run, given by its id, how that begins, or its name. Raises InvalidInput if that is not one."""
    if len(text) == 36 and text.count("-") == 4:
        return text
    found = [view for view in recent(kfp, SEARCHED) if view.run_id.startswith(text) or view.name == text]
    if len(found) == 1:
        return found[0].run_id
    if not found:
        raise InvalidInput(
            f"none of the newest {SEARCHED} runs is called {text}, or has an id like that: reasrm status"
        )
    some = ", ".join(view.run_id for view in found[:5])
    raise InvalidInput(f"{len(found)} runs are called {text}, or have an id like that; give one of {some}")


def raise_for(view: View) -> None:
    """Say how a run has ended: nothing if it succeeded.

    Raises:
        ReasrmError: it failed (exit 1); names the stage, its error, and what to do.
        Transient: it was stopped (exit 75).
    """
    if view.state == "SUCCEEDED":
        return
    if view.state in ("CANCELED", "CANCELING"):
        raise Transient(f"the run {view.run_id} was stopped; submit it again, and what is finished is used again")
    stage = view.failed
    where = f"in {stage.name}" if stage else "outside of any stage"
    why = (stage.message if stage else "") or view.error
    told = why or "KFP does not tell why: see that task's log there, or the pods with kubectl"
    raise ReasrmError(
        f"the run {view.run_id} failed {where}: {told}\n"
        f"look: {view.url}\n"
        f"if nothing has to change: reasrm status {view.run_id} --retry\n"
        "if something has: change it and submit again; what is finished is used again"
    )


def look_again(run_id: str) -> str:
    """Return what to type to see a run again, and to stop it."""
    return f"see it again: reasrm status {run_id} --watch; stop it: reasrm status {run_id} --stop"


def header(view: View) -> Text:
    """Return the line that names a run."""
    style = STATES.get(view.state, "dim")
    return Text.assemble(
        ("reasrm ", "bold"),
        (view.name, "bold cyan"),
        f"  {view.run_id}  ",
        (view.state.lower(), style),
        f"  {view.url}",
    )


def stages_table(view: View) -> Table:
    """Return the stages, one a line."""
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(width=1)
    table.add_column(width=max([9, *(len(stage.name) for stage in view.stages)]))
    table.add_column(ratio=1, overflow="fold")
    table.add_column(justify="right", width=9)
    for stage in view.stages:
        mark, style = MARKS.get(stage.state, (" ", "dim"))
        time_taken = _elapsed(stage.since, stage.until) if stage.state not in QUIET else ""
        table.add_row(Text(mark, style), Text(stage.name, style), outcome(stage), Text(time_taken, "dim"))
    return table


def runs_table(views: list[View]) -> RenderableType:
    """Return a table of runs."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "name", "state", "begun (UTC)"):
        table.add_column(heading, no_wrap=heading != "name", overflow="fold")
    table.add_column("took", justify="right", no_wrap=True)
    for view in views:
        begun = view.created.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if view.created else ""
        style = STATES.get(view.state, "dim")
        took = _elapsed(view.created, view.finished)
        table.add_row(view.run_id[:SHORT], Text(view.name), Text(view.state.lower(), style), begun, took)
    return table


def outcome(stage: Status) -> Text:
    """Return what a stage does, in words."""
    words = {"waiting": "", "cached": "taken from KFP's cache", "untold": "KFP does not tell what became of it"}
    text = words.get(stage.state, stage.state)
    if stage.total > 1 and stage.state not in QUIET:
        text = f"{text}, {stage.done} of {stage.total} parts done"
    style = {"failed": "red", "pending": "yellow", "cached": "cyan"}.get(stage.state, "")
    return Text(f"{text}: {stage.message}" if stage.message else text, style)


def to_json(view: View) -> str:
    """Return a run for other programs."""
    return json.dumps(_plain(view), indent=2)


def to_json_list(views: list[View]) -> str:
    """Return runs for other programs."""
    return json.dumps([_plain(view) for view in views], indent=2)


def _plain(view: View) -> Any:
    def text(value: Any) -> Any:
        return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value

    fields = {name: text(value) for name, value in asdict(view).items() if name != "note"}
    return fields | {"stages": [{name: text(value) for name, value in asdict(one).items()} for one in view.stages]}


def _with_note(stage: Status, note: str) -> Status:
    return replace(stage, message=stage.message or note) if stage.state not in ("done", "cached") else stage


def _elapsed(since: datetime | None, until: datetime | None) -> str:
    if since is None:
        return ""
    return duration(((until or datetime.now(UTC)) - since).total_seconds())
