"""Validate Kubernetes objects strictly, offline: a field that the API does not know is an error.

Core kinds: the schemas inside the package kubernetes-validate. Custom kinds: the files beside this one, in a shorthand
that `expand` turns into JSON schema; where they embed a core type, its schema is the package's.

Shorthand: `string`, `integer`, `boolean`, `number`, `any`, `quantity` (string or number); `integer>=1`; `a|b` one of
these words; `Toleration`: a type of Kubernetes' own; `X[]` list, `X{}` map of names to X; a mapping is an object, with
`name!` for a field that must be there and `name!!` for one that must also differ between the items of a list; `+Type`
takes in all fields of one of Kubernetes' types.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator, ValidationError, validators
from referencing import Registry, Resource

KUBERNETES = "1.34"
HERE = Path(__file__).parent
CORE = "https://kubernetes.io/api/_definitions.json"
PREFIXES = (
    "io.k8s.api.core.v1.",
    "io.k8s.api.batch.v1.",
    "io.k8s.api.apps.v1.",
    "io.k8s.apimachinery.pkg.apis.meta.v1.",
)
SIMPLE = {"string", "integer", "boolean", "number"}
Json = dict[str, Any]


@cache
def definitions(kubernetes: str = KUBERNETES) -> Json:
    """Kubernetes' own types of a version, unknown fields refused."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{kubernetes}.0-local-strict"
    schema: Json = json.loads((folder / "_definitions.json").read_bytes())
    return schema


