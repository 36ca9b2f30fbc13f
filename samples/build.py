"""Build the sample pairs, their recorded judgments and the data card: `python -m samples.build [--check]`."""

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from samples.card import data_card
from samples.chat import CATEGORIES, chat_case, hand_written
from samples.dice import Dice, hashed
from samples.task import Kind, Shape, Task
from samples.tasks import constraints, lists, numbers, stories, times, words
from samples.traces import Case, fault_of, record

HERE = Path(__file__).parent
KINDS: tuple[Kind, ...] = (
    *numbers.KINDS,
    *words.KINDS,
    *times.KINDS,
    *lists.KINDS,
    *stories.KINDS,
    *constraints.KINDS,
)
PAIRS_PER_KIND = 60
Row = dict[str, Any]


def build_cases() -> list[Case]:
    """Return every case, checked, in the order of the files."""
    cases = [case for kind in KINDS for case in _cases_of(kind)]
    for category in CATEGORIES:
        rows = hand_written(category)
        ids = [f"{category}-{number:04d}" for number in range(1, len(rows) + 1)]
        labels = _labels(ids)
        cases += [chat_case(name, category, labels[name], row) for name, row in zip(ids, rows, strict=True)]
    for case in cases:
        _verify(case)
    return cases


def _cases_of(kind: Kind) -> list[Case]:
    ids = [f"{kind.name}-{number:04d}" for number in range(1, PAIRS_PER_KIND + 1)]
    shapes = _shapes(ids)
    labels = _labels(ids, shapes)
    cases, seen = [], set()
    for name in ids:
        task = next(task for task in _attempts(kind, name, shapes[name]) if (task.history, task.prompt) not in seen)
        seen.add((task.history, task.prompt))
        if not kind.check(task.params, task.right.text) or kind.check(task.params, task.wrong.text):
            raise ValueError(f"{name}: the check does not tell {task.right.text!r} from {task.wrong.text!r}")
        cases.append(_case(name, kind.name, labels[name], task))
    return cases


def _attempts(kind: Kind, name: str, shape: Shape) -> Iterable[Task]:
    return (kind.make(Dice(f"{name} attempt {attempt}"), shape) for attempt in range(1000))


def _shapes(ids: Sequence[str]) -> dict[str, Shape]:
    """Say which answer is the longer one: 45 % right, 45 % wrong, and the rest as it comes."""
    ranked = sorted(ids, key=lambda name: hashed(f"shape {name}"))
    part = len(ids) * 45 // 100
    return {
        name: "right" if place < part else "wrong" if place < 2 * part else "even" for place, name in enumerate(ranked)
    }


def _labels(ids: Sequence[str], groups: dict[str, Shape] | None = None) -> dict[str, str]:
    """Give half of the pairs the label A, and half of each group as far as it goes."""
    ranked = sorted(ids, key=lambda name: ((groups or {}).get(name, ""), hashed(f"label {name}")))
    return {name: "AB"[place % 2] for place, name in enumerate(ranked)}


def _case(name: str, category: str, label: str, task: Task) -> Case:
    return Case(
        pair_id=name,
        category=category,
        turns=task.history,
        prompt=task.prompt,
        right=task.right,
        wrong=task.wrong,
        label=label,
        frame=_frame(task.solution),
        slip=_frame(task.slip),
        why="",
        params=task.params,
    )


def _frame(working: str) -> str:
    """Return what stands before <eval>; a word that is spelled out keeps its lower case."""
    start = working if working[1] == "-" else working[0].upper() + working[1:]
    return f"<type>Reasoning</type>\n<solution>{start}</solution>"


def _verify(case: Case) -> None:
    for answer in (case.right, case.wrong):
        if not answer.quote or answer.quote not in answer.text or "[[" in answer.quote or "</" in answer.quote:
            raise ValueError(f"{case.pair_id}: {answer.quote!r} is no plain quote of {answer.text!r}")


def pair_row(case: Case) -> Row:
    """Return one row of the pair file."""
    response_a, response_b = case.answers(swapped=False)
    turns = [
        message for asked, said in case.turns for message in (_message("user", asked), _message("assistant", said))
    ]
    return {
        "id": case.pair_id,
        "prompt": [*turns, _message("user", case.prompt)] if turns else case.prompt,
        "response_a": response_a,
        "response_b": response_b,
        "label": case.label,
        "source": "reasrm-samples",
        "category": case.category,
        "meta": {"params": case.params} if case.params else {},
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def build_files() -> dict[str, str]:
    """Return the name and the text of every file that the builder owns."""
    cases = build_cases()
    pairs = [pair_row(case) for case in cases]
    traces = [record(case, swapped) for case in cases for swapped in (False, True)]
    return {
        "pairs.jsonl.gz": _jsonl(pairs),
        "traces.jsonl.gz": _jsonl(traces),
        "README.md": data_card(pairs, traces, fault_of),
    }


def _jsonl(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def read(name: str) -> str | None:
    """Return the text of a file on disk, unpacked, or None where there is none."""
    path = HERE / name
    if not path.exists():
        return None
    data = path.read_bytes()
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8")


def write(name: str, text: str) -> None:
    """Write a file; a packed one carries neither time nor name, so that its bytes depend on the text alone."""
    data = text.encode("utf-8")
    (HERE / name).write_bytes(gzip.compress(data, compresslevel=9, mtime=0) if name.endswith(".gz") else data)


def main() -> None:
    """Write the files, or with --check say which ones differ and exit 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not what it should be")
    check = parser.parse_args().check
    files = build_files()
    if not check:
        for name, text in files.items():
            write(name, text)
        return
    stale = [name for name, text in files.items() if read(name) != text]
    if stale:
        sys.exit(f"not up to date: {', '.join(stale)}; run: python -m samples.build")


if __name__ == "__main__":
    main()
