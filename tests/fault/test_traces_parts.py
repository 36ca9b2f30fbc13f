"""Traces in parts: whatever becomes of the parts, the stage ends with the artifact that it makes alone.

The processes under test run this very file as a program.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from components.adapters.follow import SilentRun
from components.adapters.part import Share, run_part
from components.adapters.progress import Progress
from components.adapters.stage import Output, exclusive, run_stage
from components.adapters.stage_run import replay
from components.adapters.storage import Storage
from components.adapters.teachers import Usage
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest
from components.core.schema import Trace
from components.traces.allowance import allowance
from components.traces.collect import ALONE
from components.traces.config import Config
from components.traces.ledger import open_ledger
from components.traces.pairs import Pairs
from components.traces.plan import Plan

ROOT = Path(__file__).parents[2]
NUM_PAIRS, SHARD_SIZE = 22, 2
REFUSED = 7
DISK = "a disk that several parts share"
COLD = {"concurrency": 2, "attempts": 1, "max_wait_seconds": 0.01}


@dataclass
class History:
    """One work with an artifact root of its own, done on several machines."""

    s3: Any
    name: str
    pairs: Manifest
    config: dict[str, Any]
    directory: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def root(self) -> str:
        return f"{self.s3.prefix}/{self.name}"

    def on(self, machine: str) -> None:
        self.monkeypatch.setenv("REASRM_WORKDIR", str(self.directory / self.name / machine))

    def part(self, part: str, machine: str = "", **config: Any) -> str:
        self.on(machine or f"pod {part[0]}")
        return self._do(run_part, part, **config)  # type: ignore[no-any-return]

    def parts(self, count: int, **config: Any) -> list[str]:
        """Run all parts at the same time, on one machine."""
        self.on("together")
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda n: self._do(run_part, f"{n + 1}/{count}", **config), range(count)))

    def stage(self, machine: str = "the stage's pod", **config: Any) -> Manifest:
        self.on(machine)
        return self._do(run_stage, **config).manifest  # type: ignore[no-any-return]

    def _do(self, work: Callable[..., Any], *part: str, content: str = "", **config: Any) -> Any:
        names = {"artifact_root": self.root, "experiment": "e", "run_id": self.name, "content": content}
        return work("traces", self.config | config, {"pairs": self.pairs}, *part, **names)

    def shards(self) -> set[int]:
        names = (info.uri.rpartition("/")[2] for info in self.s3.storage.list(f"{self.root}/"))
        return {int(name.split("-")[1]) for name in names if name.startswith("shard-")}

    def process(self, part: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start the KFP component in a process, as a pod does."""
        work = self.directory / self.name / DISK
        work.mkdir(parents=True, exist_ok=True)
        (work / "pairs.json").write_bytes(self.pairs.to_bytes())
        config = {name: value for name, value in self.config.items() if name not in ("teacher", "grammar")}
        arguments = {
            "part": part, "config": json.dumps(config), "teacher": json.dumps(self.config["teacher"]),
            "grammar": self.config["grammar"], "content": "", "artifact_root": self.root, "experiment": self.name,
        }  # fmt: skip
        ours = {"REASRM_WORKDIR": str(work), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(work / "pairs.json"), json.dumps(arguments)]
        return subprocess.Popen(command, env={**environment, **ours}, start_new_session=True)


def journalled(disk: Path, part: int) -> set[int]:
    """The pairs of which a part of four has an answer on the disk; the last line may be torn."""
    found = next(iter(disk.glob(f"traces-*-part-{part}-of-4/replies.jsonl")), None)
    lines = found.read_bytes().rpartition(b"\n")[0].splitlines() if found else []
    return {int(row["pair_id"][1:]) for row in map(json.loads, lines) if "pair_id" in row}


def row_of(prompt: str) -> int:
    return int(re.findall(r"What is (\d+) plus 1", prompt)[0])


def asked(calls: Iterable[Any]) -> Counter[int]:
    """How often each pair was asked about."""
    return Counter(row_of(call.prompt) for call in calls)