@cache
def _core_kinds(kubernetes: str) -> dict[tuple[str, str], str]:
    found = {}
    for name, schema in definitions(kubernetes)["$defs"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            version = "/".join(filter(None, (kind["group"], kind["version"])))
            found[version, kind["kind"]] = name
    return found


def _full_name(name: str) -> str:
    return next(prefix + name for prefix in PREFIXES if prefix + name in definitions()["$defs"])


def _core_type(name: str) -> Json:
    found: Json = definitions()["$defs"][_full_name(name)]
    return found


def _from_core(part: Any) -> Any:
    """A piece of Kubernetes' own schema, readable outside its file."""
    if isinstance(part, list):
        return [_from_core(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {key: CORE + value if key == "$ref" else _from_core(value) for key, value in part.items()}


def expand(short: Any) -> Json:
    """The JSON schema of a shorthand."""
    if isinstance(short, dict):
        fields = {name.rstrip("!"): expand(value) for name, value in short.items() if not name.startswith("+")}
        for name in short:
            if name.startswith("+"):
                fields |= {field: _from_core(part) for field, part in _core_type(name[1:])["properties"].items()}
        return {
            "type": "object",
            "properties": fields,
            "required": [name.rstrip("!") for name in short if name.endswith("!")],
            "additionalProperties": False,
            "x-key": [name.rstrip("!") for name in short if name.endswith("!!")],
        }
    if isinstance(short, list):
        items = expand(short[0])
        return {"type": "array", "items": items, "x-unique": items.get("x-key", [])}
    if short.endswith("[]"):
        return {"type": "array", "items": expand(short[:-2])}
    if short.endswith("{}"):
        return {"type": "object", "additionalProperties": expand(short[:-2])}
    if "|" in short:
        return {"type": "string", "enum": short.split("|")}
    if ">=" in short:
        return {"type": short.partition(">=")[0], "minimum": int(short.partition(">=")[2])}
    if short == "quantity":
        return {"type": ["string", "number"]}
    if short == "any":
        return {}
    return {"type": short} if short in SIMPLE else {"$ref": f"{CORE}#/$defs/{_full_name(short)}"}


@cache
def custom_kinds() -> dict[tuple[str, str], Json]:
    """Every custom kind by apiVersion and kind: its file's entry."""
    found = {}
    for path in sorted(HERE.glob("*.yaml")):
        for kind, entry in yaml.safe_load(path.read_text(encoding="utf-8"))["kinds"].items():
            found[entry["apiVersion"], kind] = entry
    return found


def custom_schema(api_version: str, kind: str) -> Json:
    """The JSON schema of a custom kind."""
    entry = custom_kinds()[api_version, kind]
    schema = expand(
        {"apiVersion!": api_version + "|", "kind!": kind + "|", "metadata!": "ObjectMeta", "spec!": entry["spec"]}
    )
    schema["properties"]["status"] = {}
    return schema


def _unique(validator: Any, keys: list[str], items: Any, schema: Json) -> Any:
    if not keys or not isinstance(items, list):
        return
    seen = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
    for twice in sorted({str(key) for key in seen if seen.count(key) > 1}):
        yield ValidationError(f"two items with the same {', '.join(keys)}: {twice}")


def _list_keys(validator: Any, keys: list[str], items: Any, schema: Json) -> Any:
    if keys != ["containerPort", "protocol"] and keys != ["port", "protocol"]:  # protocol has a default
        yield from _unique(validator, keys, items, schema)


@cache
def _validator(api_version: str, kind: str, kubernetes: str) -> Any:
    checks = {"x-unique": _unique, "x-kubernetes-list-map-keys": _list_keys}
    if (api_version, kind) in custom_kinds():
        schema = custom_schema(api_version, kind)
    elif (api_version, kind) in _core_kinds(kubernetes):
        schema = {"$ref": f"{CORE}#/$defs/{_core_kinds(kubernetes)[api_version, kind]}"}
    else:
        return None
    registry: Any = Registry().with_resource(CORE, Resource.from_contents(definitions(kubernetes)))
    return validators.extend(Draft202012Validator, checks)(schema, registry=registry)


def errors(item: Any, kubernetes: str = KUBERNETES) -> list[str]:
    """What is wrong with an object, one line each; nothing if an API server would take it."""
    if (
        not isinstance(item, dict)
        or not isinstance(item.get("kind"), str)
        or not isinstance(item.get("apiVersion"), str)
    ):
        return ["not an object with apiVersion and kind"]
    validator = _validator(item["apiVersion"], item["kind"], kubernetes)
    if validator is None:
        return [f"no schema for {item['apiVersion']} {item['kind']}"]
    found = sorted(validator.iter_errors(item), key=lambda error: error.json_path)
    name = (item.get("metadata") or {}).get("name")
    lines = [f"{error.json_path}: {error.message[:300]}" for error in found]
    return lines if name else [*lines, "$.metadata.name: missing"]


def _structural(schema: Json) -> Json:
    """A schema as an API server wants it in a CRD: Kubernetes' own types are left open."""
    if "$ref" in schema or not schema:
        return {"x-kubernetes-preserve-unknown-fields": True} | ({"type": "object"} if schema else {})
    if isinstance(schema["type"], list):
        rest = [kind for kind in schema["type"] if kind != "null"]
        if len(rest) > 1:
            return {"x-kubernetes-int-or-string": True}
        return _structural({**schema, "type": rest[0]})
    kept = {key: schema[key] for key in ("type", "enum", "minimum") if key in schema}
    if "properties" in schema:
        kept["properties"] = {name: _structural(part) for name, part in schema["properties"].items()}
        kept |= {"required": schema["required"]} if schema["required"] else {}
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _structural(schema["additionalProperties"])
    if "items" in schema:
        kept["items"] = _structural(schema["items"])
    return kept


def crd(kind: str) -> Json:
    """A CustomResourceDefinition of a custom kind for an API server under test."""
    (api_version, entry) = next((version, entry) for (version, name), entry in custom_kinds().items() if name == kind)
    group, version = api_version.split("/")
    plural = kind.lower() + "s"
    schema = {"type": "object", "properties": {"spec": _structural(expand(entry["spec"]))}}
    schema["properties"]["status"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": entry.get("scope", "Namespaced"),
            "names": {"kind": kind, "listKind": kind + "List", "plural": plural, "singular": kind.lower()},
            "versions": [served | {"subresources": {"status": {}}}],
        },
    }
