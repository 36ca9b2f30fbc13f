"""Write the recorded judgment of a case in one order: sound for the most part, faulty on purpose for a known share."""

from dataclasses import dataclass

from samples.dice import Dice, hashed
from samples.task import Answer, Params, Turns

TEACHER = "recorded-demo"
FAULTY_PERCENT = 15
FAULTS = (
    "wrong verdict",
    "wrong verdict",
    "wrong verdict",
    "two verdicts",
    "two verdicts",
    "cut off",
    "cut off",
    "wrong tags",
    "wrong tags",
    "no reasoning",
)
"""What can be wrong with a trace; a fault that stands here twice is drawn twice as often."""

SOUND = ("Says {x}, as in the solution.", "Gives {x}, which matches.", "Claims {x}, and that is correct.")
UNSOUND = ("Says {x}, not {y}: {note}.", "Gives {x} instead of {y}: {note}.", "Claims {x}, but it is {y}: {note}.")
CLOSING = (
    "Only {w} is correct.",
    "{w} is right and {l} is wrong.",
    "{w} holds up and {l} does not.",
    "So {w} is the better reply.",
)
SHALLOW = (
    "{w} goes into more detail, so it helps more.",
    "{w} sounds surer of itself, which tips the balance.",
    "Both are fine, but {w} reads a little better.",
)


@dataclass(frozen=True)
class Case:
    """A pair with all that its judge needs: the frame is what stands before <eval>, `slip` the frame of a mistake."""

    pair_id: str
    category: str
    turns: Turns
    prompt: str
    right: Answer
    wrong: Answer
    label: str
    frame: str
    slip: str
    why: str
    params: Params

    def answers(self, swapped: bool) -> tuple[str, str]:
        """Return the two answers in the order in which they are shown."""
        pair = (self.right.text, self.wrong.text)
        return pair if self.winner(swapped) == "A" else (pair[1], pair[0])

    def winner(self, swapped: bool) -> str:
        """Return the letter of the right answer in the order in which the two are shown."""
        return self.label if not swapped else other(self.label)

    def key(self, swapped: bool) -> str:
        """Return the name of this pair in this order."""
        return f"{self.pair_id}:{'ba' if swapped else 'ab'}"


def other(letter: str) -> str:
    """Return the other letter."""
    return "B" if letter == "A" else "A"


def fault_of(key: str) -> str:
    """Return what is wrong with the trace of this key, or an empty string."""
    if hashed(f"faulty {key}") % 1000 >= FAULTY_PERCENT * 10:
        return ""
    return FAULTS[hashed(f"fault {key}") % len(FAULTS)]


def record(case: Case, swapped: bool) -> dict[str, str | int | bool]:
    """Return one row of the trace file."""
    key = case.key(swapped)
    text = trace_text(case, swapped)
    asked = "".join([*(part for turn in case.turns for part in turn), case.prompt, *case.answers(swapped)])
    return {
        "key": key,
        "pair_id": case.pair_id,
        "swapped": swapped,
        "teacher": TEACHER,
        "text": text,
        "finish_reason": "length" if fault_of(key) == "cut off" else "stop",
        "prompt_tokens": len(asked) // 4,
        "completion_tokens": len(text) // 4,
    }


def trace_text(case: Case, swapped: bool) -> str:
    """Return what the teacher wrote, with its fault if it has one."""
    key, winner = case.key(swapped), case.winner(swapped)
    fault, dice = fault_of(key), Dice(f"trace {key}")
    if fault == "wrong verdict":
        return _judgment(case, other(winner), dice, mistaken=True)
    text = _judgment(case, winner, dice)
    match fault:
        case "two verdicts":
            return text + f"\n<answer>[[{other(winner)}]]</answer>"
        case "cut off":
            return text[: len(text) * dice.between(35, 85) // 100]
        case "no reasoning":
            return f"<answer>[[{winner}]]</answer>"
        case "wrong tags":
            return _mistagged(text, winner, dice)
    return text


def _mistagged(text: str, winner: str, dice: Dice) -> str:
    """Return the judgment in one of four forms that are almost right."""
    answer = f"<answer>[[{winner}]]</answer>"
    return dice.pick(
        (
            text.replace("eval>", "evaluation>"),
            text.replace("</eval>\n", ""),
            text.replace(answer, f"<answer>[[{winner.lower()}]]</answer>"),
            text.replace(answer, f"[[{winner}]]"),
        )
    )


def _judgment(case: Case, winner: str, dice: Dice, mistaken: bool = False) -> str:
    """Return a whole judgment for the letter; a mistaken judge believes the wrong answer."""
    believed, doubted = (case.wrong, case.right) if mistaken else (case.right, case.wrong)
    sides = {
        winner: (believed.quote, _praise(believed, dice, mistaken)),
        other(winner): (doubted.quote, _blame(doubted, believed, dice, mistaken)),
    }
    closing = dice.pick(CLOSING)
    if case.why:
        closing = dice.pick(SHALLOW) if mistaken else case.why
    lines = [case.slip if mistaken else case.frame, "<eval>"]
    for letter in "AB":
        quote, summary = sides[letter]
        lines += [f"<quote_{letter}>{quote}</quote_{letter}>", f"<summary_{letter}>{summary}</summary_{letter}>"]
    lines.append(closing.replace("{w}", winner).replace("{l}", other(winner)))
    return "\n".join([*lines, "</eval>", f"<answer>[[{winner}]]</answer>"])


def _praise(answer: Answer, dice: Dice, mistaken: bool) -> str:
    written = answer.misread if mistaken else answer.summary
    return written or dice.pick(SOUND).replace("{x}", answer.claim)


def _blame(answer: Answer, rival: Answer, dice: Dice, mistaken: bool) -> str:
    written = answer.misread if mistaken else answer.summary
    sentence = dice.pick(UNSOUND)
    if mistaken:
        sentence = sentence.replace(": {note}", "")
    return written or sentence.format(x=answer.claim, y=rival.claim, note=answer.note)
