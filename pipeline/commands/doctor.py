"""`reasrm doctor`: what is missing before a run on Kubeflow."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from components.core.errors import ReasrmError
from pipeline.commands.options import WHO, open_server, server_options

if TYPE_CHECKING:
    from pipeline.checks.finding import Finding

SIGNS = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "missing": ("missing", "red"),
    "unknown": ("?", "cyan"),
}


@click.command(
    epilog="\b\nExamples:\n  reasrm doctor --host https://kubeflow.example.com/pipeline --namespace team\n"
    "  reasrm doctor --recipe my-recipe.toml --profile trainjob --namespace team\n"
    "  reasrm doctor --recipe my-recipe.toml --json\n\n" + WHO
)
@click.option("--recipe", default="", help="A recipe: its data, models, teachers and keys are looked at too.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe. Repeatable."
)
@click.option(
    "--profile", default="gpu", show_default=True, help="Kind of cluster: cpu, gpu, trainjob, or a .toml file."
)
@server_options
@click.option("--context", default=None, help="Context of kubeconfig [the current one].")
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Kubeconfig [$KUBECONFIG].")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def doctor(
    recipe: str,
    settings: tuple[str, ...],
    profile: str,
    host: str,
    namespace: str,
    token_file: Path | None,
    ca_file: Path | None,
    context: str | None,
    kubeconfig: Path | None,
    as_json: bool,
) -> None:
    """Look for what is missing before a run on Kubeflow, and say how to mend it.

    It asks KFP, the Kubernetes API, S3, MLflow and teachers with what this shell has: --host, kubectl's context,
    AWS_* and MLFLOW_* variables, the teachers' keys. What cannot be seen from here is marked with ?; the first task of
    every run looks again from within. It writes one small object to the bucket and deletes it. Nothing else is changed,
    nothing costs, no secret is shown. The exit code is 1 if something is missing.

    The namespace of the runs is --namespace, else $REASRM_KFP_NAMESPACE, else that of kubectl's context.
    """
    from components.adapters import kubernetes
    from pipeline.checks.desk import Desk
    from pipeline.client.advice import NAMESPACE
    from pipeline.config import load_recipe
    from pipeline.profile import load_profile

    namespace = namespace or os.environ.get(NAMESPACE, "")
    desk = Desk(
        profile=load_profile(profile),
        config=load_recipe(recipe, settings) if recipe else None,
        open_kfp=lambda space: open_server(host, space, token_file, ca_file),
        connect=lambda: kubernetes.connect(
            context, namespace, kubeconfig=str(kubeconfig) if kubeconfig else None, patience=kubernetes.Patience(5)
        ),
        namespace=namespace,
    )
    with _hushed(kubernetes.__name__):
        found = [finding for findings in desk.examine().values() for finding in findings]
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        _draw(found)
    lacking = sum(finding.status == "missing" for finding in found)
    if lacking:
        raise ReasrmError(f"{lacking} of {len(found)} checks found something missing; mend it, then run this again")


@contextmanager
def _hushed(name: str) -> Iterator[None]:
    """Keep a logger's warnings from the screen: what they say becomes findings."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _as_json(found: Sequence["Finding"]) -> Mapping[str, Any]:
    findings = [
        {"name": one.name, "status": one.status, "what": one.what, "remedy": one.remedy or None} for one in found
    ]
    return {"ok": all(one.status != "missing" for one in found), "findings": findings}


def _draw(found: Sequence["Finding"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold")
    for finding in found:
        sign, colour = SIGNS[finding.status]
        said = Text(finding.what)
        if finding.remedy and finding.status != "ok":
            said.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(sign, style=colour), Text(finding.name), said)
    console = Console(highlight=False)
    console.print(table)
    console.print(", ".join(f"{sum(one.status == status for one in found)} {status}" for status in SIGNS))
