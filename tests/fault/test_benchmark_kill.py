"""kill -9 while pairs are judged: what was committed is never asked again, and the result is that of a calm run.

The processes under test run this very file as a program.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.adapters.engines import Completion, OnBatch, OnCompletion, Sampling
from components.adapters.engines.transformers import TransformersEngine
from components.adapters.progress import Progress
from components.adapters.stage import Output
from components.adapters.storage import Storage
from components.benchmark import keys
from components.benchmark.config import Config
from components.benchmark.judge import WrittenJudge
from components.benchmark.judging import judge_pairs
from components.core.records import write_jsonl
from components.core.schema import PreferencePair

ROOT = Path(__file__).parents[2]
SHARD_SIZE, NUM_PAIRS, NUM_SAMPLES = 4, 10, 2
NUM_ANSWERS = 2 * NUM_PAIRS * NUM_SAMPLES
SECONDS = 400


class Recording(TransformersEngine):
    """The real engine; it adds a line to a file for each prompt that it generates, and takes its time."""

    log: Path
    pause_seconds: float
    salt: int

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        assert not isinstance(sampling, Sampling)
        how = [Sampling(one.max_tokens, one.temperature, one.seed + self.salt) for one in sampling]

        def record(place: int, completion: Completion) -> None:
            time.sleep(self.pause_seconds)
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"{sampling[place].seed}\n")  # the seed names prompt and sample
            if on_completion is not None:
                on_completion(place, completion)

        return super().generate_ids(prompts, how, on_batch, record)


class Streaming(Recording):
    """The same, handed everything in one call."""

    streams = True


@dataclass(frozen=True)
class Work:
    """What one process does; `salt` bends its samples, as another order of computation would."""

    uri: str
    folder: str
    model: str
    streams: bool
    pause_seconds: float = 0.0
    salt: int = 0

    @property
    def log(self) -> Path:
        return Path(self.folder) / "log"

    @property
    def result(self) -> Path:
        return Path(self.folder) / "verdicts.jsonl"

    def do(self) -> None:
        kind = Streaming if self.streams else Recording
        kind.log, kind.pause_seconds, kind.salt = self.log, self.pause_seconds, self.salt
        config = Config(
            base_model="m", max_tokens=8, batch_size=2, shard_size=SHARD_SIZE, precision="fp32", votes=NUM_SAMPLES,
            temperature=1.0,
        )  # fmt: skip
        untracked: Any = None
        folder = Path(self.folder)
        output = Output(self.uri, folder, folder, Storage.from_env(), untracked, Progress("benchmark"), "run")
        judge = WrittenJudge(lambda: kind.load(Path(self.model), 2, "fp32"), "rubric", config)
        sets = {"one": pairs()[:6], "two": pairs()[3:]}
        judged = judge_pairs("base", judge, keys.local_key("tiny", config, "fp32"), sets, config, output)
        write_jsonl(self.result, [row for rows in judged.values() for row in rows])

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__)), json.dumps(self.__dict__)]
        # One thread each: on a busy machine the threads of several processes would wait for each other.
        ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (Path(self.folder) / "stderr").open("ab") as stderr:
            return subprocess.Popen(command, env={**os.environ, **environment, **ours}, stderr=stderr)

    def finish(self, process: "subprocess.Popen[bytes]") -> bytes:
        try:
            code = process.wait(timeout=SECONDS)
        finally:
            process.kill()
            process.wait(timeout=180)
        assert code == 0, (Path(self.folder) / "stderr").read_text(encoding="utf-8")[-3000:]
        return self.result.read_bytes()

    def generated(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").split() if self.log.exists() else []


def pairs() -> list[PreferencePair]:
    rng = random.Random(11)
    rows = []
    for number in range(NUM_PAIRS):
        left, right = (" ".join(str(rng.randrange(99)) for _ in range(rng.randrange(3, 30))) for _ in range(2))
        fields = {"id": f"p{number}", "prompt": f"which is {number}?", "response_a": left, "response_b": right}
        rows.append(PreferencePair.model_validate({**fields, "label": rng.choice("AB"), "category": "c"}))
    return rows


@pytest.fixture
def work(s3: Any, tmp_path: Path, tiny_model: Path) -> Callable[..., Work]:
    def make(history: str, process: str = "only", **fields: Any) -> Work:
        uri = f"{s3.prefix}/{history}/benchmark/run"
        return Work(uri, str(tmp_path / history / process), str(tiny_model), **fields)

    return make


def stored(s3: Any, one: Work) -> list[str]:
    """Names of the answers that are committed, one for each row of each shard."""
    listed = s3.storage.list(f"{one.uri.rpartition('/')[0]}/verdicts/")
    rows = [line for info in listed for line in s3.storage.read_bytes(info.uri).splitlines()]
    return [json.loads(row)["name"] for row in rows]


def kill_when(process: "subprocess.Popen[bytes]", reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert process.poll() is None, f"ended with {process.returncode} before the kill"
        assert time.monotonic() < deadline, "never reached the point of the kill"
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=180)


@pytest.mark.parametrize("streams", [False, True])
def test_killed_judging_asks_nothing_twice_that_was_committed_and_ends_with_the_same_bytes(
    work: Any, s3: Any, services: Any, streams: bool
) -> None:
    calm = work("calm", streams=streams)
    expected = calm.finish(calm.start(services.environment()))
    everything = calm.generated()
    assert len(everything) == len(set(everything)) == NUM_ANSWERS

    killed, rng = work("killed", streams=streams, pause_seconds=0.05), random.Random(5)
    num_lost = 0
    for count in sorted(rng.sample(range(1, NUM_ANSWERS // SHARD_SIZE - 1), 2)):
        num_kept, num_before = len(stored(s3, killed)), len(killed.generated())
        process = killed.start(services.environment())
        kill_when(process, lambda count=count: len(stored(s3, killed)) >= count * SHARD_SIZE)
        num_new = len(killed.generated()) - num_before
        kept = stored(s3, killed)
        assert len(kept) == len(set(kept)) < NUM_ANSWERS
        assert not killed.result.exists()
        num_lost += num_new - (len(kept) - num_kept)

    num_kept, num_before = len(stored(s3, killed)), len(killed.generated())
    assert killed.finish(killed.start(services.environment())) == expected
    assert len(killed.generated()) - num_before == NUM_ANSWERS - num_kept
    assert set(killed.generated()) == set(everything)
    assert len(killed.generated()) == NUM_ANSWERS + num_lost
    assert num_lost <= 2 * 2 * SHARD_SIZE  # two kills, each with a shard under way and one about to be written
    names = stored(s3, killed)
    assert len(names) == len(set(names)) == NUM_ANSWERS


@pytest.mark.parametrize("streams", [False, True])
def test_two_processes_at_the_same_work_end_with_equal_results(
    work: Any, s3: Any, services: Any, streams: bool
) -> None:
    # Salted, the two write different texts for the same question: whose counts must be the same for both.
    both = [work("shared", f"{salt}", streams=streams, pause_seconds=0.02, salt=salt) for salt in (0, 1)]
    processes = [one.start(services.environment()) for one in both]
    first, second = (one.finish(process) for one, process in zip(both, processes, strict=True))
    assert first == second
    assert all(one.generated() for one in both)
    rows = stored(s3, both[0])
    assert len(set(rows)) == NUM_ANSWERS


if __name__ == "__main__":
    Work(**json.loads(sys.argv[1])).do()
