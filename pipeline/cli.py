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

DIRECTORY = Path(".reasrm")
EXAMPLES = """\b
Examples:
  reasrm run --recipe demo                       train a small judge on this machine
  reasrm run --recipe demo --set sft.epochs=2    the same with a setting changed
  reasrm lineage reasrm-demo@champion            what that model was made from
  reasrm ui                                      look at the runs in MLflow
  reasrm compile --recipe demo --output p.yaml   the pipeline for Kubeflow
"""

folder_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY,
    show_default=True,
    help="Folder that holds the servers' data, models and runs.",
)
recipe_option = click.option("--recipe", required=True, help="A recipe's name (see `reasrm recipes`) or a .toml file.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. sft.epochs=2. Repeatable."
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


@cli.command(epilog="\b\nExample:\n  reasrm compile --recipe demo --output pipeline.yaml\n")
@recipe_option
@set_option
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the YAML.")
@click.option(
    "--check", type=click.Path(path_type=Path, dir_okay=False), help="Compare with this file instead of writing."
)
def compile(recipe: str, settings: tuple[str, ...], output: Path | None, check: Path | None) -> None:
    """Compile the pipeline for Kubeflow Pipelines, with the recipe's settings as the parameters' defaults."""
    from pipeline.compiler import check_compiled, write_compiled
    from pipeline.config import load_recipe

    if (output is None) == (check is None):
        raise click.UsageError("give either --output FILE or --check FILE")
    config = load_recipe(recipe, settings)
    if output is not None:
        size = write_compiled(config, output)
        click.echo(f"wrote {output} ({size / 1000:.1f} kB); upload it in Kubeflow's UI under Pipelines")
    elif check is not None:
        check_compiled(config, check, recipe)
        click.echo(f"{check} is up to date with recipe {recipe}")


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


@cli.command(epilog="\b\nExamples:\n  reasrm lineage reasrm-demo\n  reasrm lineage reasrm-demo/3 --json\n")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@folder_option
def lineage(model: str, as_json: bool, directory: Path) -> None:
    """Show what a model was made from, back to the preference data.

    MODEL is a registered model (name, name/version, name@alias), an MLflow run id or an artifact's s3:// uri.
    """
    from pipeline.local import serving

    with serving(directory.absolute()):
        click.echo(_lineage_text(model, as_json))


def _lineage_text(model: str, as_json: bool) -> str:
    from components.adapters.storage import Storage
    from pipeline.lineage import chain, render, to_json

    tree = chain(model, Storage.from_env())
    return to_json(tree) if as_json else render(tree)


@cli.command()
def recipes() -> None:
    """List the recipes that come with reasrm."""
    from pipeline.config import recipe_names, recipe_path

    names = recipe_names()
    for name in names:
        first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
        click.echo(f"{name:<{max(map(len, names))}}  {first.removeprefix('#').strip()}")


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
