"""Build the sample pairs, their recorded judgments and the data card: `python -m samples.build [--check]`.

`python -m samples.build --pairs 5000 --output FOLDER` writes more pairs of the same kinds, and their judgments.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from samples.card import data_card
from samples.chat import CATEGORIES, chat_case, hand_written
from samples.dice import Dice, hashed
from samples.task import Kind, Shape, Task, Turns
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
MOST_ATTEMPTS = 1000
WEEKS = ("weekly/2026-11-09.jsonl.gz", "weekly/2026-11-16.jsonl.gz")
Row = dict[str, Any]


def build_cases(num_pairs: int | None = None) -> list[Case]:
    """Return every case, checked, in the order of the files: those of the samples, or so many with them among these.

    Raises ValueError if so many are fewer than the samples, or more than there are different questions.
    """
    cases = [case for kind, count in _counts(num_pairs).items() for case in _cases_of(kind, count)]
    for category in CATEGORIES:
        rows = hand_written(category)
        ids = [f"{category}-{number:04d}" for number in range(1, len(rows) + 1)]
        labels = _labels(ids)
        cases += [chat_case(name, category, labels[name], row) for name, row in zip(ids, rows, strict=True)]
    for case in cases:
        _verify(case)
    return cases


def _counts(num_pairs: int | None) -> dict[Kind, int]:
    """Return how many pairs of each kind there are to be: all alike, the first ones one more where it does not fit."""
    if num_pairs is None:
        return dict.fromkeys(KINDS, PAIRS_PER_KIND)
    num_written = sum(len(hand_written(category)) for category in CATEGORIES)
    fewest = num_written + len(KINDS) * PAIRS_PER_KIND
    if num_pairs < fewest:
        raise ValueError(f"{num_pairs} pairs are fewer than the samples themselves; ask for {fewest} or more")
    each, rest = divmod(num_pairs - num_written, len(KINDS))
    return {kind: each + (place < rest) for place, kind in enumerate(KINDS)}


def _cases_of(kind: Kind, count: int) -> list[Case]:
    """Return so many cases, drawn in blocks that are balanced each: what comes later leaves the earlier as they are."""
    ids = [f"{kind.name}-{number:04d}" for number in range(1, count + 1)]
    cases: list[Case] = []
    seen: set[tuple[Turns, str]] = set()
    for start in range(0, count, PAIRS_PER_KIND):
        block = ids[start : start + PAIRS_PER_KIND]
        shapes = _shapes(block)
        labels = _labels(block, shapes)
        for name in block:
            task = _new_task(kind, name, shapes[name], seen)
            seen.add((task.history, task.prompt))
            if not kind.check(task.params, task.right.text) or kind.check(task.params, task.wrong.text):
                raise ValueError(f"{name}: the check does not tell {task.right.text!r} from {task.wrong.text!r}")
            cases.append(_case(name, kind.name, labels[name], task))
    return cases


def _new_task(kind: Kind, name: str, shape: Shape, seen: Container[tuple[Turns, str]]) -> Task:
    for attempt in range(MOST_ATTEMPTS):
        task = kind.make(Dice(f"{name} attempt {attempt}"), shape)
        if (task.history, task.prompt) not in seen:
            return task
    raise ValueError(f"{name}: no new question in {MOST_ATTEMPTS} draws of {kind.name}; ask for fewer pairs")


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
    pairs, traces = _rows(build_cases())
    weeks = [[row for row in pairs if _is_late(row) == late] for late in (False, True)]
    dated = {name: _jsonl(rows) for name, rows in zip(WEEKS, weeks, strict=True)}
    counts = {name: len(rows) for name, rows in zip(WEEKS, weeks, strict=True)}
    return _data(pairs, traces) | dated | {"README.md": data_card(pairs, traces, counts, fault_of)}


def _is_late(row: Row) -> bool:
    """Say whether a pair comes in the second week: a quarter of each kind of task, and all that is written by hand."""
    return row["category"] in CATEGORIES or int(row["id"].rpartition("-")[2]) % 4 == 0


def extend(num_pairs: int, folder: Path) -> None:
    """Write the samples and as many more pairs as make up the number, with their judgments, into a folder.

    Raises ValueError if that is fewer than the samples, or more than there are different questions.
    """
    files = _data(*_rows(build_cases(num_pairs)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write(name, text, folder)


def _rows(cases: Sequence[Case]) -> tuple[list[Row], list[Row]]:
    return [pair_row(case) for case in cases], [record(case, swapped) for case in cases for swapped in (False, True)]


def _data(pairs: Iterable[Row], traces: Iterable[Row]) -> dict[str, str]:
    return {"pairs.jsonl.gz": _jsonl(pairs), "traces.jsonl.gz": _jsonl(traces)}


def _jsonl(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def read(name: str) -> str | None:
    """Return the text of a file on disk, unpacked, or None where there is none."""
    path = HERE / name
    if not path.exists():
        return None
    data = path.read_bytes()
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8")


def write(name: str, text: str, folder: Path | None = None) -> None:
    """Write a file; a packed one carries neither time nor name, so that its bytes depend on the text alone."""
    data = text.encode("utf-8")
    packed = gzip.compress(data, compresslevel=9, mtime=0) if name.endswith(".gz") else data
    path = (folder or HERE) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)


def main() -> None:
    """Write the files, or with --check say which ones differ and exit 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not what it should be")
    parser.add_argument("--pairs", type=int, metavar="N", help="make so many pairs, the samples among them")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where those go; needed with --pairs")
    arguments = parser.parse_args()
    if (arguments.pairs is None) != (arguments.output is None) or (arguments.check and arguments.pairs is not None):
        parser.error("give --pairs and --output together, or --check alone")
    if arguments.pairs is not None:
        try:
            extend(arguments.pairs, arguments.output)
        except (OSError, ValueError) as error:
            sys.exit(str(error))
        return
    files = build_files()
    if not arguments.check:
        for name, text in files.items():
            write(name, text)
        return
    stale = [name for name, text in files.items() if read(name) != text]
    if stale:
        sys.exit(f"not up to date: {', '.join(stale)}; run: python -m samples.build")


if __name__ == "__main__":
    main()
