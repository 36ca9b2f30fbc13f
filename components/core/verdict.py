"""The one reader of a judge's answer: which verdict it ends with, and whether it kept to its grammar."""

import re
from typing import Literal, get_args

from components.core.schema import Label, Verdict, VerdictCause

Grammar = Literal["rubric", "think"]

RESERVED_TAGS = (
    "type", "rubric", "justify", "solution", "eval", "quote_A", "summary_A", "quote_B", "summary_B", "answer", "think",
)  # fmt: skip

_CLOSINGS = tuple(f"</{tag}>" for tag in RESERVED_TAGS)
_REASONING_END = re.compile(r"</(?:eval|think|solution)>")
_OPEN_ANSWER = re.compile(r"\s*<answer>\s*\[\[([AB])\]\]")
_ANY_ANSWER = re.compile(r"<answer>\s*\[\[[AB]\]\]\s*</answer>")
_BODY = r"((?:(?!</?(?:%s)>).)+?)" % "|".join(RESERVED_TAGS)


def parse_verdict(text: str, *, truncated: bool = False) -> Verdict:
    """Return the verdict that a judgment ends with, or the cause why it has none.

    Only the text after the last closing tag of reasoning counts, and it must be nothing but the answer: a candidate
    that is quoted inside the reasoning cannot vote, and a judge that hedges with two answers has not decided.
    Closing tags left over behind the answer are forgiven: real judges write them, and they carry no second opinion.
    A generation that hit its token limit has no verdict whatever stands in it.
    """
    if truncated:
        return Verdict(winner=None, cause="truncated")
    body, closings = _split_closings(text)
    ends = list(_REASONING_END.finditer(body))
    tail = body[ends[-1].end() :] if ends else body
    match = _OPEN_ANSWER.fullmatch(tail)
    if match and closings.lstrip().startswith("</answer>"):
        return Verdict(winner=_label(match.group(1)), cause="ok")
    return Verdict(winner=None, cause=_cause(tail + closings))


def parse_anywhere(text: str) -> Label | None:
    """Return the verdict as RM-R1's evaluation code reads it: `[[A]]` or `[[B]]` anywhere in the text, but not both.

    Only for numbers that are compared with published ones (arXiv 2505.02387, eval/*/rewardbench/generative.py).
    """
    found = [letter for letter in ("A", "B") if f"[[{letter}]]" in text]
    return _label(found[0]) if len(found) == 1 else None


LAST_CHARACTERS = 80
"""Where RM-R1's reward looks for the verdict: `response[-80:]` (rm_r1/verl/utils/reward_score/lm_as_judge.py)."""


def last_verdict(text: str, *, truncated: bool = False) -> Label | None:
    """Return the verdict as RM-R1's reward reads it: the exact tag of one answer in the last 80 characters, no other's.

    Only for training as published (arXiv 2505.02387). There the 80 characters include the end-of-turn token (10 of
    Qwen's, 19 of DeepSeek's); our texts never hold it, so here so many more may follow the verdict. A truncated text
    has no verdict, as everywhere in this project; there it was read like any other.
    """
    if truncated:
        return None
    tail = text[-LAST_CHARACTERS:]
    found = [letter for letter in ("A", "B") if f"<answer>[[{letter}]]</answer>" in tail]
    return _label(found[0]) if len(found) == 1 else None


def _split_closings(text: str) -> tuple[str, str]:
    rest = text.rstrip()
    while rest.endswith(_CLOSINGS):
        rest = rest[: rest.rindex("</")].rstrip()
    return rest, text[len(rest) :]


def _label(letter: str) -> Label:
    return "A" if letter == "A" else "B"


def _cause(tail: str) -> VerdictCause:
    num_answers = len(_ANY_ANSWER.findall(tail))
    if num_answers >= 2:
        return "two"
    return "malformed" if num_answers == 1 or "<answer>" in tail else "missing"


def grammar_faults(text: str, grammar: Grammar) -> list[str]:
    """Say in words how a judgment departs from its grammar; an empty list means that it holds.

    The verdict is read by `parse_verdict` alone; this is the stricter test that a trace must pass before a student
    learns from it (the tags are those of the Chain-of-Rubrics prompt, arXiv 2505.02387 figure 3).
    """
    if grammar == "think":
        return _think_faults(text)
    faults = [f"<{tag}> {fault}" for tag in RESERVED_TAGS[:-1] if (fault := _tag_fault(text, tag))]
    if faults:
        return faults
    kind = re.match(r"\s*<type>\s*(Reasoning|Chat)\s*</type>", text)
    if kind is None:
        return ["does not begin with <type>Reasoning</type> or <type>Chat</type>"]
    needed = _REASONING_FORM if kind.group(1) == "Reasoning" else _CHAT_FORM
    match = needed.fullmatch(text)
    if match is None:
        return [f"is not the form of a {kind.group(1)} judgment"]
    return [] if all(part.strip() for part in match.groups()) else ["has an empty part"]


def _tag_fault(text: str, tag: str) -> str | None:
    opened, closed = text.count(f"<{tag}>"), text.count(f"</{tag}>")
    if opened != closed:
        return f"is opened {opened} times and closed {closed} times"
    return f"occurs {opened} times" if opened > 1 else None


def _think_faults(text: str) -> list[str]:
    opened, closed = text.count("<think>"), text.count("</think>")
    if closed != 1 or opened > 1:
        return [f"<think> is opened {opened} times and closed {closed} times"]
    if not text.split("</think>", maxsplit=1)[0].replace("<think>", "").strip():
        return ["<think> is empty"]
    return [] if parse_verdict(text).winner else ["does not end with one verdict after </think>"]


def _form(middle: str) -> re.Pattern[str]:
    evaluation = "".join(rf"\s*<{tag}>{_BODY}</{tag}>" for tag in RESERVED_TAGS[5:9])
    return re.compile(
        rf"\s*<type>\s*\w+\s*</type>\s*{middle}\s*<eval>{evaluation}{_BODY}</eval>{_OPEN_ANSWER.pattern}\s*</answer>\s*",
        re.DOTALL,
    )


_REASONING_FORM = _form(rf"<solution>{_BODY}</solution>")
_CHAT_FORM = _form(rf"<rubric>{_BODY}<justify>{_BODY}</justify>\s*</rubric>")

GRAMMARS: tuple[Grammar, ...] = get_args(Grammar)
