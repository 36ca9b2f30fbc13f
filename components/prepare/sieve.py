"""Which rows are kept as pairs; everything else is written down with its place and its reason."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InvalidInput
from components.core.records import BadRecord, excerpt, to_line
from components.prepare.accepted import Accepted
from components.prepare.before import CONTRADICTED, FROZEN, NEW, NO_LABEL, OLD, Before, Origin
from components.prepare.config import Config
from components.prepare.examine import Examined, LeftOut, Sound
from components.prepare.near import clusters, find_twins

logger = logging.getLogger(__name__)

CONTRADICTING, SEEN = "contradicting labels", "seen before"


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
        self.learned_overlap: Counter[str] = Counter()  # by benchmark, of pairs that the run before trained on
        self.relabelled: Counter[str] = Counter()  # "heldout" or "other": came with another label than before
        self.num_known, self.num_known_bad = 0, 0  # rows of this run's sources that an earlier run has read
        self._before = before
        self._num_before = len(before.sources) if before else 0
        self._unlabelled: set[bytes] = set()
        self._contradicted: set[bytes] = set()
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
            known = self._is_known(outcome.content, source)
            self.num_known += known
            if isinstance(outcome, LeftOut):
                self._leave_out(outcome, source, known)
                continue
            repeated = self._repeats(outcome, source)
            if repeated:
                self._drop(source, *repeated, outcome.place, outcome.line)
            elif outcome.identity in self._identities:
                self._leave_out(self._misnamed(outcome), source, known)
            else:
                rows = examined.answers[sound], examined.prompts[sound]
                number = self.accepted.add(outcome, source, *rows, self._origin(outcome, source))
                self._identities[outcome.identity] = number
                self._contents[outcome.content] = 2 * number + outcome.first_wins
            sound += 1

    @property
    def seen(self) -> dict[bytes, int]:
        """The labels of all rows that this run has read, whatever became of them: as `before` keeps them."""
        found = dict.fromkeys(self._unlabelled, NO_LABEL) | {row: known % 2 for row, known in self._contents.items()}
        return found | dict.fromkeys(self._contradicted, CONTRADICTED)

    def check(self) -> None:
        """Raise InvalidInput if there were no rows, or too many bad ones; of rows read before nothing is said again."""
        own = self.counts[self._num_before :]
        num_rows, allowed = sum(one.rows for one in own), self.settings.max_bad_fraction
        if not num_rows:
            uris = ", ".join(source.uri for source in self.settings.sources[self._num_before :])
            raise InvalidInput(f"no rows in {uris}; give files that hold preference pairs")
        num_rows -= self.num_known
        num_bad = sum(sum(one.bad.values()) for one in own) - self.num_known_bad
        few = 1 if self._before else 0  # one bad row is no broken week, however few rows it has
        if num_bad > max(few, allowed * num_rows):
            new = "new " if self._before else ""
            raise InvalidInput(
                f"{num_bad} of {num_rows} {new}rows ({num_bad / num_rows:.1%}) cannot be used, more than "
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
            opposite = accepted.is_opposite(number, earlier)
            if opposite and accepted.origins[number] == NEW != accepted.origins[earlier]:
                self._note_relabelled(earlier)
            if contradicting[number] or contradicting[earlier] or opposite:
                for one, other in ((number, earlier), (earlier, number)):
                    if not accepted.dropped[one]:
                        reason = f"the label is contradicted here or at the near-duplicate {accepted.read(other)[0]}"
                        self._drop_accepted(one, CONTRADICTING, f"{reason}, {similarity}")
            else:
                reason = f"near-duplicate of {accepted.read(earlier)[0]}, {similarity}"
                self._drop_accepted(number, "near-duplicate", reason)

    def find_clusters(self) -> NDArray[np.intp]:
        """Return for each accepted pair, dropped or not, the number of the first pair of its cluster of prompts."""
        openings = np.array(self.accepted.openings, np.uint64)
        first = clusters(self.accepted.prompt_rows, self.settings.same_prompt, openings)
        return np.array(self.accepted.first_of_prompt, np.intp)[first[np.array(self.accepted.prompts, np.intp)]]

    def _repeats(self, sound: Sound, source: int) -> tuple[str, str] | None:
        """Return rule and reason if the pair was there before; one with the other label takes the earlier with it."""
        known = self._contents.get(sound.content)
        if known is None:
            return self._is_turned(sound, source)
        number, first_wins = divmod(known, 2)
        place, _ = self.accepted.read(number)
        if first_wins == sound.first_wins and not self.accepted.dropped[number]:
            rule = "duplicate content" if self.accepted.origins[number] == NEW else SEEN
            return rule, f"{rule}, first at {place}"
        if self.accepted.origins[number] != NEW and first_wins != sound.first_wins:
            self._note_relabelled(number)
        self._contradicted.add(sound.content)
        if not self.accepted.dropped[number]:
            self._drop_accepted(number, CONTRADICTING, f"contradicts {sound.place}")
        return CONTRADICTING, f"contradicts {place}"

    def _is_turned(self, sound: Sound, source: int) -> tuple[str, str] | None:
        """Return rule and reason if an earlier run, whose pair is not at hand, knew the pair by another label."""
        if self._before is None or source < self._num_before:
            return None
        label = self._before.seen.get(sound.content, NO_LABEL)
        if label == CONTRADICTED or sound.content in self._contradicted:
            return CONTRADICTING, "its label was contradicted before"
        if label in (NO_LABEL, sound.first_wins):
            return None
        self.relabelled["other"] += 1
        self._contradicted.add(sound.content)
        return CONTRADICTING, "an earlier run has read it with the other label"

    def _note_relabelled(self, number: int) -> None:
        """Count a pair of an earlier run that comes with another label now; once in all runs."""
        content = self.accepted.contents[number]
        told = self._before is not None and self._before.seen.get(content) == CONTRADICTED
        if content not in self._contradicted and not told:
            self.relabelled["heldout" if self.accepted.origins[number] == FROZEN else "other"] += 1

    def tell_of_known(self) -> None:
        """Warn of what has come to light about pairs that earlier runs have learned from."""
        if self.relabelled:
            logger.warning(
                "%s pairs have another label than in an earlier run, %s of them held out: they are not trained on any "
                "more, and what is held out keeps its label; look at who labels the data",
                self.relabelled.total(), self.relabelled["heldout"],
            )  # fmt: skip
        for benchmark, count in sorted(self.learned_overlap.items()):
            logger.warning(
                "%s pairs that the run before trained on are on questions of %s: a model that starts from its has seen "
                "them, so do not compare by that benchmark",
                count, benchmark,
            )  # fmt: skip

    def _misnamed(self, sound: Sound) -> LeftOut:
        """Return what is wrong with a pair whose id another pair has already."""
        number = self._identities[sound.identity]
        place, _ = self.accepted.read(number)
        reason = f"duplicate id: {place} has the same id for another pair"
        if self.accepted.origins[number] != NEW:
            reason += ", of an earlier run; give a row that was corrected an id of its own"
        record = BadRecord(sound.place, reason, excerpt(sound.line.rstrip(b"\n")))
        # Not the pair's own content: with another id it would be new.
        whole = hashlib.sha256(sound.identity + sound.content).digest()[:15]
        return LeftOut("bad", "duplicate id", record, content=whole)

    def drop_between(self, number: int) -> None:
        """Drop a new pair that is near to a held-out prompt and to one that was trained on."""
        self._drop_accepted(number, "between held-out and trained-on", "its prompt is near to one of each kind")

    def _origin(self, sound: Sound, source: int) -> Origin:
        if self._before is None:
            return NEW
        if source < len(self._before.sources):
            return OLD if source else FROZEN
        return OLD if sound.content in self._before.seen else NEW

    def _is_known(self, content: bytes, source: int) -> bool:
        """Tell whether a row of this run's own sources was read by an earlier run."""
        if self._before is None or source < self._num_before:
            return False
        number = self._contents.get(content)
        return content in self._before.seen or (number is not None and self.accepted.origins[number // 2] != NEW)

    def _leave_out(self, left_out: LeftOut, source: int, known: bool) -> None:
        """Put a row aside, and take note of it, so that it is not new a second time."""
        self._put_aside(source, left_out)
        benchmarks = {hit.benchmark for hit in left_out.hits}
        again = left_out.content in self._unlabelled
        if left_out.kind == "bad" and not known and self._is_known(left_out.content, source):
            self.num_known += 1  # a row whose id was taken then too
            known = True
        self.num_known_bad += known and left_out.kind == "bad"
        if left_out.content:
            self._unlabelled.add(left_out.content)
        if source < self._num_before:
            self.learned_overlap.update(benchmarks)
        elif not known and not again:
            self.new_overlap.update(benchmarks)

    def _drop_accepted(self, number: int, rule: str, reason: str) -> None:
        if self.accepted.origins[number] == FROZEN:
            return  # the other pair goes; what is held out stays as it is
        self.accepted.dropped[number] = 1
        if rule == CONTRADICTING:
            self._contradicted.add(self.accepted.contents[number])
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
        if left_out.rule != SEEN:  # all old data that the sources still hold, week after week: its number says enough
            self._quarantine.write(to_line(record.as_dict() | {"kind": left_out.kind}))
