"""Cron as KFP's backend reads it: github.com/robfig/cron v1.2.0, six fields that begin with the seconds.

The usual libraries read more than that (7 for Sunday, ranges that wrap, L and #), or read the seconds last; a schedule
that they accept and the server does not, or reads in another way, is worse than none. So its own rules stand here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

ALIASES: Mapping[str, str] = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
YEARS_AHEAD = 8
"""A date that the calendar has comes within eight years: 29 February around 2100."""


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: Mapping[str, int] = {}


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, {name: number for number, name in enumerate(MONTHS, start=1)}),
    _Field("day of the week", 0, 6, {name: number for number, name in enumerate(DAYS)}),
)


@dataclass(frozen=True)
class Cron:
    """When something runs; times are UTC unless the server's CRON_SCHEDULE_TIMEZONE says otherwise."""

    expression: str
    """The six fields as they are sent."""
    values: tuple[frozenset[int], ...]
    either_day: bool
    """Both the day of the month and the day of the week are restricted: then either of them is enough."""

    def next(self, after: datetime) -> datetime | None:
        """Return the first time after this one; None if there is none in eight years (31 February)."""
        seconds, minutes, hours, _, _, _ = (sorted(field) for field in self.values)
        start = after.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        midnight = start.replace(hour=0, minute=0, second=0)
        for day in (midnight + timedelta(days=number) for number in range(366 * YEARS_AHEAD)):
            if not self._runs_on(day):
                continue
            for hour in hours:
                for minute in minutes:
                    for second in seconds:
                        found = day.replace(hour=hour, minute=minute, second=second)
                        if found >= start:
                            return found
        return None

    def _runs_on(self, day: datetime) -> bool:
        _, _, _, days, months, weekdays = self.values
        if day.month not in months:
            return False
        fits = (day.day in days, day.isoweekday() % 7 in weekdays)
        return any(fits) if self.either_day else all(fits)


def parse_cron(text: str) -> Cron:
    """Read six fields, five fields (then second 0 is put before them) or an alias such as @weekly.

    Raises ValueError saying which field is wrong and why.
    """
    words = ALIASES.get(text.strip().lower(), text).split()
    if text.strip().startswith(("@", "TZ=", "CRON_TZ=")) and text.strip().lower() not in ALIASES:
        raise ValueError(f"cron {text!r}: of these there are only {', '.join(ALIASES)}; for others write six fields")
    if len(words) == 5:
        words = ["0", *words]
    if len(words) != 6:
        raise ValueError(
            f"cron {text!r} has {len(words)} fields; write six: second minute hour day-of-month month day-of-week, "
            'as "0 0 3 * * mon"'
        )
    values = tuple(_read_field(word, field, text) for word, field in zip(words, _FIELDS, strict=True))
    if len(values[0]) != 1:
        raise ValueError(f"cron {text!r} runs several times a minute: its first field is the second; write 0 there")
    cron = Cron(" ".join(words), values, either_day=not any(_has_star(word) for word in (words[3], words[5])))
    if cron.next(datetime(2026, 1, 1, tzinfo=UTC)) is None:
        raise ValueError(f"cron {text!r} names a day that no month has")
    return cron


def _has_star(word: str) -> bool:
    return any(part[0] in "*?" for part in word.split(","))


def _read_field(word: str, field: _Field, text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in word.split(","):
        try:
            found |= _read_part(part, field)
        except ValueError as error:
            raise ValueError(f"cron {text!r}: {field.name} {word!r}: {error}") from None
    return frozenset(found)


def _read_part(part: str, field: _Field) -> set[int]:
    span, slash, step = part.partition("/")
    first, dash, last = span.partition("-")
    if span in ("*", "?"):
        low, high = field.low, field.high
    else:
        low = _number(first, field)
        # KFP reads 5/10 as from 5 to the end in steps of 10.
        high = _number(last, field) if dash else (field.high if slash else low)
    if low > high:
        raise ValueError(f"{span} goes backwards; write two ranges with a comma between them")
    if slash and (not step.isdecimal() or int(step) == 0):
        raise ValueError(f"the step {step!r} is not a number above 0")
    return set(range(low, high + 1, int(step) if slash else 1))


def _number(word: str, field: _Field) -> int:
    if word.lower() in field.names:
        return field.names[word.lower()]
    if not (word.isascii() and word.isdecimal()):
        allowed = f" or {', '.join(field.names)}" if field.names else ""
        raise ValueError(f"{word!r} is not a number{allowed}")
    if not field.low <= int(word) <= field.high:
        sunday = " (Sunday is 0)" if field.names and field.high == 6 else ""
        raise ValueError(f"{word} is not in {field.low} to {field.high}{sunday}")
    return int(word)
