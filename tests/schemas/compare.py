"""Compare the schemas here with upstream's: `python tests/schemas/compare.py upstream_crd.yaml...`.

Prints each field that only one side knows, and each type, list of words or requirement that differs; exits 1 if there
is any. Where a schema here names a type of Kubernetes' own, or says `any`, it looks no deeper.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from validation import custom_kinds, expand


def differences(ours: Any, theirs: Any, place: str) -> Iterator[str]:
    """What differs, one line each."""
    if not ours or "$ref" in ours:
        return
    if "type" in theirs and isinstance(ours["type"], str) and ours["type"] != theirs["type"]:
        yield f"{place}: {ours['type']} here, {theirs['type']} upstream"
    words = set(theirs.get("enum", ())) - {""}
    if set(ours.get("enum", ())) - {""} != words and (words or "x-kubernetes-validations" not in theirs):
        yield f"{place}: {ours.get('enum')} here, {theirs.get('enum')} upstream"
    mine, yours = ours.get("properties", {}), theirs.get("properties", {})
    for name in sorted(set(mine) | set(yours)):
        if name not in mine or name not in yours:
            yield f"{place}.{name}: only {'here' if name in mine else 'upstream'}"
        else:
            yield from differences(mine[name], yours[name], f"{place}.{name}")
    if set(ours.get("required", ())) != set(theirs.get("required", ())):
        yield f"{place}: required {ours.get('required')} here, {theirs.get('required')} upstream"
    for part in ("items", "additionalProperties"):
        if isinstance(ours.get(part), dict) and isinstance(theirs.get(part), dict):
            yield from differences(ours[part], theirs[part], f"{place}[]")


def main(paths: list[str]) -> int:
    """Compare the kinds in these files."""
    known, count = custom_kinds(), 0
    for crd in (found for path in paths for found in yaml.load_all(Path(path).read_bytes(), yaml.CSafeLoader)):
        spec = crd["spec"]
        for version in spec["versions"]:
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            if key in known:
                theirs = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
                found = list(differences(expand(known[key]["spec"]), theirs, key[1]))
                count += len(found)
                sys.stdout.writelines(line + "\n" for line in found or [f"{key[1]}: no difference"])
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
