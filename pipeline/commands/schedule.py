"""`reasrm schedule`: the schedules of a file, on a KFP server."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from components.core.errors import InvalidInput, ReasrmError
from pipeline.commands.options import WHO, open_console, open_server, server_options

if TYPE_CHECKING:
    from pipeline.client.schedules.live import Server
    from pipeline.client.schedules.plan import Actual, Plan

FILE = Path("schedules.toml")
CHANGES = 2
"""Exit code of `plan --detailed-exitcode` if there is something to do, as of terraform; errors are 1 then."""
INTERRUPTED = 130
HELP = """Keep schedules (recurring runs) as a file.

    `plan` shows what differs between the file and the server, `apply` makes it so. Recurring runs that were made in
    another way are never touched.

    Times are UTC, unless the administrator has set CRON_SCHEDULE_TIMEZONE for ml-pipeline-scheduledworkflow: then cron
    is read in that zone. KFP cannot change a recurring run: a changed schedule is made anew, and the old one is deleted
    once none of its runs is under way.
"""

_file = click.option(
    "--file",
    "-f",
    type=click.Path(path_type=Path, dir_okay=False),
    default=FILE,
    show_default=True,
    help="The schedules.",
)
_prune = click.option("--prune", is_flag=True, help="Also delete schedules of this tool that are not in the file.")
_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
_name = click.argument("name")


@click.group(
    help=HELP,
    epilog="\b\nExamples:\n"
    "  reasrm schedule plan -f schedules.toml --host http://localhost:8888 --namespace team\n"
    "  reasrm schedule apply -f schedules.toml --yes\n"
    "  reasrm schedule pause weekly\n"
    "\n" + WHO,
)
def schedule() -> None:
    """Keep schedules as a file."""


@schedule.command()
@_file
@_prune
@_json
@click.option(
    "--detailed-exitcode",
    is_flag=True,
    help="Exit with 0 if nothing is to be done, with 2 if something is; errors are 1, or 75 if the server is away.",
)
@server_options
def plan(file: Path, prune: bool, as_json: bool, detailed_exitcode: bool, **server: Any) -> None:
    """Show what `apply` would do; nothing is changed."""
    try:
        found, now = _plan(file, prune, _open(**server))
    except ReasrmError as error:
        if detailed_exitcode and error.exit_code == CHANGES:
            raise ReasrmError(str(error)) from error
        raise
    if as_json:
        from pipeline.client.schedules.show import plan_json

        click.echo(json.dumps(plan_json(found), indent=2, ensure_ascii=False))
    else:
        _show(found, now)
    if detailed_exitcode and not found.empty:
        sys.exit(CHANGES)


@schedule.command()
@_file
@_prune
@_yes
@server_options
def apply(file: Path, prune: bool, yes: bool, **server: Any) -> None:
    """Make the server's schedules those of the file.

    The new schedule is made before the old one is disabled, and two are never enabled together. A run that is under way
    goes on. Applied again after a failure, it finishes what was begun.
    """
    from pipeline.client.schedules.apply import apply_plan

    at = _open(**server)
    found, now = _plan(file, prune, at)
    _show(found, now)
    if found.empty:
        return
    if not yes:
        _confirm("Do this?")
    apply_plan(at, found, now, click.echo)
    click.echo("applied")


@schedule.command(name="list")
@click.option("--all", "everybody", is_flag=True, help="Also recurring runs that were made in another way.")
@_json
@server_options
def list_schedules(everybody: bool, as_json: bool, **server: Any) -> None:
    """List the schedules of the namespace."""
    from pipeline.client.schedules.show import list_json, list_table

    found = [one for one in _open(**server).read() if everybody or one.owner]
    if as_json:
        click.echo(json.dumps(list_json(found), indent=2, ensure_ascii=False))
    elif found:
        open_console().print(list_table(found))
    else:
        click.echo("no schedules" + ("" if everybody else " of this tool; --all shows others"))


@schedule.command()
@_name
@server_options
def pause(name: str, **server: Any) -> None:
    """Start no more runs of NAME until it is resumed or its file applied; a run that is under way goes on."""
    _switch(name, False, _open(**server))


@schedule.command()
@_name
@server_options
def resume(name: str, **server: Any) -> None:
    """Start runs of NAME again.

    If a slot has passed meanwhile, KFP starts one run at once, for the latest of them.
    """
    _switch(name, True, _open(**server))


@schedule.command()
@_name
@_yes
@server_options
def delete(name: str, yes: bool, **server: Any) -> None:
    """Delete NAME on the server. If it is still in a file, the next `apply` makes it again."""
    from pipeline.client.schedules.apply import retire

    at = _open(**server)
    owned = _owned(name, at)
    if not yes:
        _confirm(f"Delete the schedule {name}?")
    retire(at, name, owned, click.echo)


def _open(**options: Any) -> "Server":
    from pipeline.client.schedules.live import Server

    return Server(open_server(**options))


def _plan(file: Path, prune: bool, server: "Server") -> tuple["Plan", datetime]:
    """Compare the file with the server."""
    from pipeline.client.schedules.desired import desired
    from pipeline.client.schedules.model import load_schedules
    from pipeline.client.schedules.plan import make_plan

    schedules, now = load_schedules(file), datetime.now(UTC)
    for one in schedules.schedule:
        for remark in one.remarks():
            click.echo(f"note: {remark}", err=True)
    wanted = desired(schedules, file.parent)
    for each in wanted:
        server.check(each)
    outdated = server.outdated(wanted)
    return make_plan(wanted, server.read(), group=schedules.group, prune=prune, outdated=outdated), now


def _show(plan: "Plan", now: datetime) -> None:
    from pipeline.client.schedules.show import plan_text

    open_console().print(plan_text(plan, now), soft_wrap=True)


def _confirm(question: str) -> None:
    """Go on if the user says yes; ends the program otherwise. Raises InvalidInput where nobody can be asked."""
    try:
        agreed = click.confirm(question)
    except click.Abort:
        click.echo(err=True)
        if not sys.stdin.isatty():
            raise InvalidInput("nothing was changed; without a terminal give --yes") from None
        click.secho("nothing was changed", fg="yellow", err=True)
        sys.exit(INTERRUPTED)
    if not agreed:
        click.secho("nothing was changed", fg="yellow", err=True)
        sys.exit(1)


def _switch(name: str, on: bool, server: "Server") -> None:
    from pipeline.client.schedules.apply import switch

    switch(server, _owned(name, server), on=on)
    click.echo(f"{name} is {'enabled' if on else 'paused'}; `apply` sets what its file says")


def _owned(name: str, server: "Server") -> list["Actual"]:
    group, _, short = name.rpartition("/")
    found = server.read()
    owned = [one for one in found if one.owner == (group, short)]
    if not owned:
        from pipeline.client.schedules.show import full_name

        there = ", ".join(sorted({full_name(one) for one in found if one.owner})) or "none"
        raise InvalidInput(f"there is no schedule {name!r} of this tool in the namespace; there are: {there}")
    return owned
