"""Read the chat and safety pairs that were written by hand."""

import tomllib
from pathlib import Path
from typing import Any

from samples.task import Answer
from samples.traces import Case

HERE = Path(__file__).parent
CATEGORIES = ("chat", "safety")

MISREAD_BETTER = "Is not quite what was wanted."
MISREAD_WORSE = "Sounds helpful and sure."


def hand_written(category: str) -> list[dict[str, Any]]:
    """Return the rows of one category as they stand in its file."""
    rows: list[dict[str, Any]] = tomllib.loads((HERE / f"{category}.toml").read_text(encoding="utf-8"))[category]
    return rows


def chat_case(pair_id: str, category: str, label: str, row: dict[str, Any]) -> Case:
    """Return the case of one hand-written row."""
    answers = [
        Answer(text, quote, "", summary=summary, misread=misread)
        for text, quote, summary, misread in zip(
            (row["better"], row["worse"]), row["quotes"], row["summaries"], (MISREAD_BETTER, MISREAD_WORSE), strict=True
        )
    ]
    rubric = [f"{place}. {name} ({weight}%)" for place, (name, weight) in enumerate(row["criteria"], start=1)]
    frame = "\n".join(["<type>Chat</type>", "<rubric>", *rubric, f"<justify>{row['justify']}</justify>", "</rubric>"])
    return Case(
        pair_id=pair_id,
        category=category,
        turns=tuple((asked, said) for asked, said in row.get("history", ())),
        prompt=row["prompt"],
        right=answers[0],
        wrong=answers[1],
        label=label,
        frame=frame,
        slip=frame,
        why=row["why"],
        params={},
    )
