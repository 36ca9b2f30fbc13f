"""What `reasrm rollback` and `reasrm promote` share: the servers, the version that is meant, and the change itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import InvalidInput
from components.core.references import parse_name

if TYPE_CHECKING:
    from components.adapters.model_versions import VersionInfo
    from components.adapters.promotions import Kind, Promotion, Promotions


@contextmanager
def reaching(directory: Path | None) -> Iterator[None]:
    """Let this process reach MLflow and S3: those of a folder of `reasrm run`, or those that the environment names."""
    if directory is None and os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    from pipeline.local import DEFAULT_DIRECTORY, serving

    with serving((directory or DEFAULT_DIRECTORY).absolute()):
        yield


def open_log(model: str, alias: str) -> "Promotions":
    """Return a registered model's log of promotions. Raises InvalidInput if there is no such model."""
    from components.adapters.promotions import find_log
    from components.adapters.storage import Storage

    return find_log(Storage.from_env(), model, alias)


def parse_version(reference: str) -> tuple[str, str]:
    """Return name and number of `name/3`. Raises InvalidInput."""
    named = parse_name(reference)
    if named is None or not named.version:
        raise InvalidInput(f"{reference!r} is no model version; write name/3")
    return named.name, named.version


def find_version(log: "Promotions", number: str) -> "VersionInfo":
    """Return a version whose model is there with all files. Raises InvalidInput if not, or if there is no such one."""
    from components.adapters.model_versions import get_version
    from components.adapters.registry import check_files, open_artifact

    version = get_version(log.model, number) if number.isdigit() else None
    if version is None:
        raise InvalidInput(
            f"MLflow's registry has no {log.model}/{number}; look at its versions in the MLflow UI and name one "
            "(reasrm rollback --to VERSION)"
        )
    check_files(f"{log.model}/{number}", open_artifact(version, log.storage), log.storage)
    return version


def refuse_rejected(version: "VersionInfo", force: bool) -> None:
    """Raise InvalidInput for a version that the gate rejected, unless it is forced."""
    if version.tags.get("reasrm.gate") == "rejected" and not force:
        reasons = version.tags.get("reasrm.gate_reasons", "no reasons are recorded")
        raise InvalidInput(f"{version.name}/{version.version} was rejected ({reasons}); --force takes it all the same")


def target(log: "Promotions", history: "list[Promotion]") -> str:
    """Return the number of the version that was champion before the present one. Raises InvalidInput."""
    from components.adapters.promotions import former

    if not history or not history[-1].champion:
        last = next((record.champion.version for record in reversed(history) if record.champion), "")
        was = f" any more (it was version {last})" if last else ""
        raise InvalidInput(
            f"{log.model} has no {log.alias}{was}: there is nothing to roll back; say which one it shall be with "
            "--to VERSION, or see reasrm promote"
        )
    before = former(history)
    if not before:
        now = history[-1].champion.version
        raise InvalidInput(f"version {now} of {log.model} replaced no other one; say which with --to VERSION")
    return before.version


def change(
    log: "Promotions",
    version: "VersionInfo",
    kind: "Kind",
    by: str,
    why: str,
    *,
    key: str,
    seen: "list[Promotion] | None" = None,
) -> str:
    """Make a version champion by a human's decision, and say in words what changed. Raises Transient.

    `key` names the decision. Who takes a place away means the champion of the history that was `seen`, and no other.
    """
    from components.adapters.promotions import Holder, who

    compared = None if seen is None else (seen[-1].champion if seen else Holder()).digest
    outcome = log.move(version, kind=kind, by=by or who(), why=why, key=key, compared=compared)
    if not outcome.promoted:
        now = outcome.replaces or "no version"
        raise InvalidInput(f"{log.model}@{log.alias} has changed meanwhile, to {now}; nothing was done: look again")
    if not outcome.moved:
        return f"{log.model}@{log.alias} is version {version.version} already"
    before = f", before it was {outcome.replaces}" if outcome.replaces else ""
    return f"{log.model}@{log.alias} is version {version.version} now{before}"


def finished(log: "Promotions", rollback: "Promotion", last: "Promotion") -> str:
    """Say in words what became of a rollback whose process died; `last` is the last record."""
    who = f"{log.model}@{log.alias}"
    if last.number == rollback.number:
        now = f"{who} is version {last.champion.version} now (by {last.by}: {last.why})"
        return f"finished the rollback that was interrupted: {now}"
    before, then = (f"version {one.champion.version}" if one.champion else "nobody" for one in (rollback, last))
    return (
        f"the rollback that was interrupted took effect, and {who} was {before} (by {rollback.by}: {rollback.why}); "
        f"since then it has become {then} (by {last.by}: {last.why}). Nothing more was done: run it again to go back "
        "from that"
    )
