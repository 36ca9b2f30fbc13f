"""The traces there are: every reply is on disk when it is counted, and on S3 when its shard is full.

The journal is a file of this machine; it survives a killed process. Shards are objects beside the output; they survive
the machine. Shard i covers a fixed range of rows and is written in parts: one as a rule, more where rows failed at
first. A failure is written to neither, so the next attempt asks again for exactly the rows that have no trace.
"""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from components.adapters.stage import Output
from components.core.records import BadRecord, read_rows, to_line
from components.core.schema import Trace

logger = logging.getLogger(__name__)

READERS = 8


@dataclass
class Ledger:
    """Which of the rows `keys` have a trace; made by `open_ledger`."""

    output: Output
    keys: Sequence[str]
    shard_size: int
    journal: Path
    traces: dict[str, Trace] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    num_parts: dict[int, int] = field(default_factory=dict)

    def add(self, trace: Trace) -> None:
        """Keep a trace: it is on disk when this returns."""
        with self.journal.open("ab") as file:
            file.write(to_line(trace))
            file.flush()
            os.fsync(file.fileno())
        self.traces[trace.key] = trace

    @property
    def missing(self) -> list[int]:
        """The rows without a trace, in their order."""
        return [index for index, key in enumerate(self.keys) if key not in self.traces]
