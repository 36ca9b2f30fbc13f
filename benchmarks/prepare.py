"""Time the prepare stage on a synthetic mix of the paper's size (arXiv 2505.02387: 72,983 pairs, about 8 KB each).

    python -m benchmarks.prepare --dir /tmp/prepare-bench                       # 10,000, 73,000 and 300,000 rows
    python -m benchmarks.prepare --dir /tmp/prepare-bench --rows 73000 --profile

The texts are seeded: 60,000 words with Zipf frequencies, a fifth of the rows with several turns, 2 % exact and 2 %
near copies, some prompts asked twice, three benchmarks of which 30 questions are in the data. Prints for each size the
seconds, the rows a second, the microseconds a row and the peak of the resident memory of all processes together
(pages that two of them share count twice). The CPU seconds hold the start of Python, and depend less on what else the
machine does.
"""

import argparse
import cProfile
import json
import logging
import os
import pstats
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

SIZES = (10_000, 73_000, 300_000)
NUM_WORDS = 60_000
NUM_QUESTIONS = 3_000
NUM_PLANTED = 10  # of each benchmark
BENCHMARKS = ("one", "two", "three")
SAMPLE_SECONDS = 0.1


class Text:
    """Draws texts of words, some with capitals, marks and letters beyond ASCII."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - reproducible data
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = [1 / (place + 1) ** 0.5 for place in range(len(letters))]
        drawn = self.random.choices(letters, weights, k=NUM_WORDS * 8)
        self.words = ["".join(drawn[8 * n : 8 * n + self.random.randint(2, 8)]) for n in range(NUM_WORDS)]
        self.words[500::1000] = [f"{word}é" for word in self.words[500::1000]]
        self.weights = list(accumulate(1 / (place + 2) for place in range(NUM_WORDS)))
        self.ends = [" "] * 12 + [", ", ". ", ".\n\n", ": ", " **", "\n- ", "’s ", "\n```\n"]

    def draw(self, mean: int) -> str:
        """Return a text of about `mean` words, its length spread as those of answers are."""
        count = max(3, int(self.random.lognormvariate(0, 0.6) * mean))
        words = self.random.choices(self.words, cum_weights=self.weights, k=count)
        ends = self.random.choices(self.ends, k=count)
        return "".join(word + end for word, end in zip(words, ends, strict=True)).capitalize().strip()


def questions(name: str) -> list[str]:
    """Return the questions of a benchmark."""
    text = Text(BENCHMARKS.index(name) + 1000)
    return [text.draw(60) for _ in range(NUM_QUESTIONS)]


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a mix of `count`."""
    text = Text(0)
    draw = text.random.random
    planted = [question for name in BENCHMARKS for question in questions(name)[:NUM_PLANTED]]
    recent: list[dict[str, Any]] = []
    for number in range(count):
        kind = draw()
        if recent and kind < 0.04:
            row = dict(text.random.choice(recent), id=f"p{number}")
            if kind < 0.02:
                row["response_a"] += " indeed"
        else:
            prompt: Any = text.random.choice(recent)["prompt"] if recent and kind < 0.14 else text.draw(120)
            if kind > 0.8:
                roles = ("user", "assistant") * 2
                prompt = [{"role": role, "content": text.draw(100)} for role in roles] + [
                    {"role": "user", "content": text.draw(30)}
                ]
            row = {"id": f"p{number}", "prompt": prompt, "response_a": text.draw(400), "response_b": text.draw(400)}
            row |= {"label": "AB"[draw() < 0.5], "source": f"source {number % 7}", "category": f"kind {number % 5}"}
            row |= {"meta": {"votes": text.random.choices([1, 2], k=3)}, "difficulty": round(draw(), 3)}
            recent = [*recent[-999:], row]
        if planted and number % 97 == 50:
            row = row | {"id": f"p{number}", "prompt": f"{text.draw(10)} {planted.pop()} {text.draw(10)}"}
        yield row


def write(path: Path, items: Iterator[dict[str, Any]]) -> None:
    """Write rows as JSON lines, once."""
    if not path.exists():
        temporary = path.with_suffix(".part")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        temporary.replace(path)


def prepare(directory: Path, count: int, processes: int | None) -> dict[str, Any]:
    """Do the stage's work on `count` rows and return its statistics with the seconds it took."""
    from components.adapters.progress import Progress
    from components.adapters.stage import Output
    from components.prepare.config import Config
    from components.prepare.run import run

    work = directory / f"work-{count}"
    shutil.rmtree(work, ignore_errors=True)
    for name in ("output", "work"):
        (work / name).mkdir(parents=True)
    nowhere: Any = SimpleNamespace()  # local files need neither S3 nor MLflow
    output = Output("s3://none/none", work / "output", work / "work", nowhere, nowhere, Progress("prepare"), "key")
    benchmarks = [{"name": name, "uri": str(directory / f"{name}.jsonl"), "format": "pairs"} for name in BENCHMARKS]
    config = Config.model_validate(
        {"sources": [str(directory / f"{count}.jsonl")], "benchmarks": benchmarks, "processes": processes}
    )
    start = time.perf_counter()
    statistics = run(config, {}, output)  # type: ignore[arg-type]
    return statistics | {"seconds": time.perf_counter() - start}


def watch(process: psutil.Process, peak: list[int], stop: threading.Event) -> None:
    """Keep the largest sum of the resident memory of a process and all below it."""
    while not stop.wait(SAMPLE_SECONDS):
        total = 0
        for one in [process, *_children(process)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], total)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def measure(directory: Path, count: int, processes: int | None) -> None:
    """Run the stage in a process of its own and print what it took."""
    source = directory / f"{count}.jsonl"
    write(source, rows(count))
    command = [sys.executable, __file__, "--dir", str(directory), "--rows", str(count), "--inside"]
    command += ["--processes", str(processes)] if processes else []
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    root = str(Path(__file__).parents[1])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}) as child:
        peak, stop = [0], threading.Event()
        watcher = threading.Thread(target=watch, args=(psutil.Process(child.pid), peak, stop))
        watcher.start()
        out, _ = child.communicate()
        stop.set()
        watcher.join()
    if child.returncode:
        raise SystemExit(child.returncode)
    after, found = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(out)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = found["seconds"]
    print(
        f"{count:7,} rows, {source.stat().st_size / 2**20:6.0f} MiB: {seconds:6.1f} s, {count / seconds:6.0f} rows/s, "
        f"{1e6 * seconds / count:5.0f} us a row, CPU {busy:.0f} s, peak {peak[0] / 2**30:.2f} GiB; "
        f"load before {load:.1f}\n"
        f"        pairs {found['pairs']}, dropped {found['dropped']}, clusters {found['clusters']}, "
        f"probe {found['probe']}",
        flush=True,
    )


def main() -> None:
    """Make the data where it is missing, and time each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder for the data, 2.5 GB for 300,000 rows")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--profile", action="store_true", help="in one process, with the functions that take longest")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    directory: Path = arguments.dir
    if arguments.inside:
        print(json.dumps(prepare(directory, arguments.rows[0], arguments.processes)))
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name in BENCHMARKS:
        write(directory / f"{name}.jsonl", ({"prompt": one, "id": str(n)} for n, one in enumerate(questions(name))))
    for count in arguments.rows:
        if arguments.profile:
            logging.basicConfig(level=logging.INFO)
            write(directory / f"{count}.jsonl", rows(count))
            with cProfile.Profile() as profile:
                prepare(directory, count, processes=1)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(50)
        else:
            measure(directory, count, arguments.processes)


if __name__ == "__main__":
    main()
