"""The same bytes whatever the number of processes, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ReasrmError
from components.prepare.workers import ALONE, Workers, num_cpus, open_workers

ROOT = Path(__file__).parents[3]


def doubled(number: int) -> tuple[int, int]:
    time.sleep(0.002 * (number % 3))
    return 2 * number, os.getpid()


def fails(number: int) -> int:
    if number == ALONE + 3:
        raise ValueError(f"number {number}")
    return number


def dies(number: int) -> int:
    if number == ALONE + 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order_from_as_many_processes_as_asked(processes: int) -> None:
    with open_workers(processes) as workers:
        results = list(workers.map(doubled, range(80)))
        more = list(workers.map(doubled, range(3)))
    assert [number for number, _ in results] == [2 * n for n in range(80)]
    assert [number for number, _ in more] == [0, 2, 4]
    others = {pid for _, pid in results} - {os.getpid()}
    assert len(others) <= processes
    assert bool(others) == (processes > 1)


def test_few_tasks_are_taken_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number

    with open_workers(2) as workers:
        for count, _ in enumerate(workers.map(doubled, tasks()), start=1):
            assert taken <= count + 2 * 2 + 1


def test_an_error_in_a_process_is_the_error_of_the_stage() -> None:
    with open_workers(2) as workers, pytest.raises(ValueError, match=f"number {ALONE + 3}"):
        list(workers.map(fails, range(100)))


def test_a_killed_process_is_told_from_a_failure() -> None:
    with open_workers(2) as workers, pytest.raises(ReasrmError, match="want of memory"):
        list(workers.map(dies, range(100)))


def test_the_number_of_processes_is_within_what_this_one_may_use() -> None:
    assert 1 <= num_cpus() <= len(os.sched_getaffinity(0))
    with open_workers(None) as workers:
        assert workers.processes <= min(num_cpus(), 8)


def test_the_stage_writes_the_same_bytes_with_one_process_and_with_two(prepare: Any, row: Any, tmp_path: Path) -> None:
    rows = [
        row(
            n,
            response_b=" ".join(f"{n * k % 97}x" for k in range(1, 30)),
            prompt=f"Question {n // 2} of the day, and {n}?",
        )
        for n in range(128 * (ALONE + 8))
    ]
    rows += [row(n, id=f"copy{n}", response_a="else") | {"label": "tie" if n % 5 else "A"} for n in range(50)]
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "Question 5 of the day, and 11?"}\n', encoding="utf-8")
    benchmarks = [{"name": "b", "uri": str(bench), "format": "pairs"}]
    results = []
    for processes in (1, 2):
        statistics, directory = prepare(rows, benchmarks=benchmarks, processes=processes)
        results.append((statistics, {path.name: path.read_bytes() for path in directory.iterdir()}))
    assert results[0][0] == results[1][0]
    assert results[0][1].keys() == results[1][1].keys() >= {"overlap.bin", "quarantine.jsonl", "rl.jsonl"}
    assert results[0][1] == results[1][1]


WAITING = """
import sys, time
sys.path.insert(0, {root!r})
from components.adapters.stage import stopping_cleanly
from components.prepare.workers import open_workers
def slow(number):
    time.sleep(0.05)
    return number
if __name__ == "__main__":
    with stopping_cleanly(), open_workers(2) as workers:
        for number in workers.map(slow, range(10_000)):
            print(number, flush=True)
"""


def children_of(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(child) for child in tasks.read_text(encoding="ascii").split()} if tasks.exists() else set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_when_the_stage_is_stopped(number: int, tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING.format(root=str(ROOT)), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell without job control starts background jobs deaf to Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > ALONE + 4:
                break
        left = children_of(process.pid)
        assert len(left) >= 2
        os.killpg(process.pid, number) if number != signal.SIGKILL else process.kill()
        start = time.monotonic()
        _, errors = process.communicate(timeout=180)
        assert time.monotonic() - start < 60
        assert process.returncode != 0
        if number == signal.SIGTERM:
            assert b"Transient" in errors
        assert b"SpawnProcess" not in errors
    deadline = time.monotonic() + 180
    while any(Path(f"/proc/{child}").exists() for child in left):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def test_workers_that_were_never_needed_close_at_once() -> None:
    workers = Workers(4)
    assert list(workers.map(doubled, [])) == []
    workers.close()
