"""A cascade killed at every point of its life: nothing that was kept is asked for again, and the bytes are the same."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.manifest import Manifest

NUM_PAIRS = 10
WRONG = {2, 5, 9}
REFUSED = 7
Row = tuple[str, int]


@pytest.fixture
def pairs(commit_pairs: Any) -> Manifest:
    return commit_pairs(NUM_PAIRS)  # type: ignore[no-any-return]


@pytest.fixture
def servers(teacher_server: Any, other_server: Any) -> dict[str, Any]:
    """A teacher that errs on some rows and refuses one, and one that does not."""

    def weak(call: Any) -> Any:
        number = number_of(call)
        if number == REFUSED:
            return teacher_server.answer(status=400, body=b"no")
        letter = "B" if number in WRONG else "A"
        body = teacher_server.completion(f"<think>{number}</think>\n<answer>[[{letter}]]</answer>")
        return teacher_server.answer(body=body, delay_seconds=0.04)

    def strong(call: Any) -> Any:
        body = other_server.completion(f"<think>{number_of(call)}</think>\n<answer>[[A]]</answer>")
        return other_server.answer(body=body, delay_seconds=0.04)

    teacher_server.script, other_server.script = weak, strong
    return {"weak": teacher_server, "strong": other_server}


def number_of(call: Any) -> int:
    return int(re.findall(r"What is (\d+) plus 1", call.prompt)[0])


class History:
    """All attempts at one piece of work, and what was asked in each."""

    def __init__(self, runner: Any, pairs: Manifest, servers: dict[str, Any], s3: Any) -> None:
        self.runner, self.pairs, self.servers, self.s3 = runner, pairs, servers, s3
        runner.environment = {k: v for k, v in runner.environment.items() if not k.startswith("MLFLOW")}
        calls = {"concurrency": 2, "attempts": 2, "max_wait_seconds": 0.1}
        cascade = [
            {"kind": "openai", "base_url": server.url, "model": name, "show_label": name == "strong", "calls": calls}
            for name, server in servers.items()
        ]
        self.config = {"teacher": cascade, "grammar": "think", "shard_size": 4, "max_failed_fraction": 0.1}
        self.taken_over = False

    def objects(self) -> list[str]:
        return [info.uri for info in self.s3.storage.list(f"{self.runner.root}/")]

    def journal(self) -> bytes:
        path = next((Path(self.runner.environment["REASRM_WORKDIR"])).glob("traces-*/replies.jsonl"), None)
        return path.read_bytes() if path else b""

    def kept(self) -> set[Row]:
        """The rows whose answers are on this machine or on S3: step by the teacher's name, number of the pair."""
        parts = [self.s3.storage.read_bytes(uri) or b"" for uri in self.objects() if "/partial/shard-" in uri]
        lines = self.journal().rpartition(b"\n")[0] + b"\n" + b"".join(parts)
        rows = [json.loads(line) for line in lines.splitlines() if line]
        return {(row["teacher"], int(row["pair_id"][1:])) for row in rows if "key" in row}

    def attempt(self, kill_when: Callable[[], bool] | None = None) -> int:
        """Run the stage, which must not ask for what is kept; returns how it ended."""
        kept, before = self.kept(), {name: len(server.calls) for name, server in self.servers.items()}
        running = self.runner.start("traces", self.config, {"pairs": self.pairs})
        if kill_when is not None:
            while running.process.poll() is None and not kill_when():
                time.sleep(0.001)
            if running.process.poll() is None:
                os.killpg(running.process.pid, signal.SIGKILL)
        code: int = running.process.wait(timeout=400)
        asked = {(name, number_of(call)) for name, n in before.items() for call in self.servers[name].calls[n:]}
        assert not asked & kept
        assert code in (0, -signal.SIGKILL), running.log.read_text()[-3000:]
        return code

    def result(self) -> bytes:
        assert self.attempt() == 0
        return (self.runner.directory / "output.json").read_bytes().replace(self.runner.root.encode(), b"ROOT")


def test_killed_at_each_line_of_the_journal_it_ends_with_the_bytes_of_a_calm_run(
    stage_runner: Any, pairs: Manifest, servers: dict[str, Any], s3: Any
) -> None:
    calm = History(stage_runner("calm"), pairs, servers, s3)
    expected = calm.result()
    num_lines = calm.journal().count(b"\n")
    assert num_lines == NUM_PAIRS + len(WRONG) + 1

    rough = History(stage_runner("rough"), pairs, servers, s3)
    num_kills, lines = 0, 0
    while rough.attempt(lambda before=lines: rough.journal().count(b"\n") > before) != 0:
        num_kills += 1
        lines = max(rough.journal().count(b"\n"), lines + 1)
    assert num_kills >= num_lines // 2
    assert rough.result() == expected


def test_killed_as_each_object_appears_on_s3_also_with_its_disk_lost(
    stage_runner: Any, pairs: Manifest, servers: dict[str, Any], s3: Any
) -> None:
    expected = History(stage_runner("calm"), pairs, servers, s3).result()
    rough = History(stage_runner("rough"), pairs, servers, s3)
    num_kills = seen = 0
    while rough.attempt(lambda before=seen: len(rough.objects()) > before) != 0:
        num_kills, seen = num_kills + 1, len(rough.objects())
        shutil.rmtree(rough.runner.environment["REASRM_WORKDIR"])
    names = [uri.rpartition("/")[2] for uri in rough.objects()]
    assert num_kills >= 4
    assert {"traces.jsonl", "failures.jsonl", "manifest.json"} <= set(names)
    assert sum(name.startswith("shard-") for name in names) >= 3
    assert rough.result() == expected


@pytest.mark.parametrize("point", ["output/traces.jsonl", "manifest.json"])
def test_killed_right_before_and_right_after_the_manifest_nothing_is_asked_again(
    stage_runner: Any, pairs: Manifest, servers: dict[str, Any], s3: Any, point: str
) -> None:
    expected = History(stage_runner("calm"), pairs, servers, s3).result()
    rough = History(stage_runner("rough"), pairs, servers, s3)
    workdir = Path(rough.runner.environment["REASRM_WORKDIR"])

    def reached() -> bool:
        if point == "manifest.json":
            return any(uri.endswith(point) for uri in rough.objects())
        return next(workdir.glob(f"traces-*/{point}"), None) is not None

    rough.attempt(reached)
    num_calls = sum(len(server.calls) for server in servers.values())
    assert rough.result() == expected
    assert sum(len(server.calls) for server in servers.values()) == num_calls


def test_of_two_machines_at_the_same_work_the_first_to_write_a_row_wins_for_both(
    stage_runner: Any, pairs: Manifest, servers: dict[str, Any], s3: Any, tmp_path: Path
) -> None:
    """One is stopped in the middle while the other does it all; then it goes on, and both have the same result."""
    one = History(stage_runner("shared"), pairs, servers, s3)
    other = History(stage_runner("other"), pairs, servers, s3)
    other.runner.root = one.runner.root
    running = one.runner.start("traces", one.config, {"pairs": pairs})
    while one.journal().count(b"\n") < 3:
        time.sleep(0.002)
    os.kill(running.process.pid, signal.SIGSTOP)
    finished = other.result()
    os.kill(running.process.pid, signal.SIGCONT)
    assert running.process.wait(timeout=180) == 0, running.log.read_text()
    assert (one.runner.directory / "output.json").read_bytes().replace(one.runner.root.encode(), b"ROOT") == finished
