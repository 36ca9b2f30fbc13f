"""Rows of preference files, one at a time, with their places; a row that cannot be read is a BadRecord."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.adapters.sources import open_lines
from components.core.errors import InvalidInput
from components.core.records import BadRecord, excerpt, explain, parse_strict, read_rows

BATCH_ROWS = 256

Row = tuple[str, Any] | BadRecord


def read_source(path: Path, name: str) -> Iterator[Row]:
    """Yield (place, value) or a BadRecord for each row of a file called `name`, whose end says its format.

    Raises:
        InvalidInput: the file as a whole is not what its name says, or breaks off.
    """
    if name.endswith(".parquet"):
        yield from _read_parquet(path, name)
    else:
        yield from read_rows(open_lines(path, name), name)


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch.slice(index, 1), f"{name}:row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"{name} cannot be read as Parquet: {error}; copy it again or give JSON lines") from error


def _parquet_row(batch: Any, place: str) -> Row:
    """Pass a row through JSON, so that one set of rules holds for both formats; an empty cell is an absent column."""
    try:
        cells = {key: value for key, value in batch.to_pylist()[0].items() if value is not None}
        return place, parse_strict(json.dumps(cells, default=str, ensure_ascii=False).encode())
    except UnicodeDecodeError as error:
        return BadRecord(place, explain(error), excerpt(error.object))
    except ValueError as error:
        return BadRecord(place, explain(error), excerpt(str(batch.to_pylist()[0]).encode(errors="backslashreplace")))
