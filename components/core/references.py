"""Registered models as people write them: `name`, `name/3`, `name@champion`, each with `models:/` before it or not."""

import re
from typing import NamedTuple

NAME = r"[^/:@'\x00-\x1f]{1,200}"
"""MLflow forbids / and : in a model's name; @ would begin an alias, and a quote end the filter of a search."""
_MODEL = rf"(models:/)?({NAME})(?:/(\d+)|@([A-Za-z0-9_-]{{1,255}}))?"
REFERENCE = rf"^(s3://[^/]+/.+|{_MODEL})?$"
"""An artifact's uri, or a registered model."""
_WHOLE = re.compile(_MODEL)


class ModelName(NamedTuple):
    """A registered model, and which version of it is meant: a number, an alias, or with neither the newest."""

    name: str
    version: str = ""
    alias: str = ""


def parse_name(reference: str) -> ModelName | None:
    """Return what a reference to a registered model names, or None if it is no such reference."""
    match = _WHOLE.fullmatch(reference)
    return ModelName(match[2], match[3] or "", match[4] or "") if match else None
