"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.client.endpoint import Kfp

UNBOUNDED = 10_000
"""Width of a table in a file or a pipe; it takes what it needs of it."""
Command = TypeVar("Command", bound=Callable[..., Any])

recipe_option = click.option("--recipe", required=True, help="A recipe's name (see `reasrm recipes`) or a .toml file.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. sft.epochs=2. Repeatable."
)
profile_option = click.option(
    "--profile", default="gpu", show_default=True, help="Kind of cluster: cpu, gpu, trainjob, or a .toml file."
)
redo_option = click.option(
    "--no-cache", "redo", is_flag=True, help="Keep KFP's cache out of it, as after artifacts on S3 were deleted."
)
alias_option = click.option("--alias", default="champion", show_default=True, help="The alias that moves.")
by_option = click.option("--by", default="", metavar="NAME", help="Who decides. Default: this user and machine.")
servers_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of reasrm run whose servers are meant. Default: those of $MLFLOW_TRACKING_URI, else .reasrm.",
)
WHO = """\b
The server and who asks it:
  --host              http://localhost:8888 with kubectl port-forward -n kubeflow svc/ml-pipeline 8888,
                      or https://HOST/pipeline within Kubeflow's dashboard; $REASRM_KFP_HOST
  $REASRM_KFP_TOKEN   kubectl create token default-editor -n NS --audience pipelines.kubeflow.org
"""


def server_options(command: Command) -> Command:
    """Add the options that say which KFP server is meant; the command gets them as `open_server` takes them."""
    for option in reversed(
        (
            click.option("--host", default="", metavar="URL", help="Where KFP is. [$REASRM_KFP_HOST]"),
            click.option("--namespace", "-n", default="", metavar="NS", help="Your namespace. [$REASRM_KFP_NAMESPACE]"),
            click.option(
                "--token-file",
                type=click.Path(path_type=Path, dir_okay=False),
                help="File with a token. [$REASRM_KFP_TOKEN_FILE, or the token itself in $REASRM_KFP_TOKEN]",
            ),
            click.option(
                "--ca-file",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Certificate of the server's authority. [$REASRM_KFP_CA_FILE]",
            ),
        )
    ):
        command = option(command)
    return command


def open_console() -> "Console":
    """Return standard output for tables; where it is no terminal nothing is cut or folded."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=UNBOUNDED)


def open_server(host: str, namespace: str, token_file: Path | None, ca_file: Path | None) -> "Kfp":
    """Return the API of the server that the options name. Raises InvalidInput."""
    from pipeline.client.endpoint import open_client

    return open_client(host, namespace=namespace, token_file=token_file, ca_file=ca_file)
