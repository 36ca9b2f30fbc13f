"""A difference on the terminal: one table a subject, and only what differs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from components.adapters.page import plain
from pipeline.lineage.difference import Change, Difference, Paired
from pipeline.lineage.text import short

NUM_IDS_SHOWN = 3
LIKELY = 0.05
"""p-values below it are told apart in words; no more than a habit."""
PARTS = {"distil": "distilled from", "rl": "reinforcement learning", "heldout": "held out"}


def to_json(difference: Difference) -> str:
    """Return all of it as JSON, every id included."""
    return json.dumps(asdict(difference), indent=1, ensure_ascii=False)


def parts(found: Difference) -> Iterator[RenderableType]:
    """Yield what the terminal shows."""
    yield Text.assemble(("from ", "dim"), (found.old, "bold"), (" to ", "dim"), (found.new, "bold"))
    if found.same_stages:
        yield Text(f"the very same artifacts: {', '.join(found.same_stages)}", "dim")
    if any(part.added or part.removed or part.changed for part in found.data):
        yield _data(found)
    for move in found.moved:
        yield Text(f"{len(move.ids)} pairs moved from {move.old} to {move.new}: {_ids(move.ids)}")
    for name, listed in (
        ("went on from", found.started),
        ("data and models read", found.sources),
        ("settings", found.config),
        ("code", found.code),
        ("images and commits", found.environment),
        ("teacher", found.teacher),
    ):
        if listed:
            yield _changes(name, listed, found)
    if found.scores:
        yield _scores(found)
    if found.paired is not None:
        yield Text(paired_text(found.paired))
    for note in found.notes:
        yield Text(f"note: {note}", "yellow")
    if len(found.same_stages) and not any(
        (found.started, found.config, found.code, found.sources, found.teacher, found.scores)
    ):
        yield Text("nothing that was compared differs")


def _data(found: Difference) -> Table:
    table = _table("pairs", "part", (found.old, found.new, "came in", "went out", "changed"))
    for part in found.data:
        cells = [str(part.num_old), str(part.num_new)]
        cells += [f"{len(ids)}{f' ({_ids(ids)})' if ids else ''}" for ids in (part.added, part.removed, part.changed)]
        table.add_row(PARTS.get(part.part, part.part), *map(Text, cells))
    return table


def _ids(ids: Sequence[str]) -> str:
    return plain(", ".join(ids[:NUM_IDS_SHOWN])) + (", ..." if len(ids) > NUM_IDS_SHOWN else "")


def _changes(name: str, listed: Sequence[Change], found: Difference) -> Table:
    table = _table(name, "", (found.old, found.new))
    for change in listed:
        table.add_row(Text(plain(change.name)), *(Text(_cell(value)) for value in (change.old, change.new)))
    return table


def _cell(value: Any) -> str:
    return "-" if value is None else plain(short(value))


def _scores(found: Difference) -> Table:
    table = _table("scores in percent, each on its own pairs", "", (found.old, found.new))
    for score in found.scores:
        table.add_row(Text(plain(score.name)), *(Text(_score(value)) for value in (score.old, score.new)))
    return table


def _score(value: tuple[float, ...] | None) -> str:
    if value is None:
        return "-"
    shown = [f"{100 * number:.1f}" for number in value]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else shown[0]


def paired_text(paired: Paired) -> str:
    """Return the paired comparison in words."""
    interval = f" [{100 * paired.interval[0]:+.1f}, {100 * paired.interval[1]:+.1f}]" if paired.interval else ""
    verdict = "more than luck would do" if paired.p_value < LIKELY else "no more than luck may do"
    return (
        f"on the {paired.num_pairs} held-out pairs of both ({paired.num_clusters} prompts), right in both orders: "
        f"{100 * paired.old:.1f} % and {100 * paired.new:.1f} %, {100 * paired.difference:+.1f} points{interval}; "
        f"only the new one right on {paired.only_new} prompts, only the old one on {paired.only_old}, "
        f"p = {paired.p_value:.3g} (exact sign test): {verdict}"
    )


def _table(title: str, first: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    return table
