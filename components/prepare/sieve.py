"""Which rows are kept as pairs; everything else is written down with its place and its reason."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InvalidInput
from components.core.records import BadRecord, excerpt, to_line
from components.prepare.accepted import Accepted
from components.prepare.before import FROZEN, NEW, OLD, Before, Origin
from components.prepare.config import Config
from components.prepare.examine import Examined, LeftOut, Sound
from components.prepare.near import clusters, find_twins

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What became of the rows of a source: `bad` cannot be used, `dropped` is sound but not wanted."""

    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    overlap: Counter[str] = field(default_factory=Counter)


class Sieve:
    """Takes examined rows in the order of the sources and applies the rules that compare them with each other."""

    def __init__(
        self, settings: Config, quarantine: IO[bytes], accepted: Accepted, before: Before | None = None
    ) -> None:
        """Begin with nothing; with `before`, the first two of the sources are those that it gives."""
        self.settings = settings
        self.accepted = accepted
        self.new_overlap: Counter[str] = Counter()  # by benchmark, of rows that no earlier run has seen
        self._before = before
        self._overlapping: set[bytes] = set()
        self.counts = [Counts() for _ in settings.sources]
        self.overlap: Counter[tuple[str, str]] = Counter()  # by benchmark and kind of hit
        self._quarantine = quarantine
        self._first_bad: list[str] = []
        self._identities: dict[bytes, int] = {}  # the number of the pair
        self._contents: dict[bytes, int] = {}  # twice the number of the pair, and 1 if the lesser answer wins

    @property
    def total(self) -> Counts:
        """The counts of all sources together."""
        parts = self.counts
        return Counts(
            self.num_rows,
            *(sum((getattr(one, name) for one in parts), Counter[str]()) for name in ("bad", "dropped", "overlap")),
        )

    @property
    def num_rows(self) -> int:
        """The rows taken so far."""
        return sum(one.rows for one in self.counts)

    def take(self, examined: Examined) -> None:
        """Take the rows of a chunk."""
        source, sound = examined.source, 0
        for outcome in examined.outcomes:
            self.counts[source].rows += 1
            if isinstance(outcome, LeftOut):
                self._put_aside(source, outcome)
                self._note_overlap(outcome)
                continue
            repeated = self._repeats(outcome)
            if repeated:
                self._drop(source, *repeated, outcome.place, outcome.line)
            elif outcome.identity in self._identities:
                self._put_aside(source, self._misnamed(outcome))
            else:
                rows = examined.answers[sound], examined.prompts[sound]
                number = self.accepted.add(outcome, source, *rows, self._origin(outcome, source))
                self._identities[outcome.identity] = number
                self._contents[outcome.content] = 2 * number + outcome.first_wins
            sound += 1

    @property
    def seen(self) -> set[bytes]:
        """The contents of all pairs that this run has seen, whatever became of them."""
        return {*self._contents, *self._overlapping}

    def check(self) -> None:
        """Raise InvalidInput if there were no rows, or too many bad ones."""
        total = self.total
        num_bad, allowed = sum(total.bad.values()), self.settings.max_bad_fraction
        if not total.rows:
            uris = ", ".join(source.uri for source in self.settings.sources)
            raise InvalidInput(f"no rows in {uris}; give files that hold preference pairs")
        if num_bad > allowed * total.rows:
            raise InvalidInput(
                f"{num_bad} of {total.rows} rows ({num_bad / total.rows:.1%}) cannot be used, more than "
                f"max_bad_fraction={allowed:g} allows; mend them or raise it. "
                f"The first: {'; '.join(self._first_bad)}. All are in {self._quarantine.name}"
            )

    def drop_near_duplicates(self) -> None:
        """Drop the pairs that repeat an earlier one in slightly other words; if the labels differ, the earlier too.

        Pairs dropped before contradict others. They take part, so that no copy of them stays with one of the labels.
        """
        if self.settings.near_duplicate >= 1:
            return
        accepted, contradicting = self.accepted, bytearray(self.accepted.dropped)
        short = np.frombuffer(bytes(accepted.short), np.bool_)
        prompt_of = np.array(accepted.prompts, np.intp)
        threshold = self.settings.near_duplicate
        twins = find_twins(accepted.answer_rows, accepted.prompt_rows, prompt_of, threshold, short)
        for number in np.flatnonzero(twins.of >= 0).tolist():
            earlier, similarity = int(twins.of[number]), f"similarity {twins.similarity[number]:.2f}"
            if contradicting[number] or contradicting[earlier] or accepted.is_opposite(number, earlier):
                for one, other in ((number, earlier), (earlier, number)):
                    if not accepted.dropped[one]:
                        reason = f"the label is contradicted here or at the near-duplicate {accepted.read(other)[0]}"
                        self._drop_accepted(one, "contradicting labels", f"{reason}, {similarity}")
            else:
                reason = f"near-duplicate of {accepted.read(earlier)[0]}, {similarity}"
                self._drop_accepted(number, "near-duplicate", reason)

    def find_clusters(self) -> NDArray[np.intp]:
        """Return for each accepted pair, dropped or not, the number of the first pair of its cluster of prompts."""
        openings = np.array(self.accepted.openings, np.uint64)
        first = clusters(self.accepted.prompt_rows, self.settings.same_prompt, openings)
        return np.array(self.accepted.first_of_prompt, np.intp)[first[np.array(self.accepted.prompts, np.intp)]]

    def _repeats(self, sound: Sound) -> tuple[str, str] | None:
        """Return rule and reason if the pair was there before; one with the other label takes the earlier with it."""
        known = self._contents.get(sound.content)
        if known is not None:
            number, first_wins = divmod(known, 2)
            place, _ = self.accepted.read(number)
            if first_wins == sound.first_wins and not self.accepted.dropped[number]:
                rule = "duplicate content" if self.accepted.origins[number] == NEW else "seen before"
                return rule, f"{rule}, first at {place}"
            if not self.accepted.dropped[number]:
                self._drop_accepted(number, "contradicting labels", f"contradicts {sound.place}")
            return "contradicting labels", f"contradicts {place}"
        return None

    def _misnamed(self, sound: Sound) -> LeftOut:
        """Return what is wrong with a pair whose id another pair has already."""
        place, _ = self.accepted.read(self._identities[sound.identity])
        reason = f"duplicate id: {place} has the same id for another pair"
        return LeftOut("bad", "duplicate id", BadRecord(sound.place, reason, excerpt(sound.line.rstrip(b"\n"))))

    def drop_between(self, number: int) -> None:
        """Drop a new pair that is near to a held-out prompt and to one that was trained on."""
        self._drop_accepted(number, "between held-out and trained-on", "its prompt is near to one of each kind")

    def _origin(self, sound: Sound, source: int) -> Origin:
        if self._before is None:
            return NEW
        if source < len(self._before.sources):
            return OLD if source else FROZEN
        return OLD if sound.content in self._before.seen else NEW

    def _note_overlap(self, left_out: LeftOut) -> None:
        if left_out.hits and left_out.content not in self._overlapping:
            self._overlapping.add(left_out.content)
            if self._before is None or left_out.content not in self._before.seen:
                self.new_overlap.update({hit.benchmark for hit in left_out.hits})

    def _drop_accepted(self, number: int, rule: str, reason: str) -> None:
        if self.accepted.origins[number] == FROZEN:
            return  # the other pair goes; what is held out stays as it is
        self.accepted.dropped[number] = 1
        self._drop(self.accepted.sources[number], rule, reason, *self.accepted.read(number))

    def _drop(self, source: int, rule: str, reason: str, place: str, line: bytes) -> None:
        self._put_aside(source, LeftOut("dropped", rule, BadRecord(place, reason, excerpt(line.rstrip(b"\n")))))

    def _put_aside(self, source: int, left_out: LeftOut) -> None:
        counts, record = self.counts[source], left_out.record
        (counts.bad if left_out.kind == "bad" else counts.dropped)[left_out.rule] += 1
        counts.overlap.update(hit.benchmark for hit in left_out.hits)
        self.overlap.update((hit.benchmark, hit.kind) for hit in left_out.hits)
        if left_out.kind == "bad" and len(self._first_bad) < 5:
            self._first_bad.append(f"{record.place}: {record.reason}")
        self._quarantine.write(to_line(record.as_dict() | {"kind": left_out.kind}))
