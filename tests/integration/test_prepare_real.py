"""Real preference files through the reader, where they are at hand: what is left out is known by count."""

import io
from pathlib import Path

import pytest

from components.core.errors import InvalidInput
from components.prepare.config import Config
from components.prepare.read import read_source
from components.prepare.sieve import Sieve

DATA = Path(__file__).parents[2] / "../shared/data/train"

COUNTS = {
    "human_pandalm": (999, 762, {"an answer is empty": 52}, {"tie": 105, "duplicate content": 80}),
    "train_evouna_qa": (2575, 2572, {"the two answers are identical": 3}, {}),
    "train_gsm8k": (1462, 1461, {}, {"duplicate content": 1}),
    "train_hh_harmless": (2303, 2303, {}, {}),
    "train_mmlu_pro_permissive": (16095, 16063, {}, {"duplicate content": 32}),
}


def sieve(name: str) -> tuple[Sieve, int]:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there; it is data for development and no part of the project")
    one = Sieve(Config(sources=(path.name,)), io.BytesIO())
    return one, sum(one.take(row) is not None for row in read_source(path, path.name))


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_is_kept_dropped_or_bad(name: str) -> None:
    one, num_kept = sieve(name)
    assert (one.num_rows, num_kept, dict(one.bad), dict(one.dropped)) == COUNTS[name]
    assert num_kept + one.bad.total() + one.dropped.total() == one.num_rows


def test_a_file_with_too_many_empty_answers_is_refused_by_name() -> None:
    one, _ = sieve("human_pandalm")
    one.quarantine.name = "quarantine.jsonl"  # type: ignore[misc]
    with pytest.raises(InvalidInput, match=r"52 of 999 rows \(5.2%\) cannot be used"):
        one.check()
