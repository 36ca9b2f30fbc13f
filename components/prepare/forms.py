"""The column layouts in which preference data comes, each turned into a PreferencePair in its file's own order."""

import hashlib
import json
from typing import Any

from components.core.schema import PreferencePair

_CANONICAL = frozenset(PreferencePair.model_fields) | {"label_type", "licence"}


def is_tie(row: Any) -> bool:
    """Tell whether the row says that neither answer is better."""
    return isinstance(row, dict) and str(row.get("label", "")).lower() == "tie"


def to_pair(row: Any) -> PreferencePair:
    """Return the pair that a row stands for, the layout recognised by its columns.

    Raises:
        ValueError: the row is in no known layout, or is not a pair that can be judged.
    """
    if not isinstance(row, dict):
        raise ValueError(f"is not a JSON object but {type(row).__name__}")
    row = {column: value for column, value in row.items() if value is not None}
    if "response_a" in row and "response_b" in row:
        fields = _from_canonical(row)
    elif "chosen" in row and "rejected" in row:
        fields = _from_choice(row)
    else:
        raise ValueError("has neither response_a and response_b nor chosen and rejected")
    given = row.get("id")
    if given is None:
        content = [fields["prompt"], fields["response_a"], fields["response_b"]]
        given = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    fields["id"] = str(given) if isinstance(given, int) else given
    return PreferencePair.model_validate(fields).shown(False)


def _from_canonical(row: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(row) - _CANONICAL)
    if unknown:
        raise ValueError(f"has unknown columns {unknown[:5]}; put what belongs to the pair into meta")
    if "prompt" not in row:
        raise ValueError("has no prompt")
    extra = {column: row[column] for column in ("label_type", "licence") if column in row}
    fields = {column: value for column, value in row.items() if column not in extra}
    if extra and isinstance(row.get("meta", {}), dict):
        fields["meta"] = {**row.get("meta", {}), **extra}
    return fields


def _from_choice(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if "prompt" not in row:
            raise ValueError("chosen and rejected are texts, so there must be a prompt")
        fields: dict[str, Any] = {"prompt": row["prompt"], "response_a": chosen, "response_b": rejected}
    else:
        turns, response_a = _split_last(chosen, "chosen")
        others, response_b = _split_last(rejected, "rejected")
        if turns != others:
            raise ValueError("chosen and rejected differ before the last turn")
        fields = {"prompt": turns or row.get("prompt", []), "response_a": response_a, "response_b": response_b}
    return fields | {"label": "A"} | {name: row[name] for name in ("source", "category") if name in row}


def _split_last(messages: Any, column: str) -> tuple[list[Any], Any]:
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise ValueError(f"{column} is neither a text nor a list of messages")
    if messages[-1].get("role") != "assistant":
        raise ValueError(f"{column} must end with an assistant turn")
    return messages[:-1], messages[-1].get("content")
