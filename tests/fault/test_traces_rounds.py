"""One attempt at a cascade inside this process, on a real S3: rounds cut short, answers on their way, other sizes."""

import asyncio
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.adapters.progress import Progress
from components.adapters.stage import Output
from components.adapters.stage_run import open_stage_run
from components.core.errors import Transient
from components.core.records import write_jsonl
from components.core.schema import PreferencePair, Trace
from components.traces import collect
from components.traces.collect import Collection
from components.traces.config import Config
from components.traces.ledger import open_ledger
from components.traces.pairs import Pairs
from components.traces.plan import Plan
from components.traces.run import until_stopped
from components.traces.tally import Tally

RIGHT = "<think>so</think>\n<answer>[[A]]</answer>"
WRONG = "<think>so</think>\n<answer>[[B]]</answer>"


@dataclass
class FlakyOutput(Output):
    """The real output, which S3 refuses so many times."""

    refusals: Iterator[float] = field(default_factory=lambda: iter(()))
    """Seconds after which each of the next writes is refused."""

    def write_partial(self, name: str, data: bytes) -> None:
        seconds = next(self.refusals, None)
        if seconds is not None:
            time.sleep(seconds)
            raise Transient("S3 says 503")
        super().write_partial(name, data)


@dataclass
class Work:
    """One piece of work, done on any of several machines."""

    s3: Any
    folder: Path
    name: str = "work"

    def output(self, machine: str, **fields: Any) -> FlakyOutput:
        workdir = self.folder / machine
        workdir.mkdir(exist_ok=True)
        run = open_stage_run(run_id="r", run_name="r", stage="traces", experiment="e", workdir=workdir, tags={})
        uri = f"{self.s3.prefix}/{self.name}"
        return FlakyOutput(uri, workdir, workdir, self.s3.storage, run, Progress("traces"), "k" * 64, **fields)

    def pairs(self, count: int) -> Path:
        path = self.folder / f"{count}.jsonl"
        if not path.exists():
            values = [
                {"id": f"p{n}", "prompt": f"What is {n}?", "response_a": f"{n}", "response_b": "?", "label": "A"}
                for n in range(count)
            ]
            write_jsonl(path, map(PreferencePair.model_validate, values))
        return path

    def attempt(
        self,
        config: dict[str, Any],
        count: int,
        output: Output,
        watch: Callable[["asyncio.Task[None]"], Any] | None = None,
    ) -> tuple[list[bytes], dict[str, Any]]:
        """Return the lines of traces.jsonl and the statistics; `watch` is awaited beside the work."""
        settings = Config.model_validate({"grammar": "think"} | config)
        plan = Plan(settings, Pairs(self.pairs(count), both_orders=False))

        async def work(collection: Collection) -> None:
            task = asyncio.ensure_future(collection.collect())
            if watch is not None:
                await watch(task)
            await asyncio.wait_for(task, 60)

        with open_ledger(output, plan.shard_of) as ledger:
            asyncio.run(work(Collection(settings, plan, ledger, output)))
            tally = Tally.of(settings, plan, ledger)
            return list(tally.traces()), tally.statistics()

    def committed(self) -> list[dict[str, Any]]:
        """All rows on S3."""
        uris = [info.uri for info in self.s3.storage.list(f"{self.s3.prefix}/{self.name}/partial/shard-")]
        data = b"".join(self.s3.storage.read_bytes(uri) or b"" for uri in uris)
        return [json.loads(line) for line in data.splitlines()]

    def committed_keys(self) -> list[str]:
        return sorted(row["key"] for row in self.committed() if "key" in row)


