"""How close the teacher's client comes to what an endpoint can give, and what it takes of memory and CPU.

    python -m benchmarks.teacher_client --rows 20000 --concurrency 256 --delay 1.0

A server in a process of its own answers each chat completion after a fixed delay, so that `concurrency / delay` calls a
second are possible. Prints the calls a second that were achieved and their share of it, the client's resident memory on
the way, and its CPU seconds. `--profile FILE` writes a cProfile of the client.
"""

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from components.adapters.teachers.base import Outcome, Reply, Request
from components.adapters.teachers.endpoint import Endpoint
from components.core.schema import Message
from components.core.teachers import CallLimits, EndpointTeacher

TEXT_BYTES = 3000
WORDS = "a judge reads both answers, writes down what it looks for, and says which of the two it holds for better. "


class _Answering(asyncio.Protocol):
    """Just enough HTTP/1.1 to be no bottleneck: reads a request, answers it after the delay, keeps the connection."""

    def __init__(self, delay: float, answer: bytes) -> None:
        self.delay, self.answer = delay, answer
        self.data = bytearray()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer once head and body are there."""
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.data[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self.data) >= end + 4 + length:
            self.data.clear()
            asyncio.get_running_loop().call_later(self.delay, self._send)

    def _send(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.answer)


def serve(port: Connection, delay: float) -> None:
    """Answer calls until the process is ended; sends the port first."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text(0)}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 700, "completion_tokens": 700, "total_tokens": 1400}
    body = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    async def run() -> None:
        loop = asyncio.get_running_loop()
        answer = head.encode() + body
        server = await loop.create_server(lambda: _Answering(delay, answer), "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def text(number: int) -> str:
    """Return about 3 KB that no other row has."""
    return (f"row {number}: " + WORDS * (TEXT_BYTES // len(WORDS) + 1))[:TEXT_BYTES]


def requests(count: int) -> Iterator[Request]:
    """Yield the rows one by one, as the stage does."""
    for number in range(count):
        yield Request(f"row {number}", (Message(role="user", content=text(number)),), max_tokens=1024)


def resident_mib() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class _Tally:
    """Counts outcomes and drops them; looks at the memory at some of them."""

    def __init__(self, rows: int) -> None:
        self.marks = {1, min(1000, rows), rows // 2, rows}
        self.num_replies = self.num_failed = 0
        self.memory: dict[int, float] = {}

    def __call__(self, outcome: Outcome) -> None:
        self.num_replies += isinstance(outcome, Reply)
        self.num_failed += not isinstance(outcome, Reply)
        if (done := self.num_replies + self.num_failed) in self.marks:
            self.memory[done] = resident_mib()


def main() -> None:
    """Run the server and the client, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--delay", type=float, default=1.0, help="seconds that the server takes for an answer")
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, arguments.delay), daemon=True)
    server.start()
    try:
        settings = EndpointTeacher(base_url=f"http://127.0.0.1:{here.recv()}/v1", model="judge")
        endpoint = Endpoint(settings, CallLimits(concurrency=arguments.concurrency))
        tally, profile = _Tally(arguments.rows), cProfile.Profile()
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        with profile if arguments.profile else nullcontext():
            asyncio.run(endpoint.ask(requests(arguments.rows), tally))
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    finally:
        server.terminate()
        server.join()
    if arguments.profile:
        profile.dump_stats(arguments.profile)
    possible, achieved = arguments.concurrency / arguments.delay, tally.num_replies / seconds
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{tally.num_replies} replies, {tally.num_failed} failures in {seconds:.1f} s")
    print(f"{achieved:.1f} calls/s of {possible:.1f} possible: {achieved / possible:.1%}")
    print(f"client CPU {cpu:.1f} s, {cpu / arguments.rows * 1000:.2f} ms a call, {cpu / seconds:.0%} of a core")
    print("resident MiB after n outcomes: " + ", ".join(f"{n}: {m:.1f}" for n, m in sorted(tally.memory.items())))
    print(f"machine: {os.cpu_count()} cores, load average of the last minute {os.getloadavg()[0]:.1f}")
    print(f"peak {max(after.ru_maxrss / 2**10, *tally.memory.values()):.1f} MiB")


if __name__ == "__main__":
    main()
