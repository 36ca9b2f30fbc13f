"""The rows of a source, wherever it lies, as its `select` settings want them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.adapters.hub import SCHEME, hub_digest, open_dataset
from components.adapters.rows import BATCH_ROWS, Row, read_batches, read_file
from components.adapters.sources import SourceFile, digest, list_files, local_copy
from components.core.errors import InvalidInput
from components.core.sources import BenchmarkSettings, Cell, Select, SourceSettings

if TYPE_CHECKING:
    from components.adapters.storage import Storage

__all__ = ["Reader", "Row", "named", "read_source", "source_digest"]

MOST_COLUMNS_NAMED = 20
_ABSENT = object()


def read_source(source: SourceSettings | BenchmarkSettings, storage: "Storage", directory: Path) -> "Reader":
    """Return the rows of a source as an iterable of (place, value) or BadRecord.

    Nothing is read before the iteration begins, and each iteration begins anew. S3 objects are copied to `directory`.
    """
    return Reader(source, storage, directory)


def named(source: SourceSettings | BenchmarkSettings) -> str:
    """Return the uri by which a source goes into records; a hub dataset's has its revision."""
    return f"{source.uri}@{source.revision}" if source.revision else source.uri


def source_digest(source: SourceSettings | BenchmarkSettings, storage: "Storage") -> str:
    """Return the sha256 in hex of what a source holds; of a hub dataset, that of what pins it.

    Raises:
        InvalidInput: the source is not there, or its settings do not fit its uri.
    """
    if source.uri.startswith(SCHEME):
        return hub_digest(source.uri, source.revision, source.select.split, source.select.subset)
    for name, value in (("revision", source.revision), ("select.subset", source.select.subset)):
        if value:
            raise InvalidInput(f"{source.uri} is no dataset of the hub, so it has no {name} ({value}); leave it out")
    return digest(source.uri, storage, _until(source))


def _until(source: SourceSettings | BenchmarkSettings) -> str:
    return source.until if isinstance(source, SourceSettings) else ""


@dataclass
class Reader:
    """The selected rows of a source; the counts are those of the latest iteration, right when it has ended.

    `keep` and `drop` go through the rows one by one. `sample` goes twice: the rows are counted, and then those are
    yielded, in the source's order, that `datasets` would pick with `shuffle(seed).select(range(sample))`. A row that
    cannot be read has no columns to select by, so it stays, and it counts as a row in the draw.

    Iterating raises InvalidInput when the source is not there or broken, or does not have a column that `select` names.
    """

    source: SourceSettings | BenchmarkSettings
    storage: "Storage"
    directory: Path
    num_rows: int = field(default=0, init=False)
    """Rows of the source before any selection."""
    num_selected_out: int = field(default=0, init=False)
    """Rows that `select` left out; nothing is wrong with them."""

    def __iter__(self) -> Iterator[Row]:
        select = self.source.select
        if select.sample is None:
            yield from self._kept()
            return
        drawn = _drawn(sum(1 for _ in self._kept()), select.sample, select.seed)
        for number, row in enumerate(self._kept()):
            if drawn[number]:
                yield row
            else:
                self.num_selected_out += 1

    def _kept(self) -> Iterator[Row]:
        """Yield the rows that `keep` and `drop` leave."""
        filters = _Filters(self.source.select)
        self.num_rows = self.num_selected_out = 0
        for row in self._rows():
            self.num_rows += 1
            if filters.leave(row):
                yield row
            else:
                self.num_selected_out += 1
        if self.num_rows:
            filters.check(self.source.uri)

    def _rows(self) -> Iterator[Row]:
        if self.source.uri.startswith(SCHEME):
            name = f"{self.source.uri}/{self.source.select.split}"
            yield from read_batches(self._dataset.with_format("arrow").iter(batch_size=BATCH_ROWS), name)
            return
        for file in self._files:
            yield from read_file(local_copy(file.uri, self.storage, self.directory), file.uri)

    @cached_property
    def _dataset(self) -> Any:
        select = self.source.select
        return open_dataset(self.source.uri, self.source.revision, select.split, select.subset)

    @cached_property
    def _files(self) -> list[SourceFile]:
        return list_files(self.source.uri, self.storage, _until(self.source))


def _drawn(num_rows: int, sample: int, seed: int) -> Any:
    """Return a mask of the rows that `datasets.Dataset.shuffle(seed).select(range(sample))` takes."""
    import numpy as np

    mask = np.zeros(num_rows, dtype=bool)
    mask[np.random.default_rng(seed).permutation(num_rows)[:sample]] = True
    return mask


class _Filters:
    """`keep` and `drop` applied to rows, and which of their columns were ever there."""

    def __init__(self, select: Select) -> None:
        self.keep, self.drop = select.keep, select.drop
        self.unseen = {*select.keep, *select.drop}
        self.columns: dict[str, None] = {}

    def leave(self, row: Row) -> bool:
        """Tell whether the row stays."""
        if not (self.keep or self.drop) or not isinstance(row, tuple) or not isinstance(row[1], dict):
            return True
        cells = {column: cell_of(row[1], column) for column in (*self.keep, *self.drop)}
        if self.unseen:
            self.unseen -= {column for column, cell in cells.items() if cell is not _ABSENT}
            self.columns |= dict.fromkeys(list(row[1])[:MOST_COLUMNS_NAMED])
        kept = all(_is_one_of(cells[column], values) for column, values in self.keep.items())
        return kept and not any(_is_one_of(cells[column], values) for column, values in self.drop.items())

    def check(self, uri: str) -> None:
        """Raise InvalidInput when a column was in no row at all."""
        if self.unseen:
            names = ", ".join(sorted(self.columns)[:MOST_COLUMNS_NAMED]) or "none"
            raise InvalidInput(f"{uri} has no column {', '.join(sorted(self.unseen))} to select by; there are {names}")


def cell_of(row: dict[str, Any], column: str) -> Any:
    """Return a cell; a name with dots that is no column itself reaches into objects (`meta.n`)."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _is_one_of(cell: Any, values: tuple[Cell, ...]) -> bool:
    """Compare as JSON does: 1 is 1.0, but true is not 1."""
    return any(cell == value and isinstance(cell, bool) == isinstance(value, bool) for value in values)
