"""Strict reading and writing of JSON lines; what cannot be read is kept with its reason and its place."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

MAX_LINE_BYTES = 4 * 2**20
MAX_DEPTH = 32

RecordT = TypeVar("RecordT", bound=BaseModel)


@dataclass(frozen=True)
class BadRecord:
    """A row that could not be used: where it stood (1-based line, byte offset), why, and its beginning."""

    place: str
    reason: str
    excerpt: str

    def as_dict(self) -> dict[str, str]:
        """Return the row of the quarantine file."""
        return {"place": self.place, "reason": self.reason, "excerpt": self.excerpt}


def parse_strict(data: bytes, max_bytes: int = MAX_LINE_BYTES) -> Any:
    """Parse one JSON value, refusing what `json.loads` lets through.

    Raises:
        ValueError: invalid UTF-8, lone surrogates, NaN or infinities, duplicate keys, depth over MAX_DEPTH, a NUL
            character, or more than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise ValueError(f"row of {len(data)} bytes is over the limit of {max_bytes}")
    value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    _refuse_odd_text(value)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return result


def _refuse_odd_text(value: Any, depth: int = 0) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate cannot be written back
        if "\x00" in value:
            raise ValueError("contains a NUL character")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is out of range")
    elif isinstance(value, list | dict):
        if depth >= MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        for item in value:
            _refuse_odd_text(item, depth + 1)
        if isinstance(value, dict):
            for item in value.values():
                _refuse_odd_text(item, depth + 1)


def explain(error: ValueError) -> str:
    """Return one line for a parsing or validation error; pydantic's are shortened to field and message."""
    if isinstance(error, ValidationError):
        parts = (f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors(include_url=False))
        return "; ".join(parts)
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return "contains a lone surrogate"
    return str(error)


def read_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, Any] | BadRecord]:
    """Yield (place, value) for each line of a binary stream, or a BadRecord; only b"\\n" ends a row.

    Blank lines are passed over, and so is a byte order mark at the very beginning.
    """
    offset = 0
    for number, line in enumerate(lines, start=1):
        place, data = f"{name}:{number} (byte {offset})", line.rstrip(b"\r\n")
        offset += len(line)
        data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        if not data.strip():
            continue
        try:
            yield place, parse_strict(data)
        except (ValueError, RecursionError) as error:
            reason = explain(error) if isinstance(error, ValueError) else "nested too deeply"
            yield BadRecord(place, reason, excerpt(data))


def excerpt(data: bytes, limit: int = 200) -> str:
    """Return the beginning of a row as printable text."""
    return data[:limit].decode("utf-8", errors="backslashreplace").replace("\x00", "\\x00")


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> int:
    """Write one JSON object a line with sorted keys (so equal rows are equal bytes); return how many.

    Writes to a temporary name and renames, so a killed process leaves either no file or a whole one.
    """
    return write_lines(path, map(to_line, rows))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write what `to_line` made, or several such lines at a time, as `write_jsonl` does; return how many items."""
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("wb") as file:
        for line in lines:
            file.write(line)
            count += 1
    temporary.replace(path)
    return count


def to_line(row: BaseModel | dict[str, Any]) -> bytes:
    """Return one row as a JSON line."""
    value = row.model_dump(mode="json") if isinstance(row, BaseModel) else row
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_models(path: Path, model: type[RecordT]) -> list[RecordT]:
    """Read a JSONL artifact of our own writing; any bad row is an error naming its place."""
    rows: list[RecordT] = []
    with path.open("rb") as file:
        for item in read_rows(file, path.name):
            if isinstance(item, BadRecord):
                raise ValueError(f"{item.place}: {item.reason}")
            rows.append(model.model_validate(item[1]))
    return rows
