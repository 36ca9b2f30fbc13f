"""Time the scores of a benchmark of RMB's size: 17,131 pairs and 3,786 lists with 8,714 worse answers, 3,100 prompts.

    python -m benchmarks.aggregate
    python -m benchmarks.aggregate --prompts 1000000    # hardly two items on one prompt: the most there is to draw

The outcomes are seeded: prompts differ in how hard they are, and two judges err on the same ones. Each step runs in a
process of its own with one thread, and prints the seconds without and the peak of its resident memory with the start of
Python. The table on disk is read as `python -m components.benchmark aggregate` reads it.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NUM_PAIRS, NUM_LISTS, NUM_LOSERS, NUM_PROMPTS = 17_131, 3_786, 8_714, 3_100
GOALS = ("Helpfulness", "Harmlessness")
NUM_RESAMPLES = 2000
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def rows(judge: int, num_prompts: int) -> Iterator[dict[str, Any]]:
    """Yield a judge's outcomes; the items are the same for all judges."""
    items, draw = random.Random(0), random.Random(1 + judge)  # noqa: S311 - reproducible data
    ease = [items.betavariate(4, 1.5) for _ in range(num_prompts)]
    sizes = [2] * NUM_LISTS
    for _ in range(NUM_LOSERS - 2 * NUM_LISTS):
        sizes[items.randrange(NUM_LISTS)] += 1
    kinds = [("Pairwise_set", 1)] * NUM_PAIRS + [("BoN_set", size) for size in sizes]
    for number, (kind, size) in enumerate(kinds):
        prompt = items.randrange(num_prompts)
        yield {
            "id": f"{kind}:{number}",
            "category_path": f"{kind}/{GOALS[prompt % 2]}/Kind {prompt % 37}",
            "cluster": f"{prompt:016x}",
            "results": [float(draw.random() < ease[prompt] - 0.01 * judge) for _ in range(size)],
        }


def inside(step: str, directory: Path) -> dict[str, Any]:
    """Do one step and return its seconds and result."""
    from components.benchmark.aggregate import aggregate
    from components.benchmark.outcomes import read_outcomes
    from components.benchmark.paired import compare
    from components.core.suites import suite_named

    suite = suite_named("rmb")
    files = [directory / f"{judge}.jsonl" for judge in (0, 1)]
    settings: dict[str, Any] = {"confidence": 0.95, "num_resamples": NUM_RESAMPLES, "seed": 0}
    if step == "read":
        return timed(lambda: len(read_outcomes(files[0], suite)))
    judged = [read_outcomes(file, suite) for file in files[: 1 if step == "aggregate" else 2]]
    if step == "aggregate":
        return timed(lambda: aggregate(suite, judged[0], "official", **settings)["score"])
    return timed(lambda: compare(suite, judged[0], judged[1], "official", **settings))


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Run it once."""
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "found": found}


def main() -> None:
    """Write the outcomes of two judges and time each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(inside(arguments.step, arguments.dir)))
        return
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with tempfile.TemporaryDirectory() as folder:
        for judge in (0, 1):
            with (Path(folder) / f"{judge}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows(judge, arguments.prompts))
        for step in ("read", "aggregate", "compare"):
            command = [sys.executable, __file__, "--step", step, "--dir", folder]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            print(f"{step:9} {found['seconds']:6.2f} s, peak {found['peak'] / 2**20:4.0f} MiB: {found['found']}")


if __name__ == "__main__":
    main()
