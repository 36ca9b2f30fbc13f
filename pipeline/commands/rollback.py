"""`reasrm rollback`."""

import logging
import uuid
from pathlib import Path

import click

from components.core.errors import ReasrmError
from pipeline.commands.options import alias_option, by_option, servers_option

logger = logging.getLogger(__name__)


@click.command(
    epilog="\b\nExamples:\n"
    '  reasrm rollback my-judge --reason "wrong on code since Monday"\n'
    "  reasrm rollback my-judge --to 7\n"
)
@click.argument("model")
@click.option("--to", "version", default="", metavar="VERSION", help="Default: the champion before this one.")
@click.option("--reason", default="no reason given", show_default=True, help="Why; recorded with the version.")
@click.option("--force", is_flag=True, help="Take a version that the gate rejected.")
@alias_option
@by_option
@servers_option
def rollback(model: str, version: str, reason: str, force: bool, alias: str, by: str, directory: Path | None) -> None:
    """Make an earlier version of MODEL champion again.

    The version that is champion now stays registered, with a tag that says who rolled it back and why; no later run
    promotes it again by itself.
    """
    from pipeline.commands.promotion import change, find_version, finished, open_log, reaching, refuse_rejected, target

    with reaching(directory):
        log, key = open_log(model, alias), uuid.uuid4().hex
        history = log.settle()
        begun = log.untold()
        if begun is not None and not version:
            # The attempt that was interrupted is what was asked for; one more step back is not.
            click.echo(finished(log, begun, history[-1]))
        else:
            found = find_version(log, version or target(log, history))
            refuse_rejected(found, force)
            click.echo(change(log, found, "rollback", by, reason, key=key, seen=history))
        try:
            log.tell({key, begun.key} if begun else {key})
        except ReasrmError as error:
            # It is done and told; an error would let it be asked for again.
            logger.warning("the next rollback of %s will tell of this one again, and do no more: %s", model, error)
