"""Versions in MLflow's model registry, with their tags and aliases. Direct calls: MLflow has to answer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from components.adapters.spool import MAX_TAG_CHARS, clean_key, cut
from components.adapters.tracking import all_of, all_pages, call, quoted, search_model
from components.core.errors import InvalidInput

MAX_DESCRIPTION_CHARS = 5000
"""MLflow's column; SQLite takes more, PostgreSQL and MySQL refuse it."""
ABOUT_VERSIONS = (
    "Judges, one version for each model that a run ended with. The alias `champion` is in use, `previous` was before "
    "it, `challenger` is the newest. What a version was made from: `reasrm lineage {name}/VERSION`; back to the one "
    "before: `reasrm rollback {name}`."
)


@dataclass(frozen=True)
class VersionInfo:
    """A version in the model registry."""

    name: str
    version: str
    source_uri: str
    run_id: str
    model_id: str
    description: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


def list_versions(digests: Collection[str] | None = None) -> list[VersionInfo]:
    """Return all versions of all registered models, or those of some manifests' models; by name, oldest first.

    Raises Transient or InvalidInput.
    """
    query = None if digests is None else "tags.`reasrm.manifest_digest` LIKE '%'"

    def work(client: Any) -> list[VersionInfo]:
        found = [
            one
            for one in all_pages(lambda **page: client.search_model_versions(query, **page))
            if digests is None or one.tags.get("reasrm.manifest_digest") in digests
        ]
        named = {one.name: one.aliases for one in all_pages(client.search_registered_models)} if found else {}
        aliases: dict[tuple[str, str], list[str]] = {}
        for name, pointers in named.items():
            for alias, version in sorted(pointers.items()):
                aliases.setdefault((name, str(version)), []).append(alias)
        listed = [replace(_version(one), aliases=tuple(aliases.get((one.name, str(one.version)), ()))) for one in found]
        return sorted(listed, key=lambda one: (one.name, int(one.version)))

    return all_of("listing the registered versions", work)


def _version(version: Any) -> VersionInfo:
    return VersionInfo(
        name=version.name,
        version=str(version.version),
        source_uri=version.source,
        run_id=version.run_id or "",
        model_id=version.model_id or version.tags.get("reasrm.model_id", ""),
        description=version.description or "",
        tags=dict(version.tags),
        aliases=tuple(version.aliases),
    )


def register_version(
    name: str, source_uri: str, run_id: str | None, model_id: str | None, tags: Mapping[str, str], description: str
) -> VersionInfo:
    """Register a model version once: one of the same work (tag `reasrm.run_key`) or of the same model (tag
    `reasrm.manifest_digest`) is returned instead of doubled, as it is.

    `model_id` may be MLflow's, or a manifest's digest or uri. Raises Transient or InvalidInput.
    """
    if not tags.get("reasrm.run_key"):
        raise InvalidInput("a model version needs the tag reasrm.run_key, by which a second registration is recognised")

    def work(client: Any) -> VersionInfo:
        found = _registered(client, name, tags)
        if found is not None:
            return found
        try:
            client.create_registered_model(name, description=ABOUT_VERSIONS.format(name=name))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
        model = model_id
        if model_id and not model_id.startswith("m-"):
            logged = search_model(client, model_id, prefer=run_id or "")
            model = logged.model_id if logged else None
        all_tags = _cut_tags(tags)
        if model:
            all_tags["reasrm.model_id"] = model
        made = client.create_model_version(
            name,
            source_uri,
            run_id or None,
            all_tags,
            None,
            cut(description, MAX_DESCRIPTION_CHARS),
            await_creation_for=0,
            model_id=model,
        )
        # Of two that register the same model at once, both find the older version now, and one takes its own back.
        oldest = _registered(client, name, tags)
        if oldest is None or oldest.version == str(made.version):
            return _version(made)
        client.delete_model_version(name, made.version)
        return oldest

    version = call(f"registering {name}", work)
    if version is None:
        raise InvalidInput(f"registering {name}: MLflow does not know run {run_id} or model {model_id}")
    return version


