"""What `reasrm run` shows: one line per stage while it works, then the scores and where to look further.

On a terminal the lines are painted over; elsewhere each event is a line of its own, so that a log stays readable.
"""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from components.core.judges import in_order
from pipeline.commands.lineage import SERVERS
from pipeline.local import SHOWN, Run, Watcher

QUIET_SECONDS = 30.0
MARKS: Mapping[str, tuple[str, str]] = {
    "done": ("✓", "green"),
    "reused": ("✓", "green"),
    "running": ("▸", "cyan"),
    "failed": ("✗", "red"),
}
JUDGES = {"base": "base", "sft": "SFT", "grpo": "GRPO"}
Status = Mapping[str, Any]


class LiveScreen(Watcher):
    """Paints the stages on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.note = ""
        self.pace = Pace()
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible")

    def begin(self, run: Run) -> None:
        """Show which run this is and where it keeps its files."""
        self.console.print(header(run))
        self.live.start()
        self.update(run)

    def say(self, what: str) -> None:
        """Show what is being got ready, until it is."""
        self.note = what
        self.live.update(self._paint({}), refresh=True)

    def update(self, run: Run) -> None:
        """Paint what the stages say now."""
        self.live.update(self._paint(run.statuses), refresh=True)

    def end(self, run: Run) -> None:
        """Leave the last picture standing."""
        self.note = ""
        self.update(run)
        self.live.stop()

    def _paint(self, statuses: Mapping[str, Status]) -> RenderableType:
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        table.add_column(width=1)
        table.add_column(width=9)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", width=15)
        for stage in SHOWN:
            status = statuses.get(stage, {})
            mark, style = MARKS.get(status.get("status", ""), (" ", "dim"))
            what = self._work(status) if status.get("status") == "running" else _outcome(status)
            table.add_row(Text(mark, style), Text(stage, style), what, Text(self._time(stage, status), "dim"))
        return Group(table, Text(f"… {self.note}", "dim")) if self.note else table

    def _work(self, status: Status) -> RenderableType:
        if not status.get("total"):
            return Text(status.get("what", "starting"), "dim")
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(
            ProgressBar(total=status["total"], completed=status["done"], width=24, complete_style="cyan"),
            Text(f"{status['done']}/{status['total']} {status['what']}"),
            Text(str(status.get("note", "")), "cyan"),
        )
        return row

    def _time(self, stage: str, status: Status) -> str:
        if "started" not in status:
            return ""
        elapsed = duration(status.get("ended", time.time()) - status["started"])
        left = self.pace.seconds_left(stage, status) if status["status"] == "running" else None
        return elapsed if left is None else f"{elapsed} < {duration(left)}"


class PlainScreen(Watcher):
    """Writes a line when a stage starts, when it ends, and now and then in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seen: dict[str, str] = {}
        self.last = time.monotonic()

    def begin(self, run: Run) -> None:
        """Say which run this is and where it keeps its files."""
        self._write(header(run).plain)

    def say(self, what: str) -> None:
        """Say what is being got ready."""
        if what:
            self._write(what)

    def update(self, run: Run) -> None:
        """Write what has changed since the last call."""
        for stage in SHOWN:
            status = run.statuses.get(stage)
            if status is None:
                continue
            if self.seen.get(stage) != status["status"]:
                self.seen[stage] = status["status"]
                self._write(plain_line(stage, status))
            elif status["status"] == "running" and time.monotonic() - self.last > QUIET_SECONDS:
                self._write(plain_line(stage, status))

    def end(self, run: Run) -> None:
        """Write how the last stage ended."""
        self.update(run)

    def _write(self, line: str) -> None:
        self.last = time.monotonic()
        self.console.print(Text(line), soft_wrap=True)


class Pace:
    """How long a piece of work will still take, from how much was done since it was first seen."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str], tuple[float, float]] = {}

    def seconds_left(self, stage: str, status: Status) -> float | None:
        """Return the seconds left, or None while that cannot be told."""
        if not status.get("total"):
            return None
        now, done = time.time(), status["done"]
        since, before = self.first.setdefault((stage, status["what"]), (now, done))
        if done <= before or now <= since:
            return None
        return float((status["total"] - done) * (now - since) / (done - before))


def open_screen(console: Console) -> Watcher:
    """Return the screen that suits where standard output goes."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def header(run: Run) -> Text:
    """Return the line that names the run."""
    return Text.assemble(
        ("reasrm ", "bold"), (run.recipe, "bold cyan"), f"  run {run.run_id}  in {shorten(run.folder)}"
    )


