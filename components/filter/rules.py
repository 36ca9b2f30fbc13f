"""What a trace must be before a student learns from it; pure functions."""

import re
from collections.abc import Callable
from typing import NamedTuple

from components.core.prompts import escape
from components.core.schema import PreferencePair, Trace
from components.core.verdict import grammar_faults, parse_verdict
from components.filter.config import Config

_QUOTE = re.compile(r"<quote_([AB])>(.*?)</quote_\1>", re.DOTALL)

Rule = Callable[[Trace, PreferencePair, Config], str | None]


class Step(NamedTuple):
    """One rule: a name for the waterfall, and why a trace fails it (None if it passes)."""

    name: str
    fault: Rule


def unfinished(trace: Trace, pair: PreferencePair, settings: Config) -> str | None:
    """A trace that hit the token limit would teach to stop in the middle."""
    return "truncated" if trace.finish_reason != "stop" else None


def too_long(trace: Trace, pair: PreferencePair, settings: Config) -> str | None:
    """A trace over the limit is a loop more often than a thought."""
    return f"longer than {settings.max_trace_chars} characters" if len(trace.text) > settings.max_trace_chars else None


def out_of_form(trace: Trace, pair: PreferencePair, settings: Config) -> str | None:
    """A trace has the tags of its grammar, each once and in order."""
    faults = grammar_faults(trace.text, settings.grammar)
    return "; ".join(faults) if faults else None


def undecided(trace: Trace, pair: PreferencePair, settings: Config) -> str | None:
    """A trace ends with one verdict."""
    verdict = parse_verdict(trace.text, truncated=trace.finish_reason == "length")
    return None if verdict.winner else f"no verdict ({verdict.cause})"


def wrong(trace: Trace, pair: PreferencePair, settings: Config) -> str | None:
    """A trace's verdict is the label of the pair as it was shown."""
    winner = parse_verdict(trace.text, truncated=trace.finish_reason == "length").winner
    return f"says {winner}, the label is {pair.label}" if winner and winner != pair.label else None


STEPS = (
    Step("finished", unfinished),
    Step("short enough", too_long),
    Step("in form", out_of_form),
    Step("decided", undecided),
    Step("right", wrong),
)


def faults(trace: Trace, pair: PreferencePair, settings: Config) -> dict[str, str]:
    """Return the name of every step that a trace fails, with the reason, in the order of the steps."""
    found = ((step.name, step.fault(trace, pair, settings)) for step in STEPS)
    return {name: reason for name, reason in found if reason is not None}


def count_quotes(trace: Trace, pair: PreferencePair) -> tuple[int, int]:
    """Return how many passages a trace quotes, and how many of them stand word for word in the answer quoted.

    Spacing, quotation marks and dots at the ends, and the marks that the prompt escapes make no difference.
    """
    answers = {"A": _plain(pair.response_a), "B": _plain(pair.response_b)}
    quotes = [(letter, _plain(text)) for letter, text in _QUOTE.findall(trace.text)]
    return len(quotes), sum(bool(quote) and quote in answers[letter] for letter, quote in quotes)


def _plain(text: str) -> str:
    return " ".join(escape(text)[0].split()).strip(" \"'“”‘’.…")
