"""The pairs in the orders in which they are judged; their texts stay on the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from components.core.errors import InvalidInput
from components.core.records import BadRecord, parse_strict, read_rows
from components.core.schema import Label, PreferencePair


class View(NamedTuple):
    """One pair in one order: what is needed to grade its judgments, and where its text is (byte offset of its line).

    `place` counts the pairs from 0.
    """

    key: str
    pair_id: str
    label: Label
    swapped: bool
    place: int
    offset: int


class Pairs:
    """A file of pairs, read once for its views and then row by row; about 0.5 KB of memory a view."""

    def __init__(self, path: Path, *, both_orders: bool) -> None:
        """Read the file. Raises InvalidInput when a pair occurs twice, ValueError for a bad row."""
        self.path = path
        self.views: list[View] = []
        self.number: dict[str, int] = {}
        place = -1
        for place, (offset, pair) in enumerate(_rows(path)):
            for one in (pair, pair.shown(not pair.swapped)) if both_orders else (pair,):
                if one.key in self.number:
                    raise InvalidInput(f"{path.name} has the pair {one.key} twice; give every pair an id of its own")
                self.number[one.key] = len(self.views)
                self.views.append(View(one.key, one.id, one.label, one.swapped, place, offset))
        self.num_pairs = place + 1

    def pair(self, view: View) -> PreferencePair:
        """Return the pair in the order of the view."""
        with self.path.open("rb") as file:
            file.seek(view.offset)
            pair = PreferencePair.model_validate(parse_strict(file.readline()))
        return pair.shown(view.swapped)


def _rows(path: Path) -> Iterator[tuple[int, PreferencePair]]:
    offset = size = 0

    def lines() -> Iterator[bytes]:
        nonlocal offset, size
        with path.open("rb") as file:
            for line in file:
                offset, size = offset + size, len(line)
                yield line

    for row in read_rows(lines(), path.name):
        if isinstance(row, BadRecord):
            raise ValueError(f"{row.place}: {row.reason}")
        yield offset, PreferencePair.model_validate(row[1])
