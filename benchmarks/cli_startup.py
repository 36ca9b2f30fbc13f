"""How long `reasrm --help` takes, and which modules it loads: python -m benchmarks.cli_startup"""

import statistics
import subprocess
import sys
import time

REPEATS = 10
COMMAND = [sys.executable, "-m", "pipeline.cli", "--help"]


def measure() -> list[float]:
    """Return the seconds of each repetition."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(COMMAND, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds


def slowest_imports(count: int = 8) -> list[str]:
    """Return the lines of -X importtime with the largest cumulative times."""
    done = subprocess.run([COMMAND[0], "-X", "importtime", *COMMAND[1:]], check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.count("|") == 2 and "imported" not in line]
    return sorted(lines, key=lambda line: -int(line.split("|")[1]))[:count]


if __name__ == "__main__":
    seconds = measure()
    print(f"reasrm --help: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s of {REPEATS}")
    print("\n".join(slowest_imports()))
