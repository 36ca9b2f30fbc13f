"""The traces stage as a process that is killed, cut off and started again: no answer is paid for twice."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.core.manifest import Manifest, describe
from components.core.records import read_models, write_jsonl
from components.core.schema import PreferencePair, Trace

ROOT = Path(__file__).parents[2]
NUM_PAIRS = 40
CONCURRENCY = 4
SHARD = 4
REFUSED = 7


@dataclass
class Stage:
    """The traces stage with a working folder and an artifact root of its own."""

    pairs: Path
    directory: Path
    root: str
    environment: dict[str, str]
    url: str
    process: "subprocess.Popen[str] | None" = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def journal(self) -> Path:
        return next((self.directory / "work").glob("traces-*/replies.jsonl"))

    def journalled(self) -> set[str]:
        """The keys whose answers are on disk; the last line may be torn."""
        return keys(self.journal.read_bytes().rpartition(b"\n")[0])

    def start(self) -> tuple[int, str]:
        """Run the stage to its end, whatever that is; returns exit code and what it said."""
        calls = {"concurrency": CONCURRENCY, "attempts": 2, "breaker_rows": 3, "max_wait_seconds": 0.1}
        teacher = {"kind": "openai", "base_url": self.url, "model": "m", "calls": calls}
        config = {"teacher": teacher, "shard_size": SHARD, "max_failed_fraction": 0.1} | self.settings
        self.directory.mkdir(exist_ok=True)
        (self.directory / "config.json").write_text(json.dumps(config))
        command = [
            sys.executable, "-m", "components.traces", "--config", str(self.directory / "config.json"),
            "--inputs", f"pairs={self.pairs}", "--output", str(self.output), "--artifact-root", self.root,
        ]  # fmt: skip
        environment = self.environment | {"REASRM_WORKDIR": str(self.directory / "work")}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        _, said = self.process.communicate(timeout=400)
        return self.process.returncode, said

    def finish(self) -> Manifest:
        """Run the stage, which must succeed now."""
        code, said = self.start()
        assert code == 0, said
        return Manifest.from_bytes(self.output.read_bytes())

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)


@pytest.fixture
def environment(services: Any) -> dict[str, str]:
    named = os.environ | services.environment()
    return {name: value for name, value in named.items() if not name.startswith(("MLFLOW", "REASRM"))}


@pytest.fixture
def pairs(s3: Any, tmp_path: Path) -> Path:
    """The manifest of an artifact of pairs, committed here."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = (
        PreferencePair.model_validate(
            {
                "id": f"p{n}",
                "prompt": f"What is {n} plus 1?",
                "response_a": f"{n + 1}",
                "response_b": f"{n}",
                "label": "A",
            }
        )
        for n in range(NUM_PAIRS)
    )
    write_jsonl(folder / "distil.jsonl", rows)
    manifest = Manifest(
        kind="pairs", stage="prepare", uri=f"{s3.prefix}/pairs", run_key="0" * 64, code_version="0", config={},
        files=describe(folder),
    )  # fmt: skip
    s3.storage.commit(manifest, folder)
    (tmp_path / "pairs.manifest.json").write_bytes(manifest.to_bytes())
    return tmp_path / "pairs.manifest.json"


@pytest.fixture
def make_stage(environment: dict[str, str], pairs: Path, s3: Any, tmp_path: Path, teacher_server: Any) -> Any:
    def make(name: str, **settings: Any) -> Stage:
        root = f"{s3.prefix}/{name}"
        return Stage(pairs, tmp_path / name, root, environment, teacher_server.url, settings=settings)

    return make


def respond(server: Any, call: Any) -> Any:
    """Answer as a function of the prompt; one row is always refused."""
    if f"What is {REFUSED} plus 1" in call.prompt:
        return server.answer(status=400, body=b"no")
    return server.good(call, delay_seconds=0.03)


def rows_called(calls: list[Any]) -> Counter[str]:
    """How often each pair was asked about, by the number in its prompt."""
    return Counter("p" + re.findall(r"What is (\d+) plus 1", call.prompt)[0] for call in calls)


def keys(lines: bytes) -> set[str]:
    """The keys of the traces among rows of the ledger."""
    return {row["key"] for row in map(json.loads, lines.splitlines()) if "key" in row}


def row_of(key: str) -> str:
    return key.rpartition(":")[0]


