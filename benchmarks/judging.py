"""What judging costs over generating: one queue, the verdict store and its shards, beside the engine's own call.

    python -m benchmarks.judging --model .reasrm/models/SmolLM2-135M-Instruct --repeats 3

The same prompts go through the same engine in the same process, by turns: in one `generate` call with nothing kept, and
by `judge_pairs` with an empty store on an embedded S3 server; then once more with everything in the store. Only one
program should run on the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from components.adapters.engines import Engine, Sampling, open_engine
from components.adapters.progress import Progress
from components.adapters.stage import Output
from components.adapters.storage import Storage
from components.benchmark.config import Config
from components.benchmark.judge import WrittenJudge
from components.benchmark.judging import judge_pairs
from components.core import prompts
from components.core.schema import PreferencePair
from pipeline.services import BUCKET, Services


class Kept:
    """The engine, kept open from one judge to the next: loading the model is not what is measured."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.streams, self.generate = engine, engine.streams, engine.generate

    def close(self) -> None:
        """Stay open."""


def made_pairs(count: int) -> list[PreferencePair]:
    """Return pairs whose prompts differ in length by a factor of about two."""
    rows = []
    for number in range(count):
        words = [f"word{number * 31 % 97} and {place}" for place in range(5 + number * 7 % 60)]
        pair = {
            "id": f"p{number}",
            "prompt": f"Tell me about number {number}.",
            "response_a": f"Number {number}: {', '.join(words)}.",
            "response_b": f"I know nothing about {number}, sorry.",
            "label": "A",
            "category": "made",
        }
        rows.append(PreferencePair.model_validate(pair))
    return rows


def seconds_of(work: Any) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds (of all threads) that a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(arguments: argparse.Namespace, storage: Storage, directory: Path) -> None:
    """Take turns and print the medians."""
    pairs = made_pairs(arguments.pairs)
    config = Config(
        base_model="m", max_tokens=arguments.max_tokens, batch_size=arguments.batch_size, loop_tokens=0,
        shard_size=arguments.shard_size, precision="fp32",
    )  # fmt: skip
    engine = open_engine("transformers", arguments.model, precision="fp32", batch_size=config.batch_size)
    asked = [prompts.render(pair.shown(swapped), "rubric").messages for pair in pairs for swapped in (False, True)]
    untracked: Any = None

    def judge(history: str, chosen: list[PreferencePair] = pairs) -> None:
        uri = f"s3://{BUCKET}/judging/{history}/benchmark/run"
        output = Output(uri, directory, directory, storage, untracked, Progress("benchmark"), "run")
        judge_pairs("m", WrittenJudge(lambda: Kept(engine), "rubric", config), "key", {"made": chosen}, config, output)

    engine.generate(asked[:2], Sampling(8))  # warm up
    judge("warm-up", pairs[:2])  # the server makes room for its first objects
    alone, judged, found = [], [], []
    for turn in range(arguments.repeats):
        alone.append(seconds_of(lambda: engine.generate(asked, Sampling(config.max_tokens))))
        judged.append(seconds_of(lambda turn=turn: judge(f"turn-{turn}")))
        found.append(seconds_of(lambda turn=turn: judge(f"turn-{turn}")))
        wall, cpu = ([f"{one[kind]:.2f}" for one in (alone[-1], judged[-1])] for kind in (0, 1))
        print(f"turn {turn}: wall {' and '.join(wall)} s, CPU {' and '.join(cpu)} s", flush=True)
    engine.close()
    for name, kind in (("wall", 0), ("CPU", 1)):
        base, ours, stored = (statistics.median(one[kind] for one in taken) for taken in (alone, judged, found))
        least = min(one[kind] for one in judged) / min(one[kind] for one in alone) - 1
        print(
            f"{name:4} {len(asked)} judgments: generate {base:6.2f} s, judge_pairs {ours:6.2f} s "
            f"({ours / base - 1:+.1%}; best of each {least:+.1%}), all in the store {stored:5.3f} s"
        )


def main() -> None:
    """Start an S3 server and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder) / "services", mlflow=False) as services:
        os.environ.update(services.environment())
        measure(arguments, Storage.from_env(), Path(folder))


if __name__ == "__main__":
    main()
