"""What there is: every reply is in a file when it is counted, and on S3 when its shard is full, or a minute later.

The journal is a file of this machine; it survives a killed process. Shards are objects beside the output; they survive
the machine. Shard i covers a range of pairs and is written in parts: one as a rule for each step of the cascade, more
where it took long or rows failed at first. The first writer of a part wins: what is committed holds against the
journal. The size of the ranges may change between attempts: a row that is found in any part is committed.

Both are JSON lines of three kinds. A Trace. `{"failed": name, "kind": ..., "reason": ...}`: a row without a trace,
which the next attempt asks for again unless a later step has taken it over. `{"waste": id, "name": ..., ...}`: tokens
that were paid for a row and gave no trace; the last line of an id holds.

Parts of this work write shards of their own among the same objects. Where one ran on this very disk and was killed,
its journal holds answers that never got to S3; they are taken over.

Only where a row stands is kept in memory, about 0.5 KB a trace.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any, Literal, NamedTuple

from components.adapters.part import workdirs_beside
from components.adapters.stage import Output
from components.adapters.teachers import Failure, Usage
from components.core.errors import ReasrmError
from components.core.records import BadRecord, parse_strict, read_rows, to_line
from components.core.schema import Trace, trace_name
from components.core.verdict import parse_verdict
from components.traces.journal import Journal, lines_at

logger = logging.getLogger(__name__)

JOURNAL_NAME = "replies.jsonl"
READERS = 8
_PART = re.compile(r"shard-(\d+)-(\d+)\.jsonl$")


class Entry(NamedTuple):
    """A trace that there is: the file of its line (empty: the journal), where in it, and what is counted of it.

    `verdict` tells whether it has one.
    """

    file: str
    offset: int
    size: int
    teacher: str
    right: bool
    verdict: bool
    truncated: bool
    prompt_tokens: int
    completion_tokens: int
    rationalised: bool


class Waste(NamedTuple):
    """Tokens paid for a row without a trace for them."""

    name: str
    usage: Usage


class Item(NamedTuple):
    """A line that is to be committed: its kind, and the name or the id under which it is found."""

    kind: Literal["trace", "failed", "waste"]
    id: str


@dataclass(frozen=True)
class Part:
    """What is about to be committed of a shard."""

    shard: int
    name: str
    items: tuple[Item, ...]


@dataclass
class Ledger:
    """Which rows have a trace, have failed or were paid in vain, and what of it is on S3; made by `open_ledger`.

    `shard_of` returns the shard of a trace's name, or None for a name that is not of this work. Its methods belong to
    one thread, but for `commit`.
    """

    output: Output
    journal: Journal
    shard_of: Callable[[str], int | None]
    entries: dict[str, Entry] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    wastes: dict[str, Waste] = field(default_factory=dict)
    fresh: defaultdict[int, set[Item]] = field(default_factory=lambda: defaultdict(set))
    num_parts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder = self.output.workdir / "shards"
        self.folder.mkdir(exist_ok=True)

    def add(self, trace: Trace) -> None:
        """Keep a trace: it is in the journal when this returns."""
        line = to_line(trace)
        self._take_trace(trace, "", self.journal.append(line), len(line))

    def fail(self, failure: Failure) -> None:
        """Keep a failure, so that it is known should a later step take the row over."""
        if (known := self.failures.get(failure.key)) and _failed(known) == _failed(failure):
            return
        self.journal.append(to_line(_failed(failure)))
        self._take_failure(failure)

    def waste(self, id: str, name: str, usage: Usage) -> None:
        """Keep what was paid in vain for a row until now; no tokens take back what was kept under this id."""
        self.journal.append(to_line(_wasted(id, Waste(name, usage))))
        self._take_waste(id, Waste(name, usage))

    def line(self, name: str) -> bytes:
        """Return the line of a trace."""
        entry = self.entries[name]
        if not entry.file:
            return self.journal.read(entry.offset, entry.size)
        with (self.folder / entry.file).open("rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)

    def trace(self, name: str) -> Trace:
        """Return a trace."""
        return Trace.model_validate(parse_strict(self.line(name)))

    def next_part(self, shard: int, under_way: Container[str] = ()) -> Part | None:
        """Return what is not committed yet of a shard, if anything, and count it as committed.

        Of the rows under way nothing is taken: what they cost in vain is not final.
        """
        fresh = set(filter(self._is_current, self.fresh.pop(shard, ())))
        waiting = {item for item in fresh if self._row_of(item) in under_way}
        if waiting:
            self.fresh[shard] = waiting
        items = sorted(fresh - waiting)
        if not items:
            return None
        part = Part(shard, part_name(shard, self.num_parts[shard]), tuple(items))
        self.num_parts[shard] += 1
        return part

    def commit(self, part: Part) -> None:
        """Write a part to S3 and keep here what is there then; another machine may have been first. For any thread."""
        ours = b"".join(map(self._content, part.items))
        self.output.write_partial(part.name, ours)
        self._cache(part.name, self.output.read_partial(part.name) or ours)

    def adopt(self, part: Part) -> None:
        """Build on a part that was committed; of ours, what is not in it waits for the next one.

        Raises ReasrmError for a row that is in it as we wrote it, and yet cannot be read: sent again, it would be so
        for ever.
        """
        path = self.folder / part.name
        missing = set(filter(self._is_current, set(part.items) - self._load(path, part.name)))
        there = {line for _, line in lines_at(path)} if missing else set()
        unreadable = {item for item in missing if self._content(item) in there}
        self.fresh[part.shard].update(missing - unreadable)
        if unreadable:
            raise ReasrmError(
                f"{self.output.partial_uri(part.name)} has the row {min(unreadable).id} as it was written here, but it "
                "cannot be read back; this is a fault of reasrm: report it with that line, and run again to ask anew"
            )

    def give_up(self, part: Part) -> None:
        """Take back a part that could not be committed."""
        self.fresh[part.shard].update(part.items)

    def recover(self) -> None:
        """Take over what earlier attempts left: first the journal, then what was committed, which wins."""
        self._load(self.journal.path, "")
        prefix = self.output.partial_uri("")
        found = [(info.uri.removeprefix(prefix), info.size) for info in self.output.storage.list(f"{prefix}shard-")]
        names = [(name, size) for name, size in found if _PART.fullmatch(name)]
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda one: self._fetch(*one), names))
        committed: set[Item] = set()
        for shard, number, name in sorted((*_numbers(name), name) for name, _ in names):
            self.num_parts[shard] = number + 1
            committed |= self._load(self.folder / name, name)
        for shard, items in self.fresh.items():
            self.fresh[shard] = {item for item in items if item not in committed}

    def take_over(self, journal: Path, has: Callable[[str], bool]) -> None:
        """Take over what is only in the journal of another process, of the rows that `has` names: it was paid for."""
        wastes: dict[str, Waste] = {}
        for offset, line in lines_at(journal):
            for row in read_rows([line], f"{journal} at byte {offset}"):
                value = {} if isinstance(row, BadRecord) else row[1]
                if "waste" in value:
                    wastes[value["waste"]] = _waste(value)  # the last one of an id holds
                    continue
                name = value.get("failed") or trace_name(
                    value.get("key", ""), value.get("step", 0), value.get("sample", 0)
                )
                if name in self.entries or not has(name):
                    continue
                if "failed" not in value:
                    self.add(Trace.model_validate(value))
                elif name not in self.failures:
                    self.fail(_failure(value))
        for id, waste in wastes.items():
            if has(waste.name) and waste != self.wastes.get(id, Waste(waste.name, Usage())):
                self.waste(id, waste.name, waste.usage)

    def _load(self, path: Path, file: str) -> set[Item]:
        """Take over the rows of a file and return them; those that are torn or foreign are left.

        Of two committed traces of a row the first holds.
        """
        items = set()
        for offset, line in lines_at(path):
            for row in read_rows([line], f"{path.name} at byte {offset}"):
                try:
                    if isinstance(row, BadRecord):
                        raise ValueError(row.reason)
                    items.add(self._take(row[1], file, offset, len(line)))
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    logger.warning("%s at byte %s: not a row of this work, passed over: %s", path.name, offset, error)
        return items

    def _take(self, value: Any, file: str, offset: int, size: int) -> Item:
        if "waste" in value:
            return self._take_waste(value["waste"], _waste(value), file)
        if "failed" in value:
            return self._take_failure(_failure(value), file)
        return self._take_trace(Trace.model_validate(value), file, offset, size)

    def _take_trace(self, trace: Trace, file: str, offset: int, size: int) -> Item:
        name, item = trace.name, Item("trace", trace.name)
        shard = self._shard(name)
        known = self.entries.get(name)
        if known is None or not known.file:
            truncated = trace.finish_reason == "length"
            verdict = parse_verdict(trace.text, truncated=truncated).winner is not None
            where, tokens = (file, offset, size), (trace.prompt_tokens, trace.completion_tokens)
            self.entries[name] = Entry(
                *where, intern(trace.teacher), bool(trace.right), verdict, truncated, *tokens, trace.rationalised
            )
        if self.failures.pop(name, None):
            self.fresh[shard].discard(Item("failed", name))
        return self._mark(shard, item, file)

    def _take_failure(self, failure: Failure, file: str = "") -> Item:
        shard = self._shard(failure.key)
        if failure.key not in self.entries:
            self.failures[failure.key] = failure
        return self._mark(shard, Item("failed", failure.key), file)

    def _take_waste(self, id: str, waste: Waste, file: str = "") -> Item:
        shard = self._shard(waste.name)
        self.wastes[id] = waste
        if waste.usage == Usage():
            del self.wastes[id]
        return self._mark(shard, Item("waste", id), file)

    def _mark(self, shard: int, item: Item, file: str) -> Item:
        if not file:
            self.fresh[shard].add(item)
        return item

    def _shard(self, name: str) -> int:
        shard = self.shard_of(name)
        if shard is None:
            raise LookupError(f"{name} is not among the rows")
        return shard

    def _is_current(self, item: Item) -> bool:
        if item.kind == "trace":
            return item.id in self.entries
        return item.id in (self.failures if item.kind == "failed" else self.wastes)

    def _row_of(self, item: Item) -> str:
        return self.wastes[item.id].name if item.kind == "waste" else item.id

    def _content(self, item: Item) -> bytes:
        if item.kind == "trace":
            return self.line(item.id)
        if item.kind == "waste":
            return to_line(_wasted(item.id, self.wastes[item.id]))
        return to_line(_failed(self.failures[item.id]))

    def _fetch(self, name: str, size: int) -> None:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != size:
            self._cache(name, self.output.read_partial(name) or b"")

    def _cache(self, name: str, data: bytes) -> None:
        temporary = self.folder / f"{name}.tmp"
        temporary.write_bytes(data)
        temporary.replace(self.folder / name)


def part_name(shard: int, part: int) -> str:
    """Return the name of the object that holds one part of a shard."""
    return f"shard-{shard:05d}-{part}.jsonl"


def _numbers(name: str) -> tuple[int, int]:
    match = _PART.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _failed(failure: Failure) -> dict[str, Any]:
    return {"failed": failure.key, "kind": failure.kind, "reason": failure.reason}


def _failure(value: dict[str, Any]) -> Failure:
    return Failure(value["failed"], value["kind"], value["reason"])


def _waste(value: dict[str, Any]) -> Waste:
    return Waste(value["name"], Usage(int(value["prompt_tokens"]), int(value["completion_tokens"])))


def _wasted(id: str, waste: Waste) -> dict[str, Any]:
    tokens = {"prompt_tokens": waste.usage.prompt_tokens, "completion_tokens": waste.usage.completion_tokens}
    return {"waste": id, "name": waste.name} | tokens


@contextmanager
def open_ledger(
    output: Output, shard_of: Callable[[str], int | None], has: Callable[[str], bool] | None = None
) -> Iterator[Ledger]:
    """Open the ledger with all that earlier attempts left; `has` names the rows taken over from others on this disk."""
    with Journal(output.workdir / JOURNAL_NAME) as journal:
        ledger = Ledger(output, journal, shard_of)
        ledger.recover()
        if has is not None:
            for folder in workdirs_beside(output.workdir):
                if (other := folder / JOURNAL_NAME).is_file():
                    ledger.take_over(other, has)
        yield ledger
