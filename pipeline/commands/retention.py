"""`reasrm retention`: what of old runs may go."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from pipeline.retention import Item, Plan

DEFAULT = Path(".reasrm")
Command = TypeVar("Command", bound=Callable[..., object])


def _options(command: Command) -> Command:
    for option in reversed(
        (
            click.option("--keep-runs", type=click.IntRange(1), default=10, show_default=True, help="Newest runs."),
            click.option("--keep-days", type=click.FloatRange(0), default=30.0, show_default=True, help="Days."),
            click.option("--root", default="s3://reasrm/artifacts", show_default=True, help="The runs' artifact_root."),
            click.option(
                "--dir",
                "directory",
                type=click.Path(path_type=Path, file_okay=False),
                help="Folder of local runs. Without it: the servers that the environment names, else .reasrm.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group()
def retention() -> None:
    """Free the space of old runs.

    What a registered version was made from always stays, of every version of every model, the rejected ones too; so do
    the newest runs, those that are running, and all that is younger than some days. To let a version's artifacts go,
    delete the version in the registry first.
    """


@retention.command(epilog="\b\nExample:\n  reasrm retention plan --keep-runs 4 --keep-days 14\n")
@_options
def plan(keep_runs: int, keep_days: float, root: str, directory: Path | None) -> None:
    """Show what may go, and how much that is. Deletes nothing."""
    with _servers(directory):
        _show(_look(keep_runs, keep_days, root)())
    given = f"--keep-runs {keep_runs} --keep-days {keep_days:g} --root {root}" + (
        f" --dir {directory}" if directory else ""
    )
    click.echo(f"nothing was deleted; to do it: reasrm retention apply {given}")


@retention.command(epilog="\b\nExample:\n  reasrm retention apply --keep-runs 4 --keep-days 14\n")
@_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def apply(keep_runs: int, keep_days: float, root: str, directory: Path | None, yes: bool) -> None:
    """Delete what the plan shows, after looking once more: work in progress of finished stages first."""
    from components.adapters.storage import Storage
    from pipeline.retention import apply_plan

    with _servers(directory):
        look = _look(keep_runs, keep_days, root)
        found = look()
        _show(found)
        if not found.items or not (yes or click.confirm(f"delete {_size(found.size)}?")):
            return
        freed = apply_plan(
            found,
            look,
            Storage.from_env(),
            lambda item: click.echo(f"deleted {_line(item)}"),
            lambda item: click.echo(f"spared  {_line(item)}: needed or changed meanwhile"),
        )
    click.echo(f"freed {_size(freed)}")


def _look(keep_runs: int, keep_days: float, root: str) -> "Callable[[], Plan]":
    from datetime import UTC, datetime

    from components.adapters.model_versions import list_versions
    from components.adapters.promotions import log_places
    from components.adapters.storage import Storage
    from components.adapters.tracking import list_runs
    from pipeline.retention import Policy, make_plan

    storage, policy = Storage.from_env(), Policy(keep_runs, keep_days)
    return lambda: make_plan(root, storage, list_versions(), list_runs(), policy, datetime.now(UTC), log_places())


def _show(found: "Plan") -> None:
    for item in found.items:
        click.echo(_line(item))
    for why, size in sorted(found.kept.items()):
        if size:
            click.echo(f"stays    {_size(size):>10}  {why}")
    click.echo(f"may go   {_size(found.size):>10}")


def _line(item: "Item") -> str:
    return f"{item.kind:<24} {_size(item.size):>10}  {item.uri}"


def _size(size: int) -> str:
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


@contextlib.contextmanager
def _servers(directory: Path | None) -> Iterator[None]:
    if directory is None and os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    from pipeline.local import serving

    with serving((directory or DEFAULT).absolute()):
        yield
