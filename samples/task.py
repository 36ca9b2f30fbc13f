"""What a kind of task hands to the builder: a question, a right and a wrong answer, and how to judge them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from samples.dice import Dice

Value = str | int | list[str] | list[int]
Params = dict[str, Value]
Turns = tuple[tuple[str, str], ...]
Shape = Literal["right", "wrong", "even"]
"""Which of the two answers is the longer one."""

SHORT = ("|{x}|", "|{x}|.", "|It is {x}|.", "|That is {x}|.")
LONG = (
    "Easy one: |the answer is {x}|, no doubt about it.",
    "I checked this twice, and |the answer is {x}|.",
    "Working through it step by step, |I get {x}|.",
    "Sure! |The answer is {x}|. Let me know if you need more.",
    "Good question. |It should be {x}|, if I am not mistaken.",
    "Taking it slowly, |it comes out as {x}| in the end.",
)


@dataclass(frozen=True)
class Answer:
    """One reply, the bit of it that a judge would quote, and what it claims.

    `summary` and `misread` stand in for the usual sentences of a sound and of a mistaken judge.
    """

    text: str
    quote: str
    claim: str
    note: str = ""
    summary: str = ""
    misread: str = ""


@dataclass(frozen=True)
class Task:
    """One question with its two answers; `slip` is the working of a judge who makes the wrong answer's mistake."""

    prompt: str
    params: Params
    right: Answer
    wrong: Answer
    solution: str
    slip: str
    history: Turns = ()


@dataclass(frozen=True)
class Kind:
    """A kind of task: how to make one, and the program that tells a right answer from a wrong one."""

    name: str
    make: Callable[[Dice, Shape], Task]
    check: Callable[[Params, str], bool]


def phrase(template: str, claim: str, note: str = "") -> Answer:
    """Return a reply from a template whose quotable part stands between two bars."""
    before, quote, after = (part.replace("{x}", claim) for part in template.split("|"))
    return Answer(before + quote + after, quote, claim, note)


def reply(dice: Dice, shape: Shape, right: str, wrong: str, note: str, mark: str = "") -> tuple[Answer, Answer]:
    """Return the right and the wrong answer in words, the longer one as the shape says.

    Both draw from the same templates, so that neither length nor tone tells which is right.
    """
    same = dice.pick((SHORT, LONG))
    for_right, for_wrong = {"right": (LONG, SHORT), "wrong": (SHORT, LONG), "even": (same, same)}[shape]
    while True:
        one = phrase(dice.pick(for_right), mark + right + mark)
        two = phrase(dice.pick(for_wrong), mark + wrong + mark, note)
        longer = len(one.text) - len(two.text)
        if shape == "even" or (longer > 0 if shape == "right" else longer < 0):
            return one, two


def last_number(text: str) -> int | None:
    """Return the last whole number in the text, or None."""
    found = re.findall(r"-?\d+", text)
    return int(found[-1]) if found else None


def last_of(text: str, options: Sequence[str]) -> str | None:
    """Return the option that the text names last, or None."""
    longest_first = sorted(options, key=len, reverse=True)
    found = re.findall("|".join(rf"(?<!\w){re.escape(option)}(?!\w)" for option in longest_first), text)
    return str(found[-1]) if found else None


def marked(text: str, mark: str) -> str:
    """Return what stands between the last two marks."""
    parts = text.split(mark)
    return parts[-2] if len(parts) > 2 else ""


def numbers(params: Params, name: str) -> list[int]:
    """Return a parameter that is a list of numbers."""
    return [int(item) for item in _listed(params, name)]


def words(params: Params, name: str) -> list[str]:
    """Return a parameter that is a list of words."""
    return [str(item) for item in _listed(params, name)]


def _listed(params: Params, name: str) -> list[str] | list[int]:
    value = params[name]
    if not isinstance(value, list):
        raise TypeError(f"parameter {name} is {value!r}, not a list")
    return value


def number(params: Params, name: str) -> int:
    """Return a parameter that is a number."""
    value = params[name]
    if not isinstance(value, int):
        raise TypeError(f"parameter {name} is {value!r}, not a number")
    return value


def word(params: Params, name: str) -> str:
    """Return a parameter that is a word."""
    value = params[name]
    if not isinstance(value, str):
        raise TypeError(f"parameter {name} is {value!r}, not a word")
    return value
