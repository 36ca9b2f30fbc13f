"""What a run goes on from: the pairs that earlier runs have seen, and the model that training starts from."""

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.adapters.entry import parse_settings
from components.adapters.model_versions import VersionInfo, get_version
from components.adapters.registry import MODEL_TAG, PAIRS_TAG, check_files, find_artifact
from components.core.errors import InvalidInput
from components.core.manifest import Manifest
from components.core.references import parse_name

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger("reasrm")


def pin(parameters: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Look up what the run goes on from, once, so that a champion that changes meanwhile changes nothing for its tasks.

    Returns the parameters with uris in place of names, and `since` and `warm_start` (empty: none, or none yet).

    Raises:
        Transient: MLflow does not answer; a run that cannot tell what is new must not begin.
        InvalidInput: there is no such artifact, files of it are gone, or the model that training starts from has
            learned from pairs that `since` does not know of.
    """
    from components.adapters.storage import Storage

    storage = Storage.from_env()
    found, changed, starts = {}, dict(parameters), dict[str, Manifest]()
    versions: dict[str, VersionInfo | None] = {}  # a champion that changes in between is still one
    for stage, setting, tag in (("prepare", "since", PAIRS_TAG), ("sft", "warm_start", MODEL_TAG)):
        values = parse_settings(stage, str(parameters[f"{stage}_config"]), None, None)
        name, uri = str(values.get(setting) or ""), ""
        if name:
            manifest = find_artifact(name, storage, tag, versions)
            if manifest:
                check_files(f"{stage}.{setting}: {name}", manifest, storage)
                starts[setting] = manifest
            uri = manifest.uri if manifest else ""
            if not manifest:
                _tell_of_nobody(f"{stage}.{setting}", name)
            logger.info("%s.%s: %s is %s", stage, setting, name, uri or "nobody yet")
        found[setting] = uri
        changed[f"{stage}_config"] = json.dumps({**values, setting: uri}, ensure_ascii=False)
    if "warm_start" in starts:
        _check_learned(starts["warm_start"], starts.get("since"), storage)
        _warn_of_base(starts["warm_start"], str(parameters.get("base_model", "")), storage)
    return changed, found


def _tell_of_nobody(setting: str, name: str) -> None:
    """Warn of a model that has versions and no champion: it may have lost it, and then this run begins anew.

    Raises InvalidInput for a version by its number, which is not one that is still to come.
    """
    named = parse_name(name)
    if named and named.version:
        raise InvalidInput(f"{setting} is {name}, but MLflow's registry has no such version; name one that is there")
    newest = get_version(named.name, "") if named else None
    if newest is not None:
        logger.warning(
            "%s: nobody is %s, though %s has versions, the newest is %s. So this run takes all data as new and starts "
            "from the base model; to go on from a version, name it with reasrm promote %s/VERSION before the run",
            setting, name, newest.name, newest.version, newest.name,
        )  # fmt: skip


def _check_learned(start: Manifest, since: Manifest | None, storage: "Storage") -> None:
    """Raise InvalidInput if a model that a run starts from was trained on pairs that the run would hold out as new."""
    known, before = set[str](), since
    while before is not None and before.uri not in known:
        known.add(before.uri)
        earlier = before.statistics.get("since")
        before = storage.open(str(earlier["uri"])) if isinstance(earlier, dict) else None
    todo, reached = [start], set[str]()
    while todo:
        manifest = todo.pop()
        if manifest.stage == "prepare" and manifest.uri not in known:
            raise InvalidInput(
                f"sft.warm_start is {start.uri}, which learned from the pairs of {manifest.uri}, but prepare.since "
                f"{f'leads to {since.uri}, which has not seen them' if since else 'names nothing'}: what the model was "
                "trained on would be held out to judge it. Name the same model in both, or let go of warm_start"
            )
        uris = {parent.uri for parent in manifest.parents.values()} - reached
        reached |= uris
        todo += [found for uri in sorted(uris) if (found := storage.open(uri)) is not None]


def _warn_of_base(start: Manifest, base: str, storage: "Storage") -> None:
    """Say so if the recipe names another base model than the one that the model to start from was made from."""
    parent = start.parents.get("sft")
    tuned = (storage.open(parent.uri) if parent else None) or start
    made_from = str(tuned.config.get("base_model", ""))
    if base and made_from and base.rpartition("/")[2] != made_from.rpartition("/")[2]:
        logger.warning(
            "base_model is %s, but training starts from %s, which was made from %s: for the new base, leave "
            "sft.warm_start empty",
            base, start.uri, made_from,
        )  # fmt: skip
