"""The traces there are: every reply is on disk when it is counted, and on S3 when its shard is full.

The journal is a file of this machine; it survives a killed process. Shards are objects beside the output; they survive
the machine. Shard i covers a fixed range of rows and is written in parts: one as a rule, more where rows failed at
first. A failure is written to neither, so the next attempt asks again for exactly the rows that have no trace.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO

from components.adapters.stage import Output
from components.core.records import BadRecord, read_rows, to_line
from components.core.schema import Trace

logger = logging.getLogger(__name__)

JOURNAL_NAME = "replies.jsonl"
READERS = 8


@dataclass
class Ledger:
    """Which of the rows `keys` have a trace, and which traces are on S3; made by `open_ledger`."""

    output: Output
    keys: Sequence[str]
    shard_size: int
    journal: IO[bytes]
    traces: dict[str, Trace] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    committed: set[str] = field(default_factory=set)
    num_parts: Counter[int] = field(default_factory=Counter)

    @property
    def num_shards(self) -> int:
        """How many ranges the rows make up."""
        return math.ceil(len(self.keys) / self.shard_size)

    def add(self, trace: Trace) -> None:
        """Keep a trace: it is on disk when this returns."""
        self.journal.write(to_line(trace))
        self.journal.flush()
        os.fsync(self.journal.fileno())
        self.traces[trace.key] = trace

    def shard_of(self, row: int) -> int:
        """Return the shard that a row belongs to."""
        return row // self.shard_size

    def is_settled(self, shard: int) -> bool:
        """Tell whether every row of a shard has its trace or has failed."""
        return all(key in self.traces or key in self.failed for key in self._keys_of(shard))

    def next_part(self, shard: int) -> tuple[str, bytes] | None:
        """Return name and content of what is to be committed of a shard, and count it as committed."""
        fresh = [key for key in self._keys_of(shard) if key in self.traces and key not in self.committed]
        if not fresh:
            return None
        self.committed.update(fresh)
        name = part_name(shard, self.num_parts[shard])
        self.num_parts[shard] += 1
        return name, b"".join(to_line(self.traces[key]) for key in fresh)

    def load(self, data: bytes, name: str) -> set[str]:
        """Take over the traces of a file of rows, and return their keys; rows that are torn or foreign are left."""
        found = set()
        for row in read_rows(data.splitlines(keepends=True), name):
            try:
                trace = Trace.model_validate(None if isinstance(row, BadRecord) else row[1])
            except ValueError:
                logger.warning("a row of %s is not a trace and is passed over: %s", name, row)
                continue
            if trace.key in self._known:
                self.traces[trace.key] = trace
                found.add(trace.key)
        return found

    def recover_shards(self) -> None:
        """Take over what earlier attempts committed."""
        with ThreadPoolExecutor(READERS) as pool:
            for shard, parts in enumerate(pool.map(self._read_parts, range(self.num_shards))):
                self.num_parts[shard] = len(parts)
                for part in parts:
                    self.committed |= self.load(part, part_name(shard, 0))

    def commit(self, name: str, data: bytes) -> bytes:
        """Write one part and return what is there now: another machine may have been first, and then its rows hold."""
        self.output.write_partial(name, data)
        return self.output.read_partial(name) or data

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.keys)

    def _keys_of(self, shard: int) -> Sequence[str]:
        return self.keys[shard * self.shard_size : (shard + 1) * self.shard_size]

    def _read_parts(self, shard: int) -> list[bytes]:
        parts: list[bytes] = []
        while (part := self.output.read_partial(part_name(shard, len(parts)))) is not None:
            parts.append(part)
        return parts


def part_name(shard: int, part: int) -> str:
    """Return the name of the object that holds one part of a shard."""
    return f"shard-{shard:05d}-{part}.jsonl"


@contextmanager
def open_ledger(output: Output, keys: Sequence[str], shard_size: int) -> Iterator[Ledger]:
    """Open the ledger with all that earlier attempts left: what was committed wins over the journal."""
    path = output.workdir / JOURNAL_NAME
    with path.open("a+b") as journal:
        journal.seek(0)
        data = journal.read()
        whole = data[: data.rfind(b"\n") + 1]
        journal.truncate(len(whole))  # A line that a kill tore off must not grow into the next one.
        ledger = Ledger(output, keys, shard_size, journal)
        ledger.load(whole, path.name)
        ledger.recover_shards()
        yield ledger
