"""`reasrm lineage`."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from components.adapters.storage import Storage
    from pipeline.lineage import LineageNode
    from pipeline.lineage.verify import Finding

DIRECTORY = Path(".reasrm")
SERVERS = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Any of them in the environment says that servers of one's own are meant."""
DRIFT = 1
"""Exit code when something is not as its manifest says."""


@click.command(
    epilog="\b\nExamples:\n"
    "  reasrm lineage reasrm-demo@champion            what that model was made from\n"
    "  reasrm lineage s3://b/root/prepare/1f --down   what was made from those pairs\n"
    "  reasrm lineage reasrm-demo/3 --verify          hash all of it again; exit code 1 if something drifted\n"
    "  reasrm lineage --diff reasrm-demo/2 reasrm-demo/3\n"
    "  reasrm lineage reasrm-demo/3 --html lineage.html\n"
    "  reasrm lineage reasrm-demo/3 --json | jq -c '.events[]'    for an OpenLineage server\n"
    "\n\b\n"
    "Where it looks: in the folder of --dir. Without it, at the servers that MLFLOW_TRACKING_URI and\n"
    "AWS_ENDPOINT_URL_S3 name, or if neither is set in .reasrm.\n"
)
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE")
@click.option("--down", is_flag=True, help="What was made from it, instead of what it was made from.")
@click.option("--diff", "compare", is_flag=True, help="What changed from the first model version to the second.")
@click.option("--verify", "check", is_flag=True, help="Read all bytes again and compare them with the manifests.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: the tree, and OpenLineage events.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a page with the graph."
)
@click.option(
    "--generations",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of how many earlier runs, that this one goes on from, to show what their artifacts were made from.",
)
@click.option("--root", default="", metavar="URI", help="The artifact root that --down searches, where it is not told.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of a run on this machine; its servers are started.",
)
def lineage(
    references: tuple[str, ...],
    down: bool,
    compare: bool,
    check: bool,
    as_json: bool,
    html: Path | None,
    generations: int,
    root: str,
    directory: Path | None,
) -> None:
    """Show what a model was made from, back to the preference data, or what was made from something.

    REFERENCE is a registered model (name, name/version, name@alias), the s3:// uri of an artifact or of a file in it,
    an MLflow run, a run of the pipeline (KFP's id, or the name of its folder in .reasrm/runs), or with --down and
    --root also the uri of preference data.
    """
    if len(references) != (2 if compare else 1):
        raise click.UsageError("give two versions with --diff, and one reference without it")
    if compare and (down or check or html):
        raise click.UsageError("--diff goes with --json alone; --down, --verify and --html show one reference")
    go_deep()
    with _servers(directory):
        from components.adapters.storage import Storage
        from pipeline.commands.options import open_console

        storage, console = Storage.from_env(), open_console()
        if compare:
            _diff(references, storage, console, as_json)
        else:
            tree = _start(references[0], storage, generations, or_source=down and bool(root))
            _show(references[0], tree, storage, console, down=down, check=check, as_json=as_json, html=html, root=root)


