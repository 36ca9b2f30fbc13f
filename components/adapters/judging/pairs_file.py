"""Pairs in a file, and their verdicts in another one that a killed run goes on with."""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from components.adapters.judging.asking import Comparison
from components.adapters.rows import read_file
from components.core.errors import InvalidInput
from components.core.records import BadRecord, excerpt, explain, parse_strict, to_line
from components.core.schema import Conversation, Label, PreferencePair


class _Row(BaseModel):
    """A row of a file of pairs; other columns are no concern of a judge's."""

    model_config = ConfigDict(extra="ignore")
    id: str | int | None = None
    prompt: Conversation = Field(min_length=1)
    response_a: str
    response_b: str
    label: Label | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Asked:
    """A pair to judge; `label` is None where the file does not say which answer is better."""

    pair: PreferencePair
    label: Label | None
    digest: str
    name: str
    """What the pair has in common with its repetitions: the row's id, or its texts in any order."""

    @property
    def better(self) -> str | None:
        """The text of the better answer."""
        return None if self.label is None else self.pair.response_a if self.label == "A" else self.pair.response_b


@dataclass
class Pairs:
    """The pairs of a file in its order, each once, and the rows that are none."""

    asked: list[Asked] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    num_repeated: int = 0
    """Rows that are an earlier pair again, in the same order or the other: both orders are judged anyway."""

    @property
    def labels(self) -> dict[str, Label | None]:
        """The label of each pair by its id."""
        return {one.pair.id: one.label for one in self.asked}


def read_pairs(path: Path) -> Pairs:
    """Read pairs: rows with prompt (or conversation), response_a, response_b, and maybe id and label.

    A row without an id is named by its content, whatever its order. A pair that comes again gives its label to one that
    has none; with another label than before it is a bad row. Raises InvalidInput when the file cannot be read or has no
    pair.
    """
    pairs, seen = Pairs(), dict[str, int]()
    for item in read_file(path, path.name):
        if isinstance(item, BadRecord):
            pairs.bad.append(item)
            continue
        place, value = item
        try:
            asked = _asked(value)
        except ValueError as error:
            pairs.bad.append(_bad(place, explain(error), value))
            continue
        at = seen.setdefault(asked.name, len(pairs.asked))
        if at == len(pairs.asked):
            pairs.asked.append(asked)
        elif reason := _contradiction(pairs.asked[at], asked):
            pairs.bad.append(_bad(place, reason, value))
        else:
            pairs.num_repeated += 1
            pairs.asked[at] = _with_label_of(asked, pairs.asked[at])
    if not pairs.asked:
        reason = f"; the first row: {pairs.bad[0].place}: {pairs.bad[0].reason}" if pairs.bad else ""
        raise InvalidInput(f"{path} has no pair to judge (prompt, response_a, response_b){reason}")
    return pairs


def _asked(value: Any) -> Asked:
    if isinstance(value, dict) and "prompt" not in value and "conversation" in value:
        value = {**value, "prompt": value["conversation"]}
    row = _Row.model_validate(value)
    turns = [[m.role, m.content] for m in row.prompt]
    digest = _digest([turns, row.response_a, row.response_b])
    pair = PreferencePair(
        id=digest[:16] if row.id in (None, "") else str(row.id),
        prompt=row.prompt,
        response_a=row.response_a,
        response_b=row.response_b,
        label=row.label or "A",  # no judge is shown it
        swapped=row.swapped,
    )
    name = (
        f"texts {_digest([turns, *sorted((row.response_a, row.response_b))])}"
        if row.id in (None, "")
        else f"id {pair.id}"
    )
    return Asked(pair, row.label, digest, name)