def completion(server: Any, call: Any, letter: str) -> Any:
    read = sum(len(message["content"]) for message in call.body["messages"])
    choice = {"message": {"content": f"<think>so</think>\n<answer>[[{letter}]]</answer>"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": read * 2 // 3, "completion_tokens": 20 + row_of(call.prompt) % 9}
    return server.answer(body=json.dumps({"choices": [choice], "usage": usage}).encode())


@pytest.fixture
def make(
    s3: Any, commit_pairs: Any, teacher_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., History]:
    """Return a maker of histories: a cascade in which the second teacher gets what the first had wrong."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(
        Storage, "from_env", lambda: s3.storage
    )  # a connection of its own takes each a part of a second
    pairs = commit_pairs(NUM_PAIRS)

    def script(call: Any) -> Any:
        row = row_of(call.prompt)
        if row == REFUSED:
            return teacher_server.answer(status=400, body=b"no")
        return completion(teacher_server, call, "B" if row % 3 == 1 and call.body["model"] == "weak" else "A")

    def history(name: str, **config: Any) -> History:
        one = {"kind": "openai", "base_url": teacher_server.url, "max_tokens": 60, "calls": COLD}
        teachers = [one | {"model": "weak"}, one | {"model": "strong", "show_label": True}]
        settings = {"teacher": teachers, "grammar": "think", "shard_size": SHARD_SIZE, "max_failed_fraction": 0.1}
        return History(s3, name, pairs, settings | config, tmp_path, monkeypatch)

    teacher_server.script = script
    return history


def content(manifest: Manifest) -> dict[str, Any]:
    """Return all that an artifact is, but for where it lies: equal ones are equal to the byte."""
    return manifest.model_dump(exclude={"uri"})


def test_parts_do_all_of_the_work_and_the_stage_puts_it_together(make: Any, teacher_server: Any) -> None:
    alone = make("alone").stage()
    num_alone = len(teacher_server.calls)
    assert alone.statistics["right"] == NUM_PAIRS - 1

    split = make("split")
    said = [split.part("1/3")]
    assert split.shards() == {0, 3, 6, 9}
    said += [split.part("2/3"), split.part("3/3")]
    assert [line.partition(" right")[0] for line in said] == [
        "10 traces of 8 pairs, 7", "8 traces of 8 pairs, 8", "9 traces of 6 pairs, 6",
    ]  # fmt: skip
    assert len(teacher_server.calls) == 2 * num_alone
    assert not [info for info in split.s3.storage.list(f"{split.root}/") if info.uri.endswith("manifest.json")]

    manifest = split.stage()
    assert content(manifest) == content(alone)
    again = asked(teacher_server.calls[2 * num_alone :])
    assert again == {REFUSED: 2}, "only what failed is asked again, of both teachers"
    assert split.part("2/3", "another pod") == "the stage is done already"
    assert len(teacher_server.calls) == 2 * num_alone + 2


def test_a_part_that_is_killed_lost_or_run_twice_changes_nothing(
    make: Any, services: Any, teacher_server: Any, tmp_path: Path
) -> None:
    alone = make("alone").stage()
    answer, slow = teacher_server.script, threading.Event()
    slow.set()

    def script(call: Any) -> Any:
        time.sleep(0.15 if slow.is_set() else 0.0)
        return answer(call)

    teacher_server.script = script
    split, disk, seen = make("split"), tmp_path / "split" / DISK, tmp_path / "seen"
    seen.mkdir()
    environment = {**os.environ, **services.environment(), "REASRM_RUN_ID": f"run of {split.root}"}
    untracked = {name: value for name, value in environment.items() if not name.startswith("MLFLOW")}
    killed = split.process("1/4", untracked)
    stopped = split.process("2/4", environment | {"REASRM_STATUS": str(seen), "REASRM_LOGS": str(seen)})
    for process, number, how in ((killed, 1, signal.SIGKILL), (stopped, 2, signal.SIGTERM)):
        deadline = time.monotonic() + 180
        while len(journalled(disk, number)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, how)
    assert killed.wait(timeout=180) == -signal.SIGKILL
    assert stopped.wait(timeout=180) == 75
    slow.clear()
    status = json.loads((seen / "traces-2-of-4.json").read_text("utf-8"))
    assert (status["status"], status["error"]) == ("failed", "Transient")
    assert "stopped by SIGTERM" in (seen / "traces-2-of-4.log").read_text("utf-8")

    num_calls = len(teacher_server.calls)
    doubles = [split.part("3/4", machine) for machine in ("a pod", "its double")]  # the fourth part never runs
    assert doubles[0] == doubles[1]
    there = journalled(disk, 1) | journalled(disk, 2)
    assert split.stage(DISK).files == alone.files
    again = asked(teacher_server.calls[num_calls:])
    assert there, "the parts had answers on this disk"
    assert not {row for row in there if row % 3 != 1} & again.keys(), "which are not paid for again"

    workdir = next(disk.glob("traces-*-part-2-of-4"))
    assert replay(workdir) == 0
    client = MlflowClient(services.environment()["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(split.name)
    (run,) = client.search_runs([experiment.experiment_id], "tags.`reasrm.part` = '2/4'")
    assert (run.info.run_name, run.info.status) == ("traces 2/4", "KILLED")
    assert client.get_run(run.data.tags["mlflow.parentRunId"]).data.tags["reasrm.role"] == "pipeline"
    assert run.data.metrics["tokens"] > 0


def test_parts_at_the_same_time_never_cross_the_budget_together(make: Any, teacher_server: Any) -> None:
    answer, bills = teacher_server.script, []

    def script(call: Any) -> Any:
        time.sleep(0.01)
        answered = answer(call)
        if answered.status == 200:
            usage = json.loads(answered.body)["usage"]
            with teacher_server.lock:
                bills.append(usage["prompt_tokens"] + usage["completion_tokens"])
        return answered

    teacher_server.script = script
    alone = make("alone").stage()
    all_of_it = sum(bills)
    bills.clear()
    cap, raised = all_of_it * 6 // 10, all_of_it * 8 // 10
    split = make("split", max_total_tokens=cap)

    said = split.parts(4)
    assert sum("ended early at a limit" in line for line in said) >= 3, said
    first = sum(bills)
    assert 0 < first <= cap
    with pytest.raises(InvalidInput, match=r"the budget \(max_total_tokens=\d+\) is spent as far as"):
        split.stage("together")
    second = sum(bills)
    assert first < second <= cap, "what the parts left over is enough for more"

    # The stage has spent on rows of all parts. None may now take what is left for its own.
    split.parts(4)
    assert second <= sum(bills) <= cap

    split.parts(3, max_total_tokens=raised)
    assert second < sum(bills) <= raised
    with pytest.raises(InvalidInput, match="is spent as far as"):
        split.stage("together", max_total_tokens=raised)
    assert sum(bills) <= raised

    split.parts(4, max_total_tokens=10 * all_of_it)
    assert split.stage("together", max_total_tokens=10 * all_of_it).files == alone.files
    assert sum(bills) == all_of_it, "no answer was paid for twice"


def test_what_parts_may_spend_adds_up_to_the_budget_however_it_was_spent_before(make: Any, tmp_path: Path) -> None:
    history = make("any")
    teacher = history.config["teacher"][:1]
    pairs = Pairs(tmp_path / "pairs" / "distil.jsonl", both_orders=False)
    work = tmp_path / "work"
    work.mkdir()
    output = Output(f"{history.root}/traces", work, work, history.s3.storage, SilentRun(), Progress("t"), "key")

    def limits(count: int, tokens: int, **more: Any) -> list[Any]:
        settings = Config.model_validate(history.config | {"teacher": teacher, "max_total_tokens": tokens} | more)
        plans = [Plan(settings, pairs, Share(number, count)) for number in range(1, count + 1)]
        return [allowance(settings, plan, ledger, output)[bool(more)] for plan in plans]

    def spend(row: int, tokens: int) -> None:
        values = {"key": f"p{row}:ab", "pair_id": f"p{row}", "swapped": False, "teacher": "m", "text": "so"}
        numbers = {"prompt_tokens": tokens - 1, "completion_tokens": 1, "finish_reason": "stop"}
        ledger.add(Trace.model_validate(values | numbers))

    whole = Plan(Config.model_validate(history.config | {"teacher": teacher}), pairs)
    with open_ledger(output, whole.shard_of, whole.has) as ledger:
        assert limits(4, 400) == [100, 100, 100, 100]
        for row in (0, 2, 4, 6):  # one of each part
            spend(row, 50)
        ledger.waste("in vain", "p8:ab@0.0", Usage(10, 5))
        assert limits(4, 400) == [100, 100, 100, 100], "a part that starts again may spend what it might at first"
        output.write_partial(f"{ALONE}1", b"")
        spend(10, 100)  # by the stage, on a row of the second part
        assert limits(4, 400) == [65 + 21, 150 + 21, 50 + 21, 50 + 21]
        assert limits(3, 1000) == [50 + 50 + 228, 50 + 15 + 228, 50 + 100 + 228]
        assert limits(2, 100) == [115, 200], "what is spent stays spent"
        price = {"max_cost": 0.001, "prices": {"weak": {"input": 1.0, "output": 1.0}}}
        assert limits(2, 10**6, **price) == pytest.approx([115e-6 + 342.5e-6, 200e-6 + 342.5e-6])


def test_limits_end_a_part_early_and_only_the_stage_decides(make: Any, teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=400, body=b"no")
    split = make("split")
    assert "0 traces of 12 pairs" in (said := split.part("1/2"))
    assert "ended early at a limit" in said
    with pytest.raises(InvalidInput, match=r"weak answered none of 2\d rows"):
        split.stage()
    teacher_server.script = lambda call: teacher_server.answer(status=401, body=b"no")
    with pytest.raises(InvalidInput, match="401"):
        split.part("2/2")
    teacher_server.script = lambda call: teacher_server.answer(status=503, body=b"no")
    with pytest.raises(Transient):
        split.part("2/2")


def test_a_part_is_done_by_one_process_of_a_machine(make: Any) -> None:
    split = make("split")
    split.part("1/2", "pod")
    with exclusive(next((split.directory / "split" / "pod").glob("traces-*-part-1-of-2"))):
        with pytest.raises(Transient, match="another process is doing this very work"):
            split.part("1/2", "pod")
        split.part("2/2", "pod")


def test_where_parts_are_of_no_use(make: Any, teacher_server: Any) -> None:
    nowhere: dict[str, Any] = {"artifact_root": "no s3 uri", "experiment": "e", "run_id": "r"}
    recorded = {"teacher": {"kind": "recorded", "uri": "nowhere.jsonl"}}
    assert run_part("traces", {}, {}, "1/1", **nowhere) == "the stage does all of it"
    assert run_part("traces", recorded, {}, "1/2", **nowhere) == "recorded judgments are played by the stage"
    batch = {"teacher": {"kind": "openai-batch", "base_url": teacher_server.url, "model": "m"}}
    with pytest.raises(InvalidInput, match=r"the teacher m is asked in batches, .*: set traces_parts to 1"):
        run_part("traces", batch, {}, "1/2", **nowhere)
    with pytest.raises(InvalidInput, match="filter cannot be done in parts"):
        run_part("filter", {}, {}, "1/2", **nowhere)
    with pytest.raises(InvalidInput, match="is not what it was when this run began"):
        make("other")._do(run_part, "1/2", content="of another day")
    assert not teacher_server.calls


if __name__ == "__main__":
    from components.traces.component import traces_part

    pairs_file, given = sys.argv[1:]
    traces_part.python_func(pairs=SimpleNamespace(path=pairs_file, uri=""), **json.loads(given))
