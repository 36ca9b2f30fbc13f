"""`reasrm promote`."""

import uuid
from pathlib import Path

import click

from pipeline.commands.options import alias_option, by_option, servers_option


@click.command(epilog='\b\nExample:\n  reasrm promote my-judge/7 --reason "better on our own hard cases"\n')
@click.argument("version", metavar="MODEL/VERSION")
@click.option("--reason", required=True, help="Why; recorded with the version.")
@click.option("--force", is_flag=True, help="Take a version that the gate rejected.")
@alias_option
@by_option
@servers_option
def promote(version: str, reason: str, force: bool, alias: str, by: str, directory: Path | None) -> None:
    """Make a registered version champion by a human's decision.

    For a version that passed the gate and was not promoted: it was rolled back, another one was faster, or the recipe
    only registers.
    """
    from pipeline.commands.promotion import change, find_version, open_log, parse_version, reaching, refuse_rejected

    name, number = parse_version(version)
    with reaching(directory):
        log = open_log(name, alias)
        found = find_version(log, number)
        refuse_rejected(found, force)
        click.echo(change(log, found, "promote", by, reason, key=uuid.uuid4().hex))