def _digest(texts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _contradiction(before: Asked, again: Asked) -> str:
    """Return why the second of two rows with one name cannot be the first again; empty when it can."""
    if _texts(before.pair) != _texts(again.pair):
        return f"id {again.pair.id!r} occurs twice, with other texts"
    if before.better is not None and again.better not in (before.better, None):
        return f"pair {before.pair.id!r} occurs twice, with another label; the first one counts"
    return ""


def _with_label_of(again: Asked, before: Asked) -> Asked:
    if before.label is not None or again.better is None:
        return before
    return replace(before, label="A" if again.better == before.pair.response_a else "B")


def _texts(pair: PreferencePair) -> tuple[Any, frozenset[str]]:
    return pair.prompt, frozenset((pair.response_a, pair.response_b))


def _bad(place: str, reason: str, value: Any) -> BadRecord:
    return BadRecord(place, reason, excerpt(json.dumps(value, ensure_ascii=False).encode()))


def line_of(asked: Asked, found: Comparison, judge: str, key: str) -> bytes:
    """Return what is written of a judged pair; A and B are the row's, in whatever order the judge was shown them."""
    tally = found.tally
    return to_line(
        {
            "id": asked.pair.id,
            "verdict": tally.winner,
            "confidence": tally.confidence,
            "consistent": tally.consistent,
            "score_a": tally.score_a,
            "votes": {"a": tally.votes_a, "b": tally.votes_b, "none": tally.num_votes - tally.votes_a - tally.votes_b},
            "label": asked.label,
            "judgments": [
                {
                    "order": "ba" if said.swapped else "ab",
                    "sample": said.sample,
                    "verdict": said.vote,
                    "cause": said.cause,
                    "reasoning": said.text,
                    "thinking": said.thinking,
                    "prompt_tokens": said.num_prompt_tokens,
                    "completion_tokens": said.num_tokens,
                }
                for said in found.judgments
            ],
            "judge": judge,
            "key": key,
            "pair": asked.digest,
        }
    )


LINE_BEGINS = b'{"confidence": '
"""How each line of `line_of` begins: its keys are sorted."""


def load_judged(path: Path, asked: Iterable[Asked], key: str) -> list[dict[str, Any]]:
    """Return the rows that an output holds already, and cut off a last one that a killed run left half written.

    They are as `brief` makes them, and only those of pairs that are asked about: the file may hold more. Raises
    InvalidInput when it is not such an output, was written by another judge, or of another text.
    """
    if not path.exists():
        return []
    rows, good = [], 0
    digests = {one.pair.id: one.digest for one in asked}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if not good and line[: len(LINE_BEGINS)] != LINE_BEGINS[: len(line)]:
                    raise InvalidInput(f"{path} is no output of ours and is left as it is; give another --output")
                break
            good += len(line)
            row = _checked(f"{path}:{number}", line, digests, key)
            if row["id"] in digests:
                rows.append(row)
    if good < path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(good)
    return rows


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep an output for this process alone. Raises InvalidInput when it cannot be written, or another one does."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error}); give another --output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInput(f"another run is writing {path}; wait for it, or give another --output") from error
        yield


def _checked(place: str, line: bytes, digests: dict[str, str], key: str) -> dict[str, Any]:
    try:
        row = parse_strict(line, len(line))  # many long judgments are more than a row of others may have
        name, was_key, was_pair = row["id"], row["key"], row["pair"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{place} is no verdict of ours ({error}); give another --output") from error
    if was_key != key:
        raise InvalidInput(
            f"{place} was written by another judge ({row.get('judge')}), with another prompt or precision, or with "
            "other settings; give another --output, so that verdicts of two judges do not stand in one file"
        )
    if digests.get(name, was_pair) != was_pair:
        raise InvalidInput(f"{place}: pair {name!r} has other texts in the file now; give another --output")
    return brief(row)


def brief(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the written reasoning: a summary of many pairs must not hold it all."""
    return row | {"judgments": [{**one, "reasoning": "", "thinking": ""} for one in row["judgments"]]}


@dataclass
class Summary:
    """What the verdicts of an output come to, by the labels that the pairs have now."""

    rows: Sequence[dict[str, Any]]
    labels: Mapping[str, Label | None]

    def facts(self) -> dict[str, Any]:
        """Return the numbers, those that cannot be told left out."""
        rows, said = self.rows, [one for row in self.rows for one in row["judgments"]]
        decided = [row for row in rows if row["verdict"] is not None]
        labelled = [row for row in rows if self.labels.get(row["id"]) is not None]
        both = [row for row in rows if row["consistent"] is not None]
        causes: dict[str, int] = {}
        for one in said:
            causes[one["cause"]] = causes.get(one["cause"], 0) + 1
        facts: dict[str, Any] = {
            "pairs": len(rows),
            "verdicts": {name: sum(row["verdict"] == name for row in rows) for name in ("A", "B")}
            | {"none": len(rows) - len(decided)},
            "judgments": len(said),
            "causes": causes,
            "prompt_tokens": sum(one["prompt_tokens"] for one in said),
            "completion_tokens": sum(one["completion_tokens"] for one in said),
        }
        if decided:
            facts["mean_confidence"] = sum(row["confidence"] for row in decided) / len(decided)
        if both:
            facts["consistency"] = sum(row["consistent"] for row in both) / len(both)
        if labelled:
            facts["labelled"] = len(labelled)
            facts["accuracy"] = sum(row["verdict"] == self.labels[row["id"]] for row in labelled) / len(labelled)
        return facts
