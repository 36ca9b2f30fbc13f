"""Models by their names in the registry, and the artifacts behind them."""

import re
from typing import TYPE_CHECKING

from components.adapters.tracking import VersionInfo, get_alias, get_version
from components.core.errors import InvalidInput
from components.core.manifest import Manifest

if TYPE_CHECKING:
    from components.adapters.storage import Storage

MODEL_TAG, PAIRS_TAG = "reasrm.manifest_uri", "reasrm.pairs_uri"
_NAME = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@:]+))?")


def find_version(reference: str) -> VersionInfo | None:
    """Return the version that `name@alias`, `name/3` or `name` (the newest) stands for now; None if there is none.

    Raises:
        Transient: MLflow does not answer.
        InvalidInput: MLflow refuses, no server is set, or it is no such name.
    """
    match = _NAME.fullmatch(reference)
    if match is None:
        raise InvalidInput(f"{reference!r} is no registered model; write name@champion, name/3 or name (the newest)")
    if match["alias"]:
        return get_alias(match["name"], match["alias"])
    return get_version(match["name"], match["version"] or "")


def find_artifact(reference: str, storage: "Storage", tag: str) -> Manifest | None:
    """Return the artifact at an s3:// uri, or the one that a registered version names in a tag.

    None where the registry has no such version (yet).

    Raises:
        Transient: MLflow or S3 does not answer.
        InvalidInput: the artifact is gone, or the version does not say where it is.
    """
    uri = reference.rstrip("/")
    if not reference.startswith("s3://"):
        version = find_version(reference)
        if version is None:
            return None
        uri = version.tags.get(tag, "")
        if tag == MODEL_TAG:
            uri = uri or version.source_uri.removesuffix("/model")
        if not uri:
            raise InvalidInput(
                f"{reference} is version {version.version}, which has no tag {tag}: this pipeline did not register it; "
                "give the s3:// uri of the artifact"
            )
    manifest = storage.open(uri)
    if manifest is None:
        raise InvalidInput(f"{reference} leads to {uri}, but there is no artifact (any more); name another model")
    return manifest
