"""The file that stands between a stage and MLflow: every call is a line in it before anything is sent.

Layout of the spool directory:
    ops.jsonl        one operation a line, numbered; written by the stage
    files/<seq>/     copies of the files that operations speak of
    state.json       how far delivery came, into which run; written by the delivery process
    rejected.jsonl   operations that MLflow refused for good, with the reason
    delivery.log     what the delivery process and the MLflow client had to say
    lock             held by the one process that delivers
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 5000
MAX_KEY_CHARS = 250
MAX_POINTS = 1000
MAX_PARAMS_OR_TAGS = 100
BATCHED = {"params", "metrics", "tags"}
_BAD_KEY_CHARS = re.compile(r"[^\w\-. :/]", re.ASCII)


def clean_key(key: str) -> str:
    """Return a key that MLflow takes: ASCII letters, digits and `_-. :`, no odd path, at most 250 characters."""
    parts = _BAD_KEY_CHARS.sub("_", key).split("/")
    cleaned = "/".join(part for part in parts if part.strip(". ")) or "_"
    return cut(cleaned, MAX_KEY_CHARS, mark="-{digest}")


def cut(text: str, limit: int, mark: str = "... [cut, {chars} characters, sha256 {digest}]") -> str:
    """Shorten text to a limit; the digest in the mark keeps two long values apart that start alike."""
    if len(text) <= limit:
        return text
    end = mark.format(chars=len(text), digest=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12])
    return text[: limit - len(end)] + end


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as one level of dotted keys and text, as MLflow stores parameters; lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, (Mapping, list, tuple)):
            flat[clean_key(name)] = cut(json.dumps(value, default=str, ensure_ascii=False), MAX_PARAM_CHARS)
        else:
            flat[clean_key(name)] = cut(str(value), MAX_PARAM_CHARS)
    return flat


def numeric_leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of nested values under dotted keys; text, truth values and lists are left out."""
    leaves: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= numeric_leaves(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            leaves[clean_key(f"{prefix}{key}")] = float(value)
    return leaves


def finite(metrics: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """Return the metrics that MLflow can show and the number of those that it cannot (NaN breaks its pages)."""
    kept = {clean_key(key): float(value) for key, value in metrics.items() if math.isfinite(value)}
    return kept, len(metrics) - len(kept)


@dataclass(frozen=True)
class Op:
    """One operation: its number, its kind, when it was made (milliseconds since 1970), and what it carries."""

    seq: int
    kind: str
    time: int
    data: dict[str, Any]


@dataclass(frozen=True)
class State:
    """How far delivery came. `opened` is the time of the `open` that led to the run; ids are MLflow's.

    `error` is what holds up the process `deliverer`; an earlier process's error says nothing about now. `told_until` is
    set where the run had ended after `opened`, so that this attempt at the stage is told behind another one: it is the
    time of the attempt's last operation.
    """

    acked: int = 0
    deliverer: int = 0
    error: str = ""
    rejected: int = 0
    opened: int = 0
    open_seq: int = 0
    reused: bool = False
    run_id: str = ""
    experiment_id: str = ""
    told_until: int = 0


def read_state(directory: Path) -> State:
    """Return the state on disk, or the initial one."""
    with suppress(FileNotFoundError):
        return State(**json.loads((directory / "state.json").read_bytes()))
    return State()


def write_state(directory: Path, state: State) -> None:
    """Replace the state on disk in one step."""
    scratch = directory / "state.json.tmp"
    scratch.write_text(json.dumps(asdict(state)))
    scratch.replace(directory / "state.json")


@contextmanager
def sole_deliverer(directory: Path, wait_seconds: float) -> Iterator[bool]:
    """Hold the delivery lock, or yield False if another process kept it; a dead holder's lock is free at once."""
    deadline = time.monotonic() + wait_seconds
    with (directory / "lock").open("w") as file:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= deadline:
                yield False
                return
            time.sleep(0.05)
        yield True


@dataclass
class Spool:
    """The writing end, for one process; safe to call from several threads."""

    directory: Path
    last_seq: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        """The file of operations."""
        return self.directory / "ops.jsonl"

    @classmethod
    def open(cls, directory: Path) -> "Spool":
        """Continue the spool of a directory: drop what is delivered, and the torn line of a killed process."""
        directory.mkdir(parents=True, exist_ok=True)
        spool, acked = cls(directory), read_state(directory).acked
        content = spool.path.read_bytes() if spool.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(spool.path, len(whole))
        last = json.loads(whole.splitlines()[-1])["seq"] if whole else 0
        spool.last_seq = max(acked, last)
        with sole_deliverer(directory, 0) as alone:
            if alone and whole and acked >= last:
                spool.path.unlink()
                shutil.rmtree(directory / "files", ignore_errors=True)
        return spool

    def append(self, kind: str, data: Mapping[str, Any], files: Mapping[str, bytes | Path] | None = None) -> Op:
        """Add one operation, with copies of the files that it needs."""
        with self._lock:
            op = Op(self.last_seq + 1, kind, time.time_ns() // 1_000_000, dict(data))
            for name, content in (files or {}).items():
                target = self.directory / "files" / str(op.seq) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, target)
                else:
                    target.write_bytes(content)
            line = json.dumps(asdict(op), ensure_ascii=True, allow_nan=False) + "\n"
            with self.path.open("ab") as file:
                file.write(line.encode())
            self.last_seq = op.seq
        return op


@dataclass
class SpoolReader:
    """The reading end: whole lines only, each given once."""

    directory: Path
    acked: int
    _offset: int = 0

    def read(self) -> list[Op]:
        """Return the operations that were added since the last call and are not yet acknowledged."""
        try:
            with (self.directory / "ops.jsonl").open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        ops = (Op(**json.loads(line)) for line in whole.splitlines())
        return [op for op in ops if op.seq > self.acked]


def reject(directory: Path, op: Op, reason: str, state: State) -> State:
    """Put an operation aside that MLflow refused for good, and count it."""
    with (directory / "rejected.jsonl").open("a") as file:
        file.write(json.dumps({**asdict(op), "reason": reason}) + "\n")
    return replace(state, rejected=state.rejected + 1)


def next_batch(ops: list[Op]) -> list[Op]:
    """Return the first operation, with those behind it that fit into the same request."""
    batch, sizes = [ops[0]], dict.fromkeys(BATCHED, 0)
    if ops[0].kind not in BATCHED:
        return batch
    sizes[ops[0].kind] = len(ops[0].data[ops[0].kind])
    for op in ops[1:]:
        if op.kind not in BATCHED:
            break
        sizes[op.kind] += len(op.data[op.kind])
        # A changed parameter becomes a tag, so both together stay under the limit of tags.
        if sizes["metrics"] > MAX_POINTS or sizes["params"] + sizes["tags"] > MAX_PARAMS_OR_TAGS:
            break
        batch.append(op)
    return batch