def _registered(client: Any, name: str, tags: Mapping[str, str]) -> VersionInfo | None:
    """Return the oldest version of this work or of this model."""
    found = []
    for key in ("reasrm.run_key", "reasrm.manifest_digest"):
        if tags.get(key):
            found += client.search_model_versions(f"name = {quoted(name)} AND tags.`{key}` = {quoted(tags[key])}")
    if not found:
        return None
    return _version(client.get_model_version(name, min(found, key=lambda version: int(version.version)).version))


def _cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {clean_key(key): cut(str(value), MAX_TAG_CHARS) for key, value in tags.items()}


def tag_version(name: str, version: str, tags: Mapping[str, str | None]) -> None:
    """Set tags of a version; None takes one away. Raises Transient or InvalidInput."""

    def work(client: Any) -> bool:
        known = client.get_model_version(name, version).tags
        for key, value in _cut_tags({key: value for key, value in tags.items() if value is not None}).items():
            if known.get(key) != value:
                client.set_model_version_tag(name, version, key, value)
        for key in known.keys() & {key for key, value in tags.items() if value is None}:
            client.delete_model_version_tag(name, version, key)
        return True

    if call(f"tagging {name}/{version}", work) is None:
        raise InvalidInput(f"tagging {name}/{version}: there is no such version")


def describe_version(name: str, version: str, description: str) -> None:
    """Replace a version's description. Raises Transient or InvalidInput."""
    text = cut(description, MAX_DESCRIPTION_CHARS)
    call(f"describing {name}/{version}", lambda client: client.update_model_version(name, version, text))


def model_tags(name: str) -> dict[str, str] | None:
    """Return the tags of a registered model, or None if there is no such model. Raises Transient or InvalidInput."""
    return call(f"reading {name}", lambda client: dict(client.get_registered_model(name).tags))


def all_model_tags() -> dict[str, dict[str, str]]:
    """Return the tags of all registered models, by name. Raises Transient or InvalidInput."""

    def work(client: Any) -> list[tuple[str, dict[str, str]]]:
        return [(one.name, dict(one.tags)) for one in all_pages(client.search_registered_models)]

    return dict(all_of("listing the registered models", work))


def tag_model(name: str, tags: Mapping[str, str]) -> None:
    """Set tags of a registered model. Raises Transient or InvalidInput."""

    def work(client: Any) -> bool:
        for key, value in _cut_tags(tags).items():
            client.set_registered_model_tag(name, key, value)
        return True

    if call(f"tagging {name}", work) is None:
        raise InvalidInput(f"tagging {name}: MLflow's registry has no such model")


def delete_alias(name: str, alias: str) -> None:
    """Take an alias away; one that is not there is no error. Raises Transient or InvalidInput."""
    call(f"taking alias {alias} from {name}", lambda client: client.delete_registered_model_alias(name, alias))


def set_alias(name: str, alias: str, version: str) -> None:
    """Move an alias such as champion to a version. Raises Transient or InvalidInput."""

    def work(client: Any) -> bool:
        client.set_registered_model_alias(name, alias, version)
        return True

    if call(f"moving alias {alias} of {name} to version {version}", work) is None:
        raise InvalidInput(f"moving alias {alias}: {name} has no version {version}")


def get_alias(name: str, alias: str) -> VersionInfo | None:
    """Return the version that an alias points to, or None. Raises Transient or InvalidInput."""
    version = call(f"reading {name}@{alias}", lambda client: client.get_model_version_by_alias(name, alias))
    return None if version is None else _version(version)


def get_version(name: str, version: str) -> VersionInfo | None:
    """Return a version by its number (empty: the newest), or None. Raises Transient or InvalidInput."""

    def work(client: Any) -> VersionInfo | None:
        number = version
        if not number:
            newest = ["version_number DESC"]
            found = client.search_model_versions(f"name = {quoted(name)}", max_results=1, order_by=newest)
            number = str(found[0].version) if found else ""
        return _version(client.get_model_version(name, number)) if number else None

    return call(f"reading {name}/{version}", work)
