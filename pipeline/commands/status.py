"""`reasrm status`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import WHO, open_console, open_server, server_options
from pipeline.commands.submit import watch_to_the_end

if TYPE_CHECKING:
    from pipeline.client.endpoint import Kfp


@click.command(
    epilog="\b\nExamples:\n"
    "  reasrm status                      the newest runs\n"
    "  reasrm status 5f0c2d1e             the stages of one: its id, how that begins, or its name\n"
    "  reasrm status 5f0c2d1e --watch     until it ends; exit codes as of reasrm submit\n"
    "  reasrm status 5f0c2d1e --retry     a failed run once more, from where it failed\n"
    "\n" + WHO
)
@click.argument("run", default="", metavar="[RUN]")
@server_options
@click.option("--watch", is_flag=True, help="Show it until it ends. Ctrl-C leaves the run alone.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--stop", is_flag=True, help="Stop the run: its pods end, training keeps its last checkpoint.")
@click.option("--retry", is_flag=True, help="Run what failed again, with the same settings and version.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many runs to list.")
def status(
    run: str,
    host: str,
    namespace: str,
    token_file: Path | None,
    ca_file: Path | None,
    watch: bool,
    as_json: bool,
    stop: bool,
    retry: bool,
    limit: int,
) -> None:
    """Show runs on a Kubeflow cluster: the newest ones, or the stages of one."""
    if sum((watch, as_json, stop)) > 1 or sum((retry, as_json, stop)) > 1:
        raise click.UsageError("--json, --stop and --watch or --retry do not go together")
    if not run and (watch or stop or retry):
        raise click.UsageError("name the run: reasrm status lists them")
    kfp = open_server(host, namespace, token_file, ca_file)
    if not run:
        _list(kfp, limit, as_json)
        return
    from pipeline.client.watch import find_run

    run_id = find_run(kfp, run)
    if stop:
        _stop(kfp, run_id)
        return
    if retry:
        kfp.call(kfp.runs.run_service_retry_run, run_id)
        click.echo(f"retrying {run_id}")
    if watch:
        watch_to_the_end(kfp, run_id)
    elif not retry:
        _show(kfp, run_id, as_json)


def _stop(kfp: "Kfp", run_id: str) -> None:
    """End a run; one that is ending or was stopped already is none the worse for it."""
    from components.core.errors import InvalidInput
    from pipeline.client.endpoint import NotAllowed, NotFound

    try:
        kfp.call(kfp.runs.run_service_terminate_run, run_id)
    except (NotAllowed, NotFound):
        raise
    except InvalidInput:  # KFP refuses what it has begun to stop; so does it after an answer of ours was lost
        state = kfp.call(kfp.runs.run_service_get_run, run_id).state
        if state == "CANCELED":
            click.echo(f"{run_id} was stopped before; what is finished stays, and a new submission uses it")
            return
        if state != "CANCELING":
            raise
    click.echo(f"stopping {run_id}; what is finished stays, and a new submission uses it")


def _list(kfp: "Kfp", limit: int, as_json: bool) -> None:
    from pipeline.client.watch import recent, runs_table, to_json_list

    views = recent(kfp, limit)
    if not views:
        kfp.health()  # whatever answers with JSON looks like a KFP without runs
    if as_json:
        click.echo(to_json_list(views))
    elif views:
        open_console().print(runs_table(views))
    else:
        click.echo("no runs yet; start one with reasrm submit")


def _show(kfp: "Kfp", run_id: str, as_json: bool) -> None:
    from rich.console import Console

    from pipeline.client.pods import PodNotes
    from pipeline.client.watch import Watcher, header, stages_table, to_json

    view = Watcher(kfp, run_id, PodNotes(kfp.namespace)).look()
    if as_json:
        click.echo(to_json(view))
        return
    console = Console(highlight=False)
    console.print(header(view), soft_wrap=True)
    console.print(stages_table(view))
    if view.error:
        console.print(view.error, style="red", markup=False)