def plain_line(stage: str, status: Status) -> str:
    """Return one line about a stage, for a log."""
    if status["status"] != "running":
        seconds = duration(status.get("ended", time.time()) - status["started"])
        return f"{stage}: {_outcome(status).plain} ({seconds})"
    if not status.get("total"):
        return f"{stage}: started"
    return f"{stage}: {status['done']}/{status['total']} {status['what']} {status.get('note', '')}".rstrip()


def summary(run: Run) -> Iterable[RenderableType]:
    """Yield what came of a finished run: scores, the registered version, and what to type next."""
    benchmark, release = run.manifest("benchmark"), run.manifest("publish")
    if run.nothing_new:
        yield Text.assemble((run.nothing_new, "green"), "  nothing was trained and nothing registered")
    if benchmark is not None:
        yield scores_table(benchmark.statistics)
        benchmarks = suites_table(benchmark.statistics)
        if benchmarks is not None:
            yield benchmarks
    if release is not None:
        facts = release.statistics
        name = f"{facts['model_name']}/{facts['version']}"
        passed = bool(facts["passed"])
        yield Text.assemble(
            ("gate passed" if passed else "gate not passed", "green" if passed else "yellow"),
            f"  registered as {name}" + (", promoted" if facts["promoted"] else ", alias not moved"),
        )
        against: Any = facts["reasons"] if not passed else [facts["outcome"]]
        for reason in [] if facts["promoted"] else against:
            yield Text(f"  {reason}", "yellow")
        yield Text.assemble(("report   ", "dim"), shorten(run.report))
        yield Text.assemble(("scores   ", "dim"), shorten(run.benchmark_report))
        yield Text.assemble(("lineage  ", "dim"), f"reasrm lineage {name}{_in_folder(run)}")
        yield Text.assemble(("MLflow   ", "dim"), f"reasrm ui{_in_folder(run)}")


def scores_table(statistics: Mapping[str, Any]) -> Table:
    """Return the judges on the held-out pairs side by side, in percent."""
    table = Table(
        title=f"{statistics['num_pairs']} held-out pairs, each judged in both orders",
        caption="valid: ends with a verdict; strict: right in both orders; consistent: same in both; "
        "flipped: talked round by an attack in the worse answer",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("judge")
    for heading in ("valid", "accuracy", "95 % interval", "strict", "consistent", "flipped"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in in_order(statistics["scores"]):
        scores = statistics["scores"][name]
        accuracy = scores["accuracy"]
        table.add_row(
            JUDGES.get(name, name),
            _rate(scores["valid_rate"]),
            _rate(accuracy),
            f"{percent(accuracy.get('low'))} to {percent(accuracy.get('high'))}",
            _rate(scores["strict_accuracy"]),
            _rate(scores["position_consistency"]),
            _rate(statistics["injection"].get(name, {}).get("flip_rate")),
        )
    return table


def suites_table(statistics: Mapping[str, Any]) -> Table | None:
    """Return the judges' scores on the benchmarks, official and ours, in percent; None without any."""
    if not statistics["suites"]:
        return None
    table = Table(
        title="Benchmarks",
        caption="official: as the benchmark's own code scores it; ours: both orders, both right, no verdict is wrong",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("benchmark")
    table.add_column("judge")
    for heading in ("official", "ours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for suite, by_judge in statistics["suites"].items():
        for name in in_order(by_judge):
            scores = by_judge[name]
            table.add_row(suite, JUDGES.get(name, name), percent(scores.get("official")), percent(scores.get("ours")))
    return table


def _rate(rate: Mapping[str, Any] | None) -> str:
    return percent(rate["value"] if rate else None)


def percent(share: float | None) -> str:
    """Return a share as a percentage, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return seconds as a reader's clock: 4.2 s, 1:05, 2:03:00."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shorten(path: Path) -> str:
    """Return a path relative to where the user stands, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _outcome(status: Status) -> Text:
    if status.get("status") == "reused":
        return Text.assemble(("reused  ", "cyan"), str(status.get("summary", "")))
    return Text(str(status.get("summary", "")), "red" if status.get("status") == "failed" else "")


def _in_folder(run: Run) -> str:
    directory = shorten(run.folder.parents[1])
    named = any(os.environ.get(name) for name in SERVERS)  # lineage would look there
    return "" if directory == ".reasrm" and not named else f" --dir {directory}"