@pytest.fixture
def work(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Work(s3, tmp_path)


@pytest.fixture
def batches() -> Iterator[Any]:
    """The provider of batches of the tests beside this one."""
    spec = importlib.util.spec_from_file_location("batch_provider", Path(__file__).with_name("test_batch_faults.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        with module.serving() as server:
            yield server
    finally:
        del sys.modules[spec.name]


def number_of(call: Any) -> int:
    return int(re.findall(r"What is (\d+)\?", call.prompt)[0])


def served(server: Any, **fields: Any) -> dict[str, Any]:
    calls = {"concurrency": 8, "attempts": 2, "breaker_rows": 3, "max_wait_seconds": 0.05}
    return {"kind": "openai", "base_url": server.url, "model": "m", "calls": calls} | fields


def keys(numbers: Any) -> list[str]:
    return sorted(f"p{n}:ab" for n in numbers)


def test_a_nul_character_in_an_error_is_kept_as_text_and_the_stage_ends(work: Work, teacher_server: Any) -> None:
    def script(call: Any) -> Any:
        if number_of(call) == 1:
            return teacher_server.answer(status=400, body=b"<html>bad\x00request")
        return teacher_server.answer(body=teacher_server.completion(RIGHT))

    teacher_server.script = script
    config = {"teacher": served(teacher_server), "max_failed_fraction": 0.5}
    traces, statistics = work.attempt(config, 3, work.output("one"))
    assert (len(traces), statistics["failures"]) == (2, {"refused": 1})
    (failure,) = (row for row in work.committed() if "failed" in row)
    assert failure["reason"].endswith("<html>bad\\x00request")


def test_a_step_cut_short_by_its_limit_asks_the_rest_when_a_slow_call_undoes_it(
    work: Work, teacher_server: Any, other_server: Any
) -> None:
    def script(call: Any) -> Any:
        if call.number == 1:
            return teacher_server.answer(body=teacher_server.completion(RIGHT), delay_seconds=0.7)
        return teacher_server.answer(status=400, body=b"no")

    teacher_server.script = script
    other_server.script = lambda call: other_server.answer(body=other_server.completion(RIGHT))
    cascade = [served(teacher_server), served(other_server)]
    _, statistics = work.attempt({"teacher": cascade}, 60, work.output("one"))
    assert Counter(map(number_of, teacher_server.calls)) == Counter(range(60))
    assert len(other_server.calls) == 59
    assert (statistics["right"], statistics["failed"]) == (60, 59)


def test_a_step_cut_short_by_cut_off_traces_asks_the_rest_when_slow_ones_are_whole(
    work: Work, teacher_server: Any
) -> None:
    def script(call: Any) -> Any:
        is_cut = call.number <= 14
        body = teacher_server.completion("and so on" if is_cut else RIGHT, "length" if is_cut else "stop")
        return teacher_server.answer(body=body, delay_seconds=0.5 if call.number > 20 else 0.0)

    teacher_server.script = script
    teacher = served(teacher_server, calls={"concurrency": 60})
    _, statistics = work.attempt({"teacher": teacher}, 100, work.output("one"))
    assert Counter(map(number_of, teacher_server.calls)) == Counter(range(100))
    assert (statistics["traces"], statistics["truncated"]) == (100, 14)


def test_rows_that_failed_before_a_batch_was_sent_stay_failed_so_that_nothing_is_paid_twice(
    work: Work, teacher_server: Any, batches: Any
) -> None:
    def script(call: Any) -> Any:
        number = number_of(call)
        text = "" if number < 4 and not batches.jobs else WRONG if number in (4, 5) else RIGHT
        return teacher_server.answer(body=teacher_server.completion(text))

    teacher_server.script = script
    batches.plan = lambda job, lines: ["in_progress"] * 10_000
    batches.run = lambda job, lines: ([batches.good(line, RIGHT) for line in lines], [])
    batch = {"kind": "openai-batch", "base_url": batches.url, "model": "dear", "poll_seconds": 0.05, "show_label": True}
    config = {"teacher": [served(teacher_server), batch], "max_total_tokens": 10**7}

    async def cancel_when_sent(task: "asyncio.Task[None]") -> None:
        while not batches.accepted:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()

    with pytest.raises(asyncio.CancelledError):
        work.attempt(config, 20, work.output("one"), cancel_when_sent)
    assert len(batches.accepted) == 6
    num_calls = len(teacher_server.calls)
    for job in batches.jobs.values():
        job.states[:] = ["completed"]
    _, statistics = work.attempt(config, 20, work.output("one"))
    assert len(teacher_server.calls) == num_calls
    assert set(batches.accepted.values()) == {1}
    assert len(batches.jobs) == 1
    assert (statistics["steps"]["1"]["right"], statistics["pairs_right"], statistics["failed"]) == (6, 20, 4)


def test_replayed_traces_stay_marked_as_rationalised(work: Work, tmp_path: Path) -> None:
    tokens = {"prompt_tokens": 1, "completion_tokens": 1, "finish_reason": "stop", "swapped": False, "teacher": "o3"}
    values = [{"key": f"p{n}:ab", "pair_id": f"p{n}", "text": RIGHT, "rationalised": n < 2} | tokens for n in range(4)]
    write_jsonl(tmp_path / "told.jsonl", map(Trace.model_validate, values))
    config = {"teacher": {"kind": "recorded", "uri": str(tmp_path / "told.jsonl")}}
    for machine in ("one", "another"):  # The second has them from S3.
        traces, statistics = work.attempt(config, 4, work.output(machine))
        assert [json.loads(line)["rationalised"] for line in traces] == [True, True, False, False]
        assert statistics["rationalised"] == 2


@pytest.mark.parametrize("refusals", [[0.0] * 4, [0.0, 0.0, 0.5, 0.5]])
def test_a_hiccup_of_s3_with_several_parts_on_their_way_loses_nothing(
    work: Work, teacher_server: Any, refusals: list[float]
) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion(RIGHT))
    config = {"teacher": served(teacher_server), "shard_size": 2}
    with pytest.raises(Transient, match="S3 says 503"):
        work.attempt(config, 8, work.output("one", refusals=iter(refusals)))
    asked = keys(map(number_of, teacher_server.calls))
    assert work.committed_keys() == asked
    assert len(work.attempt(config, 8, work.output("another"))[0]) == 8
    assert sorted(map(number_of, teacher_server.calls)) == list(range(8))


def test_a_refusal_of_s3_keeps_its_own_message_where_the_limits_are_crossed_too(
    work: Work, teacher_server: Any
) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=400, body=b"no")
    config = {"teacher": served(teacher_server, calls={"concurrency": 1}), "shard_size": 1, "max_failed_fraction": 0.4}
    with pytest.raises(Transient, match="S3 says 503"):
        work.attempt(config, 9, work.output("one", refusals=iter([0.0] * 50)))


def test_answers_of_a_shard_that_is_never_complete_are_on_s3_soon_and_nothing_of_the_rows_under_way(
    work: Work, teacher_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "SEND_SECONDS", 0.1)
    release = threading.Event()

    def script(call: Any) -> Any:
        if number_of(call) == 3 and call.number > 10:
            release.wait(180)
        return teacher_server.answer(body=teacher_server.completion(RIGHT))

    teacher_server.script = script
    config = {"teacher": served(teacher_server), "shard_size": 1000, "max_total_tokens": 10**6}
    calm = Work(work.s3, work.folder, "calm")
    expected, _ = calm.attempt(config, 10, calm.output("calm"))
    seen: list[list[str]] = []

    async def look(task: "asyncio.Task[None]") -> None:
        fast = keys(set(range(10)) - {3})
        for _ in range(300):
            if await asyncio.to_thread(work.committed_keys) == fast:
                break
            await asyncio.sleep(0.05)
        assert not task.done()
        rows = await asyncio.to_thread(work.committed)
        seen.append([row["key"] for row in rows if "key" in row])
        assert not [row for row in rows if "p3:ab" in json.dumps(row)]
        release.set()

    traces, statistics = work.attempt(config, 10, work.output("two"), look)
    assert len(seen[0]) == 9
    assert traces == expected
    assert statistics["waste"]["prompt_tokens"] == 0
    assert work.attempt(config, 10, work.output("three")) == (traces, statistics)
    assert Counter(work.committed_keys()) == Counter(keys(range(10)))
    assert len(teacher_server.calls) == 20


@pytest.mark.parametrize("is_lost", [False, True])
def test_another_shard_size_asks_nothing_again_and_gives_the_same_bytes(
    work: Work, teacher_server: Any, is_lost: bool
) -> None:
    def script(call: Any) -> Any:
        if call.number > 17 and len(teacher_server.calls) < 60 and not healthy.is_set():
            return teacher_server.answer(status=503)
        if number_of(call) == 5:
            return teacher_server.answer(status=400, body=b"no")
        return teacher_server.answer(body=teacher_server.completion(RIGHT.replace("so", f"{number_of(call)}")))

    healthy = threading.Event()
    teacher_server.script = script
    teacher = served(teacher_server, calls={"concurrency": 2, "attempts": 1, "breaker_rows": 3})
    config = {"teacher": teacher, "max_failed_fraction": 0.9}
    with pytest.raises(Transient):
        work.attempt(config | {"shard_size": 4}, 40, work.output("one"))
    there = work.committed_keys()
    assert 10 <= len(there) < 40
    num_calls = len(teacher_server.calls)
    healthy.set()
    output = work.output("another" if is_lost else "one")
    traces, _ = work.attempt(config | {"shard_size": 7}, 40, output)
    again = keys(map(number_of, teacher_server.calls[num_calls:]))
    assert again == keys(n for n in range(40) if f"p{n}:ab" not in there)
    assert Counter(work.committed_keys()) == Counter(keys(set(range(40)) - {5}))
    assert [json.loads(line)["text"] for line in traces] == [RIGHT.replace("so", f"{n}") for n in range(40) if n != 5]
    num_calls = len(teacher_server.calls)
    assert work.attempt(config | {"shard_size": 3}, 40, work.output("third"))[0] == traces
    assert set(map(number_of, teacher_server.calls[num_calls:])) == {5}


def test_a_second_sigterm_does_not_break_off_what_the_first_began() -> None:
    saved: list[str] = []

    async def stubborn() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(30)
        finally:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.1)
            saved.append("all")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Transient, match="stopped by SIGTERM"):
        asyncio.run(until_stopped(stubborn()))
    assert saved == ["all"]
    assert signal.getsignal(signal.SIGTERM) == before
