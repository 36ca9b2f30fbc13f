"""Which rows there are: a row is one judgment that one teacher is asked for, of one pair in one order."""

from collections.abc import Iterator
from typing import NamedTuple

from components.adapters.part import WHOLE, Share
from components.core.schema import trace_name
from components.traces.config import Config
from components.traces.ledger import Ledger
from components.traces.pairs import Pairs, View


class Row(NamedTuple):
    """One judgment that is asked for; `name` is its trace's."""

    view: View
    step: int
    sample: int

    @property
    def name(self) -> str:
        """Name the trace that this row is to give."""
        return trace_name(self.view.key, self.step, self.sample)


class Plan:
    """The rows of a cascade, as far as the traces that there are decide them; those of a share, if it is a part's.

    `views` are those that are asked about: of whole shards, so that parts commit what the whole would.
    """

    def __init__(self, settings: Config, pairs: Pairs, share: Share = WHOLE) -> None:
        self.settings, self.pairs, self.share = settings, pairs, share
        self.views = pairs.views if share.is_whole else [view for view in pairs.views if self._takes(view)]
        self.sent = 0
        """The last step with batches at the provider: what failed before it stays failed, or they are paid in vain."""
        self.samples = [teacher.samples for teacher in settings.teacher]

    @property
    def num_shards(self) -> int:
        """How many ranges the pairs make up."""
        return -(-self.pairs.num_pairs // self.settings.shard_size)

    def shard_of(self, name: str) -> int | None:
        """Return the shard that a trace's name belongs to, or None if no row has this name."""
        row = self.row(name)
        return None if row is None else row.view.place // self.settings.shard_size

    def row(self, name: str) -> Row | None:
        """Return the row of a name, or None if there is none."""
        key, _, numbers = name.rpartition("@")
        step, _, sample = numbers.partition(".")
        number = self.pairs.number.get(key)
        if number is None or not (step.isdecimal() and sample.isdecimal()) or int(step) >= len(self.samples):
            return None
        row = Row(self.pairs.views[number], int(step), int(sample))
        return row if row.name == name and row.sample < self.samples[row.step] else None

    def has(self, name: str) -> bool:
        """Tell whether a trace's name is that of a row of the share."""
        row = self.row(name)
        return row is not None and self._takes(row.view)

    def step(self, ledger: Ledger, step: int) -> Iterator[Row]:
        """Yield the rows of one step, those with a trace included: pairs that no earlier step has judged right."""
        for view in self.views:
            if not any(self._is_right(ledger, view, before) for before in range(step)):
                for sample in range(self.samples[step]):
                    yield Row(view, step, sample)

    def missing(self, ledger: Ledger, step: int) -> Iterator[Row]:
        """Yield the rows of one step that are to be asked for.

        A row that failed is asked for again by each attempt, until a later step has written a trace of its pair: then
        it stays failed, or what that trace was paid for would be undone.
        """
        for row in self.step(ledger, step):
            if row.name not in ledger.entries and not (
                row.name in ledger.failures and self._is_taken_over(ledger, row)
            ):
                yield row

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """Yield all rows in the order of the artifact: by pair, then by step, then by sample."""
        for view in self.views:
            for step, num_samples in enumerate(self.samples):
                for sample in range(num_samples):
                    yield Row(view, step, sample)
                if self._is_right(ledger, view, step):
                    break

    def wrong_before(self, ledger: Ledger, row: Row) -> str | None:
        """Return the name of the last trace of earlier steps that gave the wrong verdict."""
        for step in reversed(range(row.step)):
            for sample in reversed(range(self.samples[step])):
                entry = ledger.entries.get(name := trace_name(row.view.key, step, sample))
                if entry is not None and entry.verdict and not entry.right:
                    return name
        return None

    def has_trace(self, ledger: Ledger, view: View) -> bool:
        """Tell whether there is any trace of a pair in this order."""
        return self._has_trace_from(ledger, view, 0)

    def _takes(self, view: View) -> bool:
        return self.share.takes(view.place // self.settings.shard_size)

    def _is_right(self, ledger: Ledger, view: View, step: int) -> bool:
        names = (trace_name(view.key, step, sample) for sample in range(self.samples[step]))
        return any(entry.right for name in names if (entry := ledger.entries.get(name)) is not None)

    def _is_taken_over(self, ledger: Ledger, row: Row) -> bool:
        return row.step < self.sent or self._has_trace_from(ledger, row.view, row.step + 1)

    def _has_trace_from(self, ledger: Ledger, view: View, first: int) -> bool:
        return any(
            trace_name(view.key, step, sample) in ledger.entries
            for step in range(first, len(self.samples))
            for sample in range(self.samples[step])
        )
