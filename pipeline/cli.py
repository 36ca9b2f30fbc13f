"""The command `reasrm`. Everything heavy is imported inside the commands, so that --help answers at once."""

import contextlib
import logging
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import click

from components.core.errors import ReasrmError
from pipeline.commands.doctor import doctor
from pipeline.commands.judge import judge
from pipeline.commands.lineage import lineage
from pipeline.commands.options import profile_option, recipe_option, redo_option, set_option
from pipeline.commands.promote import promote
from pipeline.commands.retention import retention
from pipeline.commands.rollback import rollback
from pipeline.commands.schedule import schedule
from pipeline.commands.serve import serve
from pipeline.commands.status import status
from pipeline.commands.submit import submit
from pipeline.commands.upload import upload

DIRECTORY = Path(".reasrm")
EXAMPLES = """\b
Examples:
  reasrm run --recipe demo                       train a small judge on this machine
  reasrm run --recipe demo --set sft.epochs=2    the same with a setting changed
  reasrm lineage reasrm-demo@champion            what that model was made from
  reasrm judge --model reasrm-demo --pairs p.jsonl  what it says about pairs of yours
  reasrm serve --model reasrm-demo               the same over HTTP
  reasrm ui                                      look at the runs in MLflow
  reasrm compile --recipe demo --output p.yaml   the pipeline for Kubeflow
  reasrm submit --recipe mine.toml --host URL    run it there and watch
"""

folder_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY,
    show_default=True,
    help="Folder that holds the servers' data, models and runs.",
)


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train reasoning reward models: preference pairs in, a benchmarked and registered judge out."""


@cli.command(epilog="\b\nExample:\n  reasrm run --recipe demo --set grpo.steps=8 --dir /data/reasrm\n")
@recipe_option
@set_option
@folder_option
def run(recipe: str, settings: tuple[str, ...], directory: Path) -> None:
    """Run the whole pipeline on this machine.

    Starts an S3 server and an MLflow server of its own. Run it again after a crash or a change: what is finished is
    used again, what was under way goes on where it was.
    """
    from rich.console import Console

    from pipeline.config import load_recipe
    from pipeline.local import run_local
    from pipeline.screen import open_screen, summary

    console = Console(highlight=False)
    done = run_local(load_recipe(recipe, settings), directory, recipe=Path(recipe).stem, watcher=open_screen(console))
    console.print()
    for part in summary(done):
        console.print(part, soft_wrap=not hasattr(part, "columns"))


@cli.command(
    epilog="\b\nExamples:\n  reasrm compile --recipe demo --output pipeline.yaml\n"
    "  reasrm compile --recipe my-recipe.toml --profile trainjob --output pipeline.yaml\n"
    "  reasrm compile --recipe demo --gitops --namespace team --output manifests.yaml\n"
)
@recipe_option
@set_option
@profile_option
@redo_option
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the YAML.")
@click.option(
    "--check", type=click.Path(path_type=Path, dir_okay=False), help="Compare with this file instead of writing."
)
@click.option(
    "--gitops", is_flag=True, help="Write Pipeline and PipelineVersion resources instead, for kubectl or Argo CD."
)
@click.option("--namespace", default="kubeflow", show_default=True, help="Of these resources: where KFP itself runs.")
def compile(
    recipe: str,
    settings: tuple[str, ...],
    profile: str,
    redo: bool,
    output: Path | None,
    check: Path | None,
    gitops: bool,
    namespace: str,
) -> None:
    """Compile the pipeline for Kubeflow Pipelines, with the recipe's settings as the parameters' defaults.

    The recipe says what is trained, the profile on what kind of cluster: cpu (no GPU), gpu (one machine of eight GPUs a
    task), trainjob (SFT and GRPO on several machines), or a .toml file of your own like pipeline/profiles/gpu.toml.
    """
    from pipeline.compiler import check_compiled, compile_pipeline, local_paths, write
    from pipeline.config import load_recipe
    from pipeline.gitops import gitops_manifests
    from pipeline.profile import load_profile

    if (output is None) == (check is None) or (gitops and output is None):
        raise click.UsageError("give either --output FILE or --check FILE (--gitops goes with --output)")
    config, cluster = load_recipe(recipe, settings), load_profile(profile)
    if output is not None:
        data = (
            gitops_manifests(config, cluster, namespace=namespace)
            if gitops
            else compile_pipeline(config, cluster, redo=redo)
        )
        write(data, output)
        use = "apply it with kubectl" if gitops else "upload it in Kubeflow's UI under Pipelines"
        click.echo(f"wrote {output} ({len(data) / 1000:.1f} kB); {use}")
        for setting in local_paths(config):
            click.secho(f"a pod does not see {setting}; put it on S3: reasrm upload --help", fg="yellow", err=True)
    elif check is not None:
        again = "".join(f" --set {setting}" for setting in settings)
        command = f"reasrm compile --recipe {recipe}{again} --profile {profile} --output {check}"
        check_compiled(config, cluster, check, command)
        click.echo(f"{check} is up to date with recipe {recipe}, profile {profile}")


@cli.command()
@folder_option
def ui(directory: Path) -> None:
    """Start the MLflow UI on a folder's runs and keep it up until Ctrl-C."""
    import threading

    from pipeline.services import Services

    with Services(directory.absolute()) as services:
        click.echo(f"MLflow is at {services.environment()['MLFLOW_TRACKING_URI']} - stop it with Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@cli.command()
def recipes() -> None:
    """List the recipes that come with reasrm."""
    from pipeline.config import recipe_names, recipe_path

    names = recipe_names()
    for name in names:
        first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
        click.echo(f"{name:<{max(map(len, names))}}  {first.removeprefix('#').strip()}")


for command in (
    judge, serve, lineage, promote, rollback, submit, status, schedule, retention, doctor, upload,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; the exit code tells what kind of failure it was (see components.core.errors)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cli.main(arguments, prog_name="reasrm", standalone_mode=False)
        code: Any = 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.secho("stopped; run the same command again to go on where it was", fg="yellow", err=True)
        code = 130
    except ReasrmError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        code = error.exit_code
    except Exception as error:
        click.secho(f"error: {type(error).__name__}: {error}\ntraceback: {_keep_traceback()}", fg="red", err=True)
        code = 1
    sys.exit(code)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _keep_traceback() -> Path:
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="reasrm-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return Path(file.name)


if __name__ == "__main__":
    main()
