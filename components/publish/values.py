"""What manifests say beside their fixed fields, read with care: those of another version may have less."""

from collections.abc import Mapping
from typing import Any

from components.core.manifest import Manifest


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def sources(manifest: Manifest) -> list[Mapping[str, Any]]:
    """Return what an artifact was made from beside other artifacts: uri, sha256, and whatever else is recorded."""
    return mappings(manifest.statistics.get("sources"))


def waterfall(manifest: Manifest) -> list[Mapping[str, Any]]:
    """Return the filter's steps with what each kept and dropped."""
    return mappings(manifest.statistics.get("waterfall"))


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list, none if the value is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def counts(manifest: Manifest) -> dict[str, int]:
    """Return the whole numbers among an artifact's statistics, one level of nesting under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in manifest.statistics.items():
        if key == "since":  # it has a table of its own
            continue
        flat |= {f"{key}.{name}": number for name, number in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in flat.items() if isinstance(value, int) and not isinstance(value, bool)}
