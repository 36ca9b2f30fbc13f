"""What a part of a work has, and how fast it may call."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.adapters.part import WHOLE, Share, part_workdir, workdirs_beside
from components.core.errors import InvalidInput
from components.core.teachers import CallLimits


@given(st.integers(1, 20), st.integers(0, 1000))
def test_every_piece_is_in_one_share(count: int, place: int) -> None:
    shares = [Share.parse(f"{number}/{count}") for number in range(1, count + 1)]
    assert [share.takes(place) for share in shares].count(True) == 1
    assert [str(share) for share in shares] == [f"{number}/{count}" for number in range(1, count + 1)]
    assert WHOLE.takes(place)
    assert [share.is_whole for share in shares] == [count == 1] * count


def test_rates_are_shared_among_parts() -> None:
    calls = CallLimits(requests_per_minute=2, tokens_per_minute=30_000, concurrency=5)
    shared = Share(1, 4).limited(calls, 7000, "the teacher m")
    assert (shared.requests_per_minute, shared.tokens_per_minute, shared.concurrency) == (0.5, 7500, 5)
    with pytest.raises(InvalidInput, match=r"30000 tokens a minute, .* under 8192 for each of 4 parts; take at most 3"):
        Share(1, 4).limited(calls, 8192, "the teacher m")
    assert Share(1, 4).limited(CallLimits(), 8192, "m") == CallLimits()


@pytest.mark.parametrize("part", ["", "0/2", "3/2", "1/0", "1", "a/b", "-1/2", "1/2/3", " 1/2", "1 of 2"])
def test_a_text_that_is_no_part_is_refused(part: str) -> None:
    with pytest.raises(InvalidInput, match="is not a part; write"):
        Share.parse(part)


def test_folders_of_one_work_find_each_other(tmp_path: Path) -> None:
    whole = tmp_path / "traces-0123456789abcdef0123"
    parts = [part_workdir(whole, Share(number, 2)) for number in (1, 2)]
    others = [tmp_path / "traces-0123456789abcdef0124", part_workdir(tmp_path / "traces-ffff", Share(1, 2))]
    assert workdirs_beside(whole) == []
    for folder in (whole, *parts, *others):
        folder.mkdir()
    assert workdirs_beside(whole) == parts
    assert workdirs_beside(parts[0]) == [whole, parts[1]]