def go_deep() -> None:
    """Let trees of years of weekly runs, each started from the one before, be walked through."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 20_000))


@contextlib.contextmanager
def _servers(directory: Path | None) -> Iterator[None]:
    """Let this process reach the servers that are meant."""
    named = [name for name in SERVERS if os.environ.get(name)]
    if directory is None and named:
        click.secho(f"looking where {' and '.join(named)} point; --dir {DIRECTORY} looks there", dim=True, err=True)
        yield
        return
    from pipeline.local import serving

    with serving((directory or DIRECTORY).absolute()):
        yield


def _show(
    reference: str,
    tree: "LineageNode",
    storage: "Storage",
    console: "Console",
    *,
    down: bool,
    check: bool,
    as_json: bool,
    html: Path | None,
    root: str,
) -> None:
    from pipeline.lineage import rich_tree
    from pipeline.lineage.openlineage import events, to_json
    from pipeline.lineage.page import render_html

    below = _below(tree, storage, root, strict=down) if down or html is not None else []
    findings = _verified(tree, storage) if check else None
    if as_json:
        found = events([tree, *below], storage.open, storage.modified)
        click.echo(to_json(tree, below, found, findings))
    else:
        for each in below if down else [tree]:
            console.print(rich_tree(each), soft_wrap=True)
        if findings is not None:
            _tell(findings, console)
    if html is not None:
        from pipeline.compiler import write

        write(render_html(reference, tree, below, findings).encode(), html)
        click.echo(f"wrote {html}", err=True)
    if any(finding.drift for finding in findings or ()):
        raise SystemExit(DRIFT)


def _start(reference: str, storage: "Storage", generations: int, *, or_source: bool) -> "LineageNode":
    from components.core.errors import InvalidInput
    from pipeline.lineage import LineageNode, chain

    try:
        return chain(reference, storage, generations=generations)
    except InvalidInput:
        if not or_source:
            raise
        return LineageNode("source", "", reference, "")


def _below(tree: "LineageNode", storage: "Storage", root: str, *, strict: bool) -> "list[LineageNode]":
    """Return what was made from a version's model, an artifact or a source, or from anything that a run used.

    Raises InvalidInput if there is no such thing and it is what was asked for (`strict`).
    """
    from components.core.errors import InvalidInput
    from pipeline.lineage.down import descendants, manifests_below, root_of, starts_of

    starts = starts_of(tree)
    root = root or next((root_of(uri) for uri in starts if uri.startswith("s3://")), "")
    if not root:
        raise InvalidInput(f"{tree.uri or tree.name} is no artifact; name the place to search with --root s3://...")
    with _bar("manifests read") as advance:
        manifests = manifests_below(root, storage, advance)
    try:
        return descendants(starts, manifests, storage)
    except InvalidInput:
        if not strict:
            return []
        raise


def _verified(tree: "LineageNode", storage: "Storage") -> "list[Finding]":
    from pipeline.lineage.verify import bytes_to_read, verify

    total, done, lock = bytes_to_read(tree, storage), 0, threading.Lock()
    with _bar("bytes hashed") as advance:

        def count(num_bytes: int) -> None:
            nonlocal done
            with lock:
                done += num_bytes
                advance(done, total)

        return list(verify(tree, storage, count))


def _tell(findings: "list[Finding]", console: "Console") -> None:
    from rich.text import Text

    from components.adapters.page import plain

    console.print()
    for finding in findings:
        for problem in finding.drift:
            console.print(Text(plain(f"drift: {finding.name} {finding.uri}: {problem}"), "bold red"), soft_wrap=True)
        if finding.note:
            console.print(Text(plain(f"note: {finding.name} {finding.uri} {finding.note}"), "yellow"), soft_wrap=True)
    kept = [finding for finding in findings if not finding.drift and finding.num_files]
    files, size = sum(one.num_files for one in kept), sum(one.num_bytes for one in kept)
    drifted = sum(bool(finding.drift) for finding in findings)
    console.print(
        f"{len(kept)} artifacts are as their manifests say ({files} files, {size / 1e6:.3f} MB hashed), "
        f"{drifted} {'has' if drifted == 1 else 'have'} drifted"
    )


def _diff(references: tuple[str, ...], storage: "Storage", console: "Console", as_json: bool) -> None:
    from pipeline.lineage import chain
    from pipeline.lineage.diff import diff
    from pipeline.lineage.diff_text import parts, to_json

    old, new = (chain(reference, storage) for reference in references)
    with open_error_console().status("comparing") as status:
        found = diff(old, new, storage, lambda what: status.update(f"comparing {what}"))
    if as_json:
        click.echo(to_json(found))
        return
    for part in parts(found):
        console.print(part, soft_wrap=not hasattr(part, "columns"))


def open_error_console() -> "Console":
    """Return standard error for what goes away again."""
    from rich.console import Console

    return Console(stderr=True)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal; what is given is told how much of how much is done."""
    from rich.progress import Progress

    console = open_error_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
