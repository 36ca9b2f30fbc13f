"""Latency and throughput of `reasrm serve`: what HTTP and the queue add to the engine, and what batching callers gives.

    python -m benchmarks.serving --model .reasrm/models/SmolLM2-135M-Instruct --max-tokens 32 --requests 24

In one process and by turns: the engine alone with the prompts of all requests in one call, then the service with 1, 4
and 16 callers at once (--callers), each with one /compare under way. Ratios within a round count; seconds are this
machine's. Only one program should run on the machine; where others do, CPU seconds (of engine, service and callers
together) still compare, wall seconds hardly.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.judging import made_pairs
from components.adapters.engines import Engine
from components.adapters.judging.asking import Asking, ask, prompts_of
from components.adapters.judging.client import JudgeClient
from components.adapters.judging.opening import EngineSettings, Opener
from components.core.schema import PreferencePair
from pipeline.serving.server import listen, serve
from pipeline.serving.service import Service
from pipeline.serving.settings import ServiceSettings


class Kept(Opener):
    """Opens an engine that is there already, and does not let the service close it."""

    engine: Engine

    def __call__(self) -> Engine:
        """Return the engine."""
        return self.engine


class _Open:
    """The engine, kept open from one service to the next."""

    def __init__(self, engine: Engine) -> None:
        self.streams, self.generate = engine.streams, engine.generate

    def close(self) -> None:
        """Stay open."""


@contextmanager
def served(opener: Kept, asking: Asking) -> Iterator[JudgeClient]:
    """Serve on a free port within the block."""
    settings = ServiceSettings(port=0, max_judgments=100_000)
    sock, stop = listen(settings), threading.Event()
    thread = threading.Thread(target=serve, args=(Service(opener, asking, "judge", settings), sock, stop))
    thread.start()
    try:
        yield JudgeClient(f"http://127.0.0.1:{sock.getsockname()[1]}")
    finally:
        stop.set()
        thread.join()


def seconds_alone(engine: Engine, pairs: list[PreferencePair], asking: Asking) -> tuple[float, float]:
    """Return the wall and CPU seconds that the engine takes for all prompts in one call."""
    began, cpu = time.perf_counter(), time.process_time()
    ask(engine, [prompt for pair in pairs for prompt in prompts_of(pair, asking)], lambda place, said: None)
    return time.perf_counter() - began, time.process_time() - cpu


def latencies(client: JudgeClient, pairs: list[PreferencePair], callers: int) -> tuple[float, float, list[float]]:
    """Return the wall and CPU seconds for all requests, and the wall seconds of each."""

    def one(pair: PreferencePair) -> float:
        began = time.perf_counter()
        client.compare(pair.prompt[-1].content, pair.response_a, pair.response_b)
        return time.perf_counter() - began

    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(callers) as pool:
        each = list(pool.map(one, pairs))
    return time.perf_counter() - began, time.process_time() - cpu, sorted(each)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    arguments = parser.parse_args()
    pairs = made_pairs(arguments.requests)
    asking = Asking(max_tokens=arguments.max_tokens, loop_tokens=0)
    settings = EngineSettings(kind=arguments.engine, batch_size=arguments.batch_size)
    opener = Kept(settings, arguments.model)
    engine = Opener(settings, arguments.model)()
    object.__setattr__(opener, "engine", _Open(engine))
    seconds_alone(engine, pairs[:2], asking)  # warm up
    for number in range(arguments.repeats):
        alone, cpu_alone = seconds_alone(engine, pairs, asking)
        rate = 2 * len(pairs) / alone
        print(
            f"round {number + 1}: engine alone {alone:.2f} s ({cpu_alone:.2f} CPU s), {rate:.2f} judgments/s",
            flush=True,
        )
        for callers in arguments.callers:
            with served(opener, asking) as client:
                client.compare("q", "one", "two")
                took, cpu, each = latencies(client, pairs, callers)
            row = {
                "callers": callers,
                "judgments_per_second": round(2 * len(pairs) / took, 2),
                "of_engine_alone": round(alone / took, 3),
                "cpu_seconds_per_judgment": round(cpu / (2 * len(pairs)), 3),
                "cpu_of_engine_alone": round(cpu / cpu_alone, 3),
                "p50_seconds": round(statistics.median(each), 3),
                "p95_seconds": round(each[int(0.95 * (len(each) - 1))], 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
