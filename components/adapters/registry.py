"""Models by their names in the registry, and the artifacts behind them."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from components.adapters.model_versions import VersionInfo, get_alias, get_version
from components.core.errors import InvalidInput
from components.core.manifest import Manifest
from components.core.references import parse_name
from components.core.verdict import GRAMMARS, Grammar

if TYPE_CHECKING:
    from components.adapters.storage import Storage

MODEL_TAG, PAIRS_TAG, DIGEST_TAG = "reasrm.manifest_uri", "reasrm.pairs_uri", "reasrm.manifest_digest"


def find_version(reference: str) -> VersionInfo | None:
    """Return the version that `name@alias`, `name/3` or `name` (the newest) stands for now; None if there is none.

    Raises:
        Transient: MLflow does not answer.
        InvalidInput: MLflow refuses, no server is set, or it is no such name.
    """
    named = parse_name(reference)
    if named is None:
        raise InvalidInput(f"{reference!r} is no registered model; write name@champion, name/3 or name (the newest)")
    return get_alias(named.name, named.alias) if named.alias else get_version(named.name, named.version)


def find_artifact(
    reference: str, storage: "Storage", tag: str, known: MutableMapping[str, VersionInfo | None] | None = None
) -> Manifest | None:
    """Return the artifact at an s3:// uri, or the one that a registered version names in a tag.

    None where the registry has no such version (yet). `known` holds what was looked up before, and is added to: whoever
    takes several artifacts of a champion wants them of the same one.

    Raises:
        Transient: MLflow or S3 does not answer.
        InvalidInput: the artifact is gone or another one, or the version does not say where it is.
    """
    if not reference.startswith("s3://"):
        known = {} if known is None else known
        if reference not in known:
            known[reference] = find_version(reference)
        version = known[reference]
        return None if version is None else open_artifact(version, storage, tag, reference)
    manifest = storage.open(reference.rstrip("/"))
    if manifest is None:
        raise InvalidInput(f"there is no artifact (any more) at {reference}; name another one")
    return manifest


def open_artifact(version: VersionInfo, storage: "Storage", tag: str = MODEL_TAG, reference: str = "") -> Manifest:
    """Return the artifact that a version names in a tag; `reference` is what it was asked for by. Raises InvalidInput.

    A model has to be the one that was registered: its manifest may have been deleted and written again by other work.
    """
    called = f"{reference} is version {version.version}" if reference else f"{version.name} version {version.version}"
    uri = artifact_of(version) if tag == MODEL_TAG else version.tags.get(tag, "")
    if not uri.startswith("s3://"):
        raise InvalidInput(
            f"{called}, which has no tag {tag}: this pipeline did not register it; give the s3:// uri of the artifact, "
            "or name another version"
        )
    manifest = storage.open(uri)
    if manifest is None:
        raise InvalidInput(
            f"{called}, which leads to {uri}, but there is no artifact (any more); name another version, or move the "
            "alias with reasrm rollback or promote"
        )
    registered = version.tags.get(DIGEST_TAG)
    if tag == MODEL_TAG and registered not in {None, manifest.digest}:
        raise InvalidInput(
            f"{called}, registered with digest {registered}, but at {uri} there is another model now, with "
            f"{manifest.digest}; name another version, or move the alias with reasrm rollback or promote"
        )
    return manifest


def check_files(what: str, manifest: Manifest, storage: "Storage") -> None:
    """Raise InvalidInput if an artifact's files are gone or of another size; whoever needs them may find out late."""
    there = {one.uri: one.size for one in storage.list(f"{manifest.uri}/")}
    gone = [entry.path for entry in manifest.files if there.get(f"{manifest.uri}/{entry.path}") != entry.size]
    if gone:
        raise InvalidInput(
            f"{what} is {manifest.uri}, of which {len(gone)} of {len(manifest.files)} files are gone or not whole, "
            f"such as {gone[0]}; restore them in S3, or name another version"
        )


def artifact_of(version: VersionInfo) -> str:
    """Return the uri of the artifact that holds a version's weights."""
    return version.tags.get(MODEL_TAG) or version.source_uri.removesuffix("/model")


def grammar_of(model: Manifest, storage: "Storage") -> Grammar | None:
    """Return the form of judgment that a model of ours learned; SFT has it of its examples. None if nothing says so."""
    taught = model.parents.get("examples")
    for made in (model, storage.open(taught.uri) if taught else None):
        asked = made.config.get("grammar") if made else None
        for grammar in GRAMMARS:
            if grammar == asked:
                return grammar
    return None
