"""`reasrm submit`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import (
    WHO,
    open_server,
    profile_option,
    recipe_option,
    redo_option,
    server_options,
    set_option,
)

if TYPE_CHECKING:
    from pipeline.client.endpoint import Kfp
    from pipeline.config import RunConfig
    from pipeline.profile import Profile

INTERRUPTED = 130


@click.command(
    epilog="\b\nExamples:\n"
    "  reasrm submit --recipe smoke-cluster --profile cpu --host http://localhost:8888 --namespace team\n"
    "  reasrm submit --recipe my-recipe.toml --profile trainjob --no-wait\n"
    "  reasrm submit --recipe smoke-cluster --set sft.epochs=2 --profile cpu --dry-run\n"
    "\n" + WHO + "\n\b\n"
    "Exit codes: 0 succeeded (or submitted, with --no-wait), 1 failed, 2 something has to be changed,\n"
    "75 stopped or the server is out of order, 130 Ctrl-C (the run goes on).\n"
)
@recipe_option
@set_option
@profile_option
@redo_option
@server_options
@click.option("--experiment", default="", metavar="NAME", help="KFP experiment to file it under.  [the recipe's]")
@click.option("--pipeline-name", default="reasrm", show_default=True, help="Pipeline that gets the version.")
@click.option("--service-account", default="", metavar="NAME", help="Who the pods are.  [the profile's: reasrm]")
@click.option("--run-name", default="", metavar="NAME", help="[the recipe's name and the time]")
@click.option("--no-wait", is_flag=True, help="Print the run's id and link, and end.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def submit(
    recipe: str,
    settings: tuple[str, ...],
    profile: str,
    redo: bool,
    host: str,
    namespace: str,
    token_file: Path | None,
    ca_file: Path | None,
    experiment: str,
    pipeline_name: str,
    service_account: str,
    run_name: str,
    no_wait: bool,
    dry_run: bool,
) -> None:
    """Run a recipe on a Kubeflow cluster and watch it.

    Compiles the recipe for a kind of cluster, uploads that as a version of the pipeline (the same content only once),
    starts a run of it and shows its stages until it ends. Ctrl-C ends the watching, not the run.
    """
    kfp = open_server(host, namespace, token_file, ca_file)
    config, cluster, package = _package(recipe, settings, profile, redo)
    group = experiment or config.experiment
    if dry_run:
        _say_outlook(kfp, config, package, pipeline_name, group)
        return
    from pipeline.client.submit import submit as submit_run

    name = run_name or _run_name(recipe)
    try:
        run = submit_run(
            kfp,
            config,
            package,
            pipeline_name=pipeline_name,
            experiment=group,
            service_account=service_account or cluster.service_account,
            run_name=name,
            description=f"Recipe {Path(recipe).stem}, profile {Path(profile).stem}.",
        )
    except KeyboardInterrupt:
        said = f"stopped; a run named {name} may have been made: see reasrm status before you submit again"
        click.secho(said, fg="yellow", err=True)
        sys.exit(INTERRUPTED)
    if no_wait:
        click.echo(f"{run.run_id}  {run.url}")
        return
    watch_to_the_end(kfp, run.run_id)


def watch_to_the_end(kfp: "Kfp", run_id: str) -> None:
    """Show a run until it ends; exits with 130 on Ctrl-C, which leaves the run alone. Raises as `raise_for`."""
    from pipeline.client.watch import look_again, raise_for

    try:
        from rich.console import Console

        from pipeline.client.pods import PodNotes
        from pipeline.client.watch import Watcher, open_screen

        view = Watcher(kfp, run_id, PodNotes(kfp.namespace)).follow(open_screen(Console(highlight=False)))
    except KeyboardInterrupt:
        click.secho(f"the run goes on; {look_again(run_id)}", fg="yellow", err=True)
        sys.exit(INTERRUPTED)
    raise_for(view)
    click.echo(f"succeeded  {view.url}")


def _package(recipe: str, settings: tuple[str, ...], profile: str, redo: bool) -> "tuple[RunConfig, Profile, bytes]":
    """Return the recipe's settings, the cluster's, and the compiled pipeline."""
    from pipeline.client.submit import check_places
    from pipeline.compiler import compile_pipeline
    from pipeline.config import load_recipe
    from pipeline.profile import load_profile

    config, cluster = load_recipe(recipe, settings), load_profile(profile)
    check_places(config)
    return config, cluster, compile_pipeline(config, cluster, redo=redo)


def _say_outlook(kfp: "Kfp", config: "RunConfig", package: bytes, pipeline_name: str, experiment: str) -> None:
    from pipeline.client.submit import outlook

    def said(there: Any) -> str:
        return "is there" if there else "would be made"

    found = outlook(kfp, config, package, pipeline_name=pipeline_name, experiment=experiment)
    click.echo(f"server      {kfp.host}, namespace {kfp.namespace or '(none)'}")
    click.echo(f"pipeline    {pipeline_name}: {said(found.pipeline_id)}")
    click.echo(f"version     {found.version}: {said(found.version_id)} ({len(package) / 1000:.1f} kB)")
    click.echo(f"experiment  {experiment}: {said(found.experiment_id)}")
    click.echo(f"parameters  {', '.join(found.parameters) or 'all as compiled'}")
    click.echo("nothing was done")


def _run_name(recipe: str) -> str:
    from datetime import UTC, datetime

    return f"{Path(recipe).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