def same_but_for_the_address(one: Manifest, one_root: str, two: Manifest, two_root: str) -> bool:
    return one.to_bytes().replace(one_root.encode(), two_root.encode()) == two.to_bytes()


def test_three_kills_leave_the_bytes_of_an_undisturbed_run_and_repeat_no_kept_answer(
    make_stage: Any, teacher_server: Any
) -> None:
    teacher_server.script = lambda call: respond(teacher_server, call)
    calm = make_stage("calm")
    undisturbed = calm.finish()
    assert undisturbed.statistics["traces"] == NUM_PAIRS - 1
    assert undisturbed.statistics["failures"] == {"refused": 1}
    assert max(rows_called(teacher_server.calls).values()) == 1
    num_before = len(teacher_server.calls)
    assert num_before == NUM_PAIRS

    rough = make_stage("rough")
    rng = random.Random(5)
    kills = sorted(rng.sample(range(4, NUM_PAIRS - 2), 3))
    pending = [num_before + number for number in kills]

    def script(call: Any) -> Any:
        if pending and call.number >= pending[0]:
            pending.pop(0)
            rough.kill()
        return respond(teacher_server, call)

    teacher_server.script = script
    kept: set[str] = set()
    for _ in kills:
        code, said = rough.start()
        assert code == -signal.SIGKILL, said
        now = rough.journalled()
        assert kept <= now
        kept, num_calls = now, len(teacher_server.calls)
        with rough.journal.open("ab") as file:
            file.write(b'{"key": "torn')
    manifest = rough.finish()

    assert not set(rows_called(teacher_server.calls[num_calls:])) & {row_of(key) for key in kept}
    assert same_but_for_the_address(manifest, rough.root, undisturbed, calm.root)
    num_rough = len(teacher_server.calls) - num_before
    refused_again = rows_called(teacher_server.calls[num_before:])[f"p{REFUSED}"] - 1
    assert num_rough <= NUM_PAIRS + refused_again + CONCURRENCY * len(kills)


def test_a_lost_machine_costs_only_what_was_in_no_finished_shard(make_stage: Any, teacher_server: Any, s3: Any) -> None:
    stage = make_stage("lost")

    def script(call: Any) -> Any:
        if call.number == 26:
            stage.kill()
        return respond(teacher_server, call)

    teacher_server.script = script
    code, said = stage.start()
    assert code == -signal.SIGKILL, said
    shards = [info.uri for info in s3.storage.list(f"{stage.root}/") if "/partial/shard-" in info.uri]
    safe = {row_of(key) for uri in shards for key in keys(s3.storage.read_bytes(uri) or b"")}
    assert len(safe) >= 2 * SHARD
    shutil.rmtree(stage.directory / "work")
    num_calls = len(teacher_server.calls)
    teacher_server.script = lambda call: respond(teacher_server, call)
    assert stage.finish().statistics["traces"] == NUM_PAIRS - 1
    assert set(rows_called(teacher_server.calls[num_calls:])) == {f"p{n}" for n in distil(stage, s3)} - safe


def distil(stage: Stage, s3: Any) -> list[int]:
    manifest = Manifest.from_bytes(stage.pairs.read_bytes())
    data = s3.storage.read_bytes(f"{manifest.uri}/distil.jsonl") or b""
    return [int(json.loads(line)["id"][1:]) for line in data.splitlines()]


def test_an_outage_ends_as_transient_and_the_rerun_asks_only_for_what_is_missing(
    make_stage: Any, teacher_server: Any
) -> None:
    stage = make_stage("outage")
    teacher_server.script = lambda call: (
        respond(teacher_server, call) if call.number <= 15 else teacher_server.answer(status=503)
    )
    code, said = stage.start()
    assert code == 75, said
    assert "failed 3 rows in a row" in said
    kept = {row_of(key) for key in stage.journalled()}
    assert len(kept) >= 14
    num_calls = len(teacher_server.calls)
    shutil.rmtree(stage.directory / "work")  # on the way out everything was committed
    teacher_server.script = lambda call: respond(teacher_server, call)
    manifest = stage.finish()
    assert manifest.statistics["traces"] == NUM_PAIRS - 1
    again = rows_called(teacher_server.calls[num_calls:])
    assert not set(again) & kept
    assert max(again.values()) == 1


