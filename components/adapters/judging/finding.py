"""Which model a reference means, and what has to be known about it before it can judge."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.adapters.models import fingerprint, resolve, short_name
from components.adapters.registry import find_version, grammar_of, open_artifact
from components.core.errors import InvalidInput
from components.core.references import parse_name
from components.core.verdict import Grammar

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

_PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


@dataclass(frozen=True)
class FoundModel:
    """A judge's files. `grammar` is the one that it was trained on, where its artifact says so."""

    name: str
    folder: Path
    digest: str
    grammar: Grammar | None


def needs_services(reference: str) -> bool:
    """Say whether S3 (and MLflow, for a registered version) has to be asked about a reference."""
    return not Path(reference).is_dir() and not _PINNED.fullmatch(reference)


def find_model(reference: str, storage: "Storage", directory: Path) -> FoundModel:
    """Return the model that a reference means, its files fetched to `directory` where they are not here.

    A reference is a folder, an s3:// uri of an artifact, a hub id with @<40-hex revision>, or a registered version:
    name/3, name@champion, or name for the newest.

    Raises:
        InvalidInput: there is no such model.
        Transient: MLflow, S3 or the hub does not answer.
    """
    uri, name = reference, short_name(reference)
    if needs_services(reference) and not reference.startswith("s3://"):
        uri, name = _registered(reference, storage)
    digest = str(fingerprint(uri, storage)[0]["sha256"])
    folder = resolve(uri, storage, directory / digest[:16])
    return FoundModel(name, folder, digest, _grammar(uri, storage))


def _registered(reference: str, storage: "Storage") -> tuple[str, str]:
    """Return the uri of a registered version's artifact, and the version's name with its number."""
    if parse_name(reference) is None:
        raise InvalidInput(
            f"{reference!r} is no model: give a folder that exists, an s3:// uri, a hub id with its revision "
            "(org/name@<40 hex digits>), or a registered version (name, name/3, name@champion)"
        )
    version = find_version(reference)
    if version is None:
        raise InvalidInput(
            f"MLflow's registry has no {reference}, and there is no such folder; check the name, the version, and that "
            "MLFLOW_TRACKING_URI (or --dir) is the right place"
        )
    if version.tags.get("reasrm.gate") == "rejected":
        logger.warning(
            "%s is version %s, which the gate rejected: %s. Use its champion (%s@champion) where verdicts matter",
            reference, version.version, version.tags.get("reasrm.gate_reasons", "see its tags"), version.name,
        )  # fmt: skip
    return open_artifact(version, storage).uri, f"{version.name}/{version.version}"


def _grammar(uri: str, storage: "Storage") -> Grammar | None:
    manifest = storage.open(uri.rstrip("/")) if uri.startswith("s3://") else None
    return grammar_of(manifest, storage) if manifest else None
