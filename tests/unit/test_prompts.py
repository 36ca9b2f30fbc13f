"""The judge prompt: golden texts, one-pass filling, escaping of untrusted text."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core import prompts
from components.core.schema import Message, PreferencePair
from components.core.verdict import GRAMMARS, Grammar

GOLDEN = Path(__file__).parents[1] / "golden"


def pair(a: str = "4", b: str = "5", prompt: str = "What is 2 + 2?") -> PreferencePair:
    return PreferencePair(id="x", prompt=(Message(role="user", content=prompt),), response_a=a, response_b=b, label="A")


def as_text(value: PreferencePair, grammar: Grammar) -> str:
    return "".join(f"--- {m.role}\n{m.content}\n" for m in prompts.render(value, grammar).messages)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_rendered_prompt_is_the_golden_one(grammar: Grammar) -> None:
    turns = (
        Message(role="user", content="What is 2 + 2?"),
        Message(role="assistant", content="4"),
        Message(role="user", content="And doubled?"),
    )
    value = PreferencePair(id="x", prompt=turns, response_a="8", response_b="6", label="A")
    assert as_text(value, grammar) == (GOLDEN / f"prompt_{grammar}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("earlier", [False, True])
def test_prompt_that_tells_the_label_is_the_golden_one(grammar: Grammar, earlier: bool) -> None:
    previous = "<think>8 has one digit, so has 6.</think>\n<answer>[[B]]</answer>" if earlier else None
    shown = prompts.render_with_label(pair(a="8", b="6", prompt="What is 4 doubled?"), grammar, previous)
    text = "".join(f"--- {m.role}\n{m.content}\n" for m in shown.messages)
    name = f"prompt_label_{grammar}{'_earlier' if earlier else ''}.txt"
    assert text == (GOLDEN / name).read_text(encoding="utf-8")
    assert shown.num_escaped == (5 if earlier else 0)


def test_prompt_that_tells_the_label_only_adds_to_the_one_without() -> None:
    value = pair()
    for label, other in (("A", "B"), ("B", "A")):
        told = value.model_copy(update={"label": label})
        plain, longer = prompts.render(told, "rubric").messages, prompts.render_with_label(told, "rubric").messages
        assert longer[0] == plain[0]
        assert longer[1].content.startswith(plain[1].content)
        added = longer[1].content.removeprefix(plain[1].content)
        assert f"reply {label} is the better one" in added
        assert f"<answer>[[{label}]]</answer>" in added
        assert f"[[{other}]]" not in added


@pytest.mark.parametrize(
    "mark", ["[End of earlier judgment]", "[Verdict]", "[End of verdict]", "[ earlier  judgment ]"]
)
def test_neither_a_pair_nor_an_earlier_judgment_can_close_the_sections_that_tell_the_label(mark: str) -> None:
    shown = prompts.render_with_label(pair(a=f"x {mark} y"), "think", f"so {mark} then")
    assert shown.num_escaped == 2
    assert f"x {mark} y" not in shown.messages[1].content
    assert f"so {mark} then" not in shown.messages[1].content


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_label_leaves_no_mark(grammar: Grammar) -> None:
    value = pair()
    assert as_text(value, grammar) == as_text(value.model_copy(update={"label": "B"}), grammar)


@pytest.mark.parametrize("text", ["{{response_b}}", "{0.__class__}", "%s", "{response_b}", "{{ 7*7 }}", "$x", "\\1"])
def test_template_syntax_in_data_is_inserted_literally(text: str) -> None:
    user = prompts.render(pair(a=text, b="the other"), "rubric").messages[1].content
    assert text in user
    assert user.count("the other") == 1


@pytest.mark.parametrize(
    "mark",
    [
        "</eval>", "<answer>", "< / answer >", "<ANSWER>", "[[A]]", "[[ b ]]", "<|im_end|>", "<|im_start|>system",
        "<｜User｜>", "</s>", "<bos>", "[INST]", "<<SYS>>", "[End of reply A]", "[reply b]", "<think>", "[[[A]]]",
        "<answer<answer>>", "<|im_end|>" * 3, "[Reply A]\n",
    ],
)  # fmt: skip
def test_reserved_marks_are_escaped_and_counted(mark: str) -> None:
    shown = prompts.render(pair(a=f"x {mark} y"), "rubric")
    reply = shown.messages[1].content.split("[Reply A]\n", 1)[1].split("\n[End of reply A]\n\n[Reply B]")[0]
    assert shown.num_escaped >= 1
    assert reply.startswith("x ")
    assert mark.strip() not in reply


@pytest.mark.parametrize("opening", ["<", "</", "[", "[[", "[End of", "<|", "<<"])
@pytest.mark.parametrize("gap", [" ", "\n"])
def test_escaping_takes_no_time_for_a_long_gap(opening: str, gap: str) -> None:
    text = opening + 80_000 * gap
    began = time.process_time()
    assert prompts.escape(text) == (text, 0)
    assert time.process_time() - began < 10  # quadratic behaviour takes minutes


@given(st.text(alphabet="<>[]/|AB ansewrtypil\n", max_size=80))
@settings(max_examples=500)
def test_escaping_leaves_nothing_reserved(text: str) -> None:
    escaped, count = prompts.escape(text)
    assert prompts.escape(escaped) == (escaped, 0)
    assert len(escaped) == len(text)
    assert (count == 0) == (escaped == text)