def test_sigterm_commits_what_there_is_and_ends_as_transient(make_stage: Any, teacher_server: Any, s3: Any) -> None:
    stage = make_stage("preempted")

    def script(call: Any) -> Any:
        if call.number == 14:
            stage.process.terminate()
        return respond(teacher_server, call)

    teacher_server.script = script
    code, said = stage.start()
    assert code == 75, said
    kept = stage.journalled()
    shards = [info.uri for info in s3.storage.list(f"{stage.root}/") if "/partial/shard-" in info.uri]
    committed = b"".join(s3.storage.read_bytes(uri) or b"" for uri in shards)
    assert keys(committed) == kept
    assert stage.finish().statistics["traces"] == NUM_PAIRS - 1


def test_a_commit_that_fails_lets_the_calls_under_way_end_and_keeps_what_they_bring(
    make_stage: Any, teacher_server: Any
) -> None:
    stage = make_stage("full")

    def script(call: Any) -> Any:
        if call.number == 6:
            shards = stage.journal.parent / "shards"
            shards.rename(shards.with_name("elsewhere"))
            shards.write_bytes(b"in the way")
        return teacher_server.good(call, delay_seconds=0.1 + 0.05 * (call.number % 4))

    teacher_server.script = script
    code, said = stage.start()
    assert code == 1, said
    assert len(teacher_server.calls) < NUM_PAIRS
    asked = rows_called(teacher_server.calls)
    assert {row_of(key) for key in stage.journalled()} == set(asked)
    (stage.journal.parent / "shards").unlink()
    assert stage.finish().statistics["traces"] == NUM_PAIRS
    assert set(rows_called(teacher_server.calls).values()) == {1}


def test_a_finished_stage_is_reused_without_a_call(make_stage: Any, teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.script = lambda call: respond(teacher_server, call)
    stage = make_stage("twice")
    first = stage.finish()
    num_calls = len(teacher_server.calls)
    shutil.rmtree(stage.directory)
    assert stage.finish() == first
    assert len(teacher_server.calls) == num_calls


def test_a_spent_budget_stops_the_stage_and_a_larger_one_goes_on(make_stage: Any, teacher_server: Any) -> None:
    teacher_server.script = lambda call: respond(teacher_server, call)
    stage = make_stage("budget", max_total_tokens=1600, max_tokens=16)  # answers of 18 tokens, 1,229 set aside
    code, said = stage.start()
    assert code == 2, said
    assert "the budget (max_total_tokens=1600) is spent" in said
    num_calls, kept = len(teacher_server.calls), stage.journalled()
    assert 10 <= len(kept) < NUM_PAIRS - 1
    assert stage.start()[0] == 2
    assert len(teacher_server.calls) == num_calls
    stage.settings["max_total_tokens"] = 100_000
    assert stage.finish().statistics["traces"] == NUM_PAIRS - 1
    assert not set(rows_called(teacher_server.calls[num_calls:])) & {row_of(key) for key in kept}


def test_a_part_that_the_pairs_do_not_have_is_said(make_stage: Any, teacher_server: Any) -> None:
    code, said = make_stage("rl", part="rl").start()
    assert code == 2, said
    assert "has no rl.jsonl, which part=rl judges" in said
    assert not teacher_server.calls


def test_too_many_refused_rows_stop_the_stage_early(make_stage: Any, teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=400, body=b"prompt too long")
    code, said = make_stage("refused").start()
    assert code == 2, said
    assert "max_failed_fraction=0.1" in said
    assert "prompt too long" in said
    assert len(teacher_server.calls) < NUM_PAIRS / 2


def test_traces_stand_in_the_order_of_the_pairs_and_prompts_hold_no_label(
    make_stage: Any, teacher_server: Any, s3: Any, tmp_path: Path
) -> None:
    teacher_server.script = lambda call: teacher_server.good(
        call, delay_seconds=random.Random(call.number).random() / 20
    )
    stage = make_stage("order")
    manifest = stage.finish()
    folder = s3.storage.fetch(manifest, tmp_path / "fetched")
    traces = read_models(folder / "traces.jsonl", Trace)
    assert [trace.pair_id for trace in traces] == [f"p{n}" for n in distil(stage, s3)]
    for call in teacher_server.calls:
        assert "label" not in call.prompt
        assert set(call.body) == {"model", "messages", "max_tokens"}
