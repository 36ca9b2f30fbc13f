"""Everything a provider of batches can do wrong, done by a real server; and processes killed at every point.

Run as a script, this file is the process that is killed: `python test_batch_faults.py <url> <folder> <rows>`.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.adapters.teachers import Failure, Outcome, OverBudget, Reply, Request, Usage
from components.adapters.teachers.batch import Batch, Progress
from components.adapters.teachers.batch_results import MAX_RESULT_BYTES, read_answers
from components.adapters.teachers.batch_rows import name_of
from components.core.errors import InvalidInput, Transient
from components.core.schema import Message, PreferencePair
from components.core.teachers import BatchTeacher

KEY = "sk-canary-0123456789abcdef"
RUN_KEY = "0123456789abcdef" * 4
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
PATHS = (
    ("POST", r"/v1/files", "upload"),
    ("POST", r"/v1/batches", "create"),
    ("GET", r"/v1/batches", "list"),
    ("GET", r"/v1/batches/([^/]+)", "read"),
    ("GET", r"/v1/files/([^/]+)/content", "download"),
)
KINDS = tuple(kind for _, _, kind in PATHS)


@dataclass(frozen=True)
class Answer:
    """What goes back instead of the right answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    cut: bool = False
    drip_seconds: float = 0.0


@dataclass(frozen=True)
class Call:
    """One call; `number` counts those of its kind, from 1."""

    kind: str
    number: int
    name: str
    headers: dict[str, str]


@dataclass
class Job:
    """A batch as the server keeps it; `states` are those still to come, one for each time it is read."""

    id: str
    number: int
    input_file: str
    metadata: dict[str, str]
    states: list[str]
    status: str = "validating"
    errors: list[dict[str, Any]] = field(default_factory=list)
    output_file: str | None = None
    error_file: str | None = None
    counts: tuple[int, int, int] = (0, 0, 0)


Line = dict[str, Any]


class BatchServer(ThreadingHTTPServer):
    """Speaks the Batch API. What it accepted is in `accepted`: how many batches hold a row.

    `before` may answer a call instead of the server, `after` may answer it although the server has done its work;
    `plan` gives a batch's states, and `run` its output and error lines when it ends.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.RLock()
        self.calls: list[Call] = []
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.accepted: Counter[str] = Counter()
        self.before: Callable[[Call], Answer | None] = lambda call: None
        self.after: Callable[[Call, bytes], Answer | None] = lambda call, body: None
        self.plan: Callable[[Job, list[Line]], list[str]] = lambda job, lines: [
            "in_progress",
            "finalizing",
            "completed",
        ]
        self.run: Callable[[Job, list[Line]], tuple[list[Line], list[Line]]] = lambda job, lines: (
            [self.good(line) for line in lines],
            [],
        )
        self.raw: Callable[[Job, bytes], bytes] = lambda job, output: output

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def count(self, kind: str) -> int:
        return sum(call.kind == kind for call in self.calls)

    def good(self, line: Line, text: str | None = None, status: int = 200, **body: Any) -> Line:
        text = f"re: {line['body']['messages'][-1]['content']}" if text is None else text
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = {"object": "chat.completion", "choices": [choice], "usage": USAGE} | body
        response = {"status_code": status, "request_id": "r", "body": body}
        return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}

    def bad(self, line: Line, status: int | None = None, code: str = "batch_expired") -> Line:
        error = {"code": code, "message": "it did not work"}
        response = None if status is None else {"status_code": status, "request_id": "r", "body": {"error": error}}
        return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None if status else error}

    def lines(self, job: Job) -> list[Line]:
        return [json.loads(line) for line in self.files[job.input_file].splitlines()]

    def show(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "input_file_id": job.input_file, "status": job.status, "metadata": job.metadata,
            "output_file_id": job.output_file, "error_file_id": job.error_file,
            "errors": {"object": "list", "data": job.errors} if job.errors else None,
            "request_counts": dict(zip(("total", "completed", "failed"), job.counts, strict=True)),
        }  # fmt: skip

    # What the calls do

    def upload(self, data: bytes) -> dict[str, Any]:
        name = f"file-in-{len(self.files)}"
        self.files[name] = data
        return {"id": name, "object": "file", "bytes": len(data), "purpose": "batch"}

    def create(self, question: dict[str, Any]) -> dict[str, Any]:
        assert question["endpoint"] == "/v1/chat/completions" and question["completion_window"] == "24h"
        number = len(self.jobs) + 1
        job = Job(f"batch_{number}", number, question["input_file_id"], question["metadata"], [])
        lines = self.lines(job)
        names = [line["custom_id"] for line in lines]
        assert lines and len(set(names)) == len(names) and max(map(len, names)) <= 64
        assert all((line["method"], line["url"]) == ("POST", "/v1/chat/completions") for line in lines)
        job.states = self.plan(job, lines)
        job.counts = (len(lines), 0, 0)
        self.jobs[job.id] = job
        if "failed" not in job.states:
            self.accepted.update(names)
        return self.show(job)

    def read(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        if job.states:
            job.status = job.states.pop(0)
            if job.status in {"completed", "expired", "cancelled"}:
                self._end(job)
        return self.show(job)

    def _end(self, job: Job) -> None:
        output, errors = self.run(job, self.lines(job))
        job.counts = (job.counts[0], len(output), len(errors))
        if output:
            job.output_file = f"file-out-{job.number}"
            self.files[job.output_file] = self.raw(job, b"".join(json.dumps(one).encode() + b"\n" for one in output))
        if errors:
            job.error_file = f"file-err-{job.number}"
            self.files[job.error_file] = b"".join(json.dumps(one).encode() + b"\n" for one in errors)

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        latest = list(reversed(self.jobs.values()))
        start = 1 + [job.id for job in latest].index(query["after"]) if "after" in query else 0
        end = start + int(query["limit"])
        data = [self.show(job) for job in latest[start:end]]
        return {"object": "list", "data": data, "has_more": end < len(latest)}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the plan."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: BatchServer

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        path, _, query = self.path.partition("?")
        kind, name = next(
            (kind, match.group(match.lastindex or 0))
            for method, pattern, kind in PATHS
            if method == self.command and (match := re.fullmatch(pattern, path))
        )
        with self.server.lock:
            call = Call(kind, self.server.count(kind) + 1, name, {k.lower(): v for k, v in self.headers.items()})
            self.server.calls.append(call)
        answer = self.server.before(call)
        if answer is None:
            with self.server.lock:
                body = self._work(kind, name, data, query)
            answer = self.server.after(call, body) or Answer(body=body)
        self._send(answer)

    def _work(self, kind: str, name: str, data: bytes, query: str) -> bytes:
        if kind == "upload":
            boundary = self.headers["content-type"].partition("boundary=")[2].strip('"').encode()
            parts = data.split(b"--" + boundary)
            assert any(b'name="purpose"' in part and part.endswith(b"batch\r\n") for part in parts)
            part = next(part for part in parts if b'filename="' in part)
            return json.dumps(self.server.upload(part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))).encode()
        if kind == "create":
            return json.dumps(self.server.create(json.loads(data))).encode()
        if kind == "read":
            return json.dumps(self.server.read(name)).encode()
        if kind == "list":
            return json.dumps(self.server.page(dict(pair.split("=") for pair in query.split("&")))).encode()
        return self.server.files[name]

    def _send(self, answer: Answer) -> None:
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        if answer.cut:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
            return
        if not answer.drip_seconds:
            self.wfile.write(answer.body)
            return
        for byte in answer.body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(answer.drip_seconds)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@contextlib.contextmanager
def serving() -> Iterator[BatchServer]:
    server = BatchServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serving() as running:
        yield running


@dataclass
class FolderNotes:
    """Notes in a folder; as in S3, the first writer of a name wins."""

    folder: Path
    run_key: str = RUN_KEY

    def read_partial(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def write_partial(self, name: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.{os.getpid()}.{threading.get_ident()}.tmp"
        temporary.write_bytes(data)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, self.folder / name)
        temporary.unlink()


@dataclass
class Purse:
    """A meter with `limit` units: an attempt sets `most` of them aside, and takes as many as it wrote tokens."""

    limit: float = float("inf")
    most: int = 100
    spent: int = 0
    admitted: dict[str, Request] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    settled: list[tuple[str, Usage | None]] = field(default_factory=list)

    async def admit(self, request: Request, *, wait: bool = True) -> None:
        assert not wait and request.key not in self.admitted
        if self.spent + self.most * (len(self.admitted) + 1) > self.limit:
            raise OverBudget(f"{request.key} does not fit")
        self.admitted[request.key] = request
        self.order.append(request.key)

    def settle(self, request: Request, usage: Usage | None) -> None:
        assert self.admitted.pop(request.key) == request
        self.settled.append((request.key, usage))
        self.spent += self.most if usage is None else usage.completion_tokens


def requests(count: int, **fields: Any) -> list[Request]:
    system = Message(role="system", content="judge")
    return [Request(f"row {n}", (system, Message(role="user", content=f"row {n}")), 64, **fields) for n in range(count)]


def teacher(server_url: str, calls: dict[str, Any] | None = None, **fields: Any) -> BatchTeacher:
    limits = {"attempts": 3, "max_wait_seconds": 0.02, "row_seconds": 20, "call_seconds": 10} | (calls or {})
    return BatchTeacher.model_validate(
        {"base_url": server_url, "model": "m", "poll_seconds": 0.01, "calls": limits} | fields
    )


@dataclass
class Round:
    """One round of questions and what came of it; `outcomes` also holds what came before an error."""

    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    purse: Purse = field(default_factory=Purse)
    progress: list[Progress] = field(default_factory=list)
    batch: Batch | None = None

    def keep(self, outcome: Outcome) -> None:
        assert outcome.key not in self.outcomes, f"{outcome.key} was reported twice"
        self.outcomes[outcome.key] = outcome

    def ask(self, rows: list[Request], settings: BatchTeacher, notes: Any = None, place: int = 0) -> "Round":
        notes = notes or FolderNotes(self.folder / "notes")
        self.batch = Batch(settings, notes, self.folder / "work", self.purse, place, self.progress.append)
        try:
            asyncio.run(self.batch.ask(iter(rows), self.keep))
        finally:
            assert self.purse.admitted == {}, "admitted, but never settled"
            assert list((self.folder / "work").iterdir()) == []
        assert set(self.outcomes) == {row.key for row in rows}
        return self

    @property
    def failures(self) -> dict[str, str]:
        return {key: one.kind for key, one in self.outcomes.items() if isinstance(one, Failure)}

    @property
    def stats(self) -> Any:
        assert self.batch is not None
        return self.batch.stats


@pytest.fixture
def round_(tmp_path: Path) -> Round:
    return Round(tmp_path)


def once(kind: str, answer: Answer, number: int = 1) -> Callable[[Call], Answer | None]:
    return lambda call: answer if (call.kind, call.number) == (kind, number) else None


def always(kind: str, answer: Answer) -> Callable[[Call], Answer | None]:
    return lambda call: answer if call.kind == kind else None


def error(code: str, message: str = "", line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


# What has to work


def test_all_rows_are_answered_once_over_several_files(server: BatchServer, round_: Round) -> None:
    settings = teacher(
        server.url, max_requests_per_file=3, extra_body={"top_p": 0.9}, token_field="max_completion_tokens"
    )
    round_.ask(requests(7), settings)
    assert round_.outcomes["row 3"] == Reply("row 3", "m", "re: row 3", "stop", 11, 7)
    assert round_.failures == {}
    assert [len(server.lines(job)) for job in server.jobs.values()] == [3, 3, 1]
    assert set(server.accepted.values()) == {1}
    line = server.lines(server.jobs["batch_1"])[0]
    assert line["body"] == {
        "model": "m", "max_completion_tokens": 64, "top_p": 0.9,
        "messages": [{"role": "system", "content": "judge"}, {"role": "user", "content": "row 0"}],
    }  # fmt: skip
    job = server.jobs["batch_1"]
    assert job.metadata == {
        "reasrm": RUN_KEY[:32], "place": "0", "generation": "0",
        "chunk": hashlib.sha256(server.files[job.input_file]).hexdigest(),
    }  # fmt: skip
    assert Counter(round_.purse.settled) == Counter((f"row {n}", Usage(11, 7)) for n in range(7))
    assert (round_.stats.batches, round_.stats.salvaged, round_.stats.retries) == (3, 0, 0)
    assert round_.stats.calls == len(server.calls)
    assert round_.progress[-1] == Progress(0, 0, 0, 0, 7)


def test_no_rows_are_no_calls(server: BatchServer, round_: Round) -> None:
    round_.ask([], teacher(server.url))
    assert server.calls == []


def test_a_meter_gets_back_the_very_request(server: BatchServer, round_: Round) -> None:
    pair = PreferencePair.model_validate(
        {
            "id": "p",
            "prompt": "2+2 \u2028 日本",
            "response_a": "4",
            "response_b": "5",
            "label": "A",
            "meta": {"x": [1.5]},
        }
    )
    rows = [Request("p:ab", pair.prompt, 64, 0.7, pair, 3)]
    round_.ask(rows, teacher(server.url))
    line = server.files["file-in-0"]
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["body"]["messages"][0]["content"] == "2+2 \u2028 日本"
    assert json.loads(line)["body"]["temperature"] == 0.7


def test_the_key_is_sent_with_every_call_and_masked_in_messages(
    server: BatchServer, round_: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = teacher(server.url, calls={"api_key_env": "TEACHER_API_KEY"})
    with pytest.raises(InvalidInput, match="TEACHER_API_KEY is not set"):
        round_.ask(requests(1), settings)
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    server.before = once("create", Answer(401, f"the key {KEY} is wrong".encode()))
    with pytest.raises(InvalidInput, match="HTTP 401") as caught:
        round_.ask(requests(1), settings)
    assert KEY not in str(caught.value)
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}


# States in which a batch ends


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_what_an_unfinished_batch_wrote_is_kept_and_only_the_rest_is_asked_again(
    server: BatchServer, round_: Round, status: str
) -> None:
    server.plan = lambda job, lines: ["in_progress", "cancelling", status if job.number == 1 else "completed"]
    server.run = lambda job, lines: (
        ([server.good(line) for line in lines], [])
        if job.number > 1
        else ([server.good(line) for line in lines[:4]], [server.bad(line) for line in lines[4:7]])
    )
    round_.ask(requests(10), teacher(server.url))
    assert round_.failures == {}
    assert round_.stats.salvaged == 4
    first, second = server.jobs.values()
    assert server.lines(second) and {line["custom_id"] for line in server.lines(second)} == {
        line["custom_id"] for line in server.lines(first)[4:]
    }
    assert second.metadata["generation"] == "1"
    assert round_.outcomes["row 0"].attempts == 1
    assert round_.outcomes["row 9"].attempts == 2
    assert round_.purse.settled.count(("row 9", Usage())) == 1
    assert round_.purse.spent == 10 * 7


def test_rows_whose_batches_always_expire_fail_after_as_many_generations(server: BatchServer, round_: Round) -> None:
    server.plan = lambda job, lines: ["expired"]
    server.run = lambda job, lines: ([], [server.bad(line) for line in lines])
    round_.ask(requests(2), teacher(server.url))
    assert round_.failures == {"row 0": "transport", "row 1": "transport"}
    assert len(server.jobs) == 3
    assert isinstance(failure := round_.outcomes["row 0"], Failure)
    assert "batch_expired" in failure.reason
    assert failure.attempts == 3
    assert round_.purse.spent == 0


def test_a_completed_batch_may_have_no_output_file_at_all(server: BatchServer, round_: Round) -> None:
    server.run = lambda job, lines: ([], [server.bad(line, status=400, code="content_policy") for line in lines])
    round_.ask(requests(3), teacher(server.url))
    assert set(round_.failures.values()) == {"refused"}
    assert len(server.jobs) == 1


def test_rows_in_neither_file_are_asked_again_and_counted_as_paid(server: BatchServer, round_: Round) -> None:
    server.run = lambda job, lines: ([server.good(line) for line in lines[: 2 if job.number == 1 else None]], [])
    round_.ask(requests(4), teacher(server.url))
    assert round_.failures == {}
    assert round_.purse.settled.count(("row 3", None)) == 1
    assert round_.purse.settled.count(("row 3", Usage(11, 7))) == 1


def test_a_full_queue_makes_files_smaller_and_waits_for_the_batches_under_way(
    server: BatchServer, round_: Round
) -> None:
    num_enqueued: list[int] = []

    def plan(job: Job, lines: list[Line]) -> list[str]:
        live = [other for other in server.jobs.values() if other.states and "failed" not in other.states]
        num_enqueued.append(sum(len(server.lines(other)) for other in live))
        if num_enqueued[-1] + len(lines) > 5:
            job.errors = [error("token_limit_exceeded", "Enqueued token limit reached for m in organization o.")]
            return ["failed"]
        return ["in_progress"] * 3 + ["completed"]

    server.plan = plan
    round_.ask(requests(16), teacher(server.url, max_requests_per_file=4))
    assert round_.failures == {}
    assert set(server.accepted.values()) == {1}
    sizes = [(job.status, len(server.lines(job))) for job in server.jobs.values()]
    assert sizes[0] == ("completed", 4)
    assert sizes[1] == ("failed", 4)
    assert max(size for status, size in sizes[4:]) <= 2
    assert sum(status == "failed" for status, _ in sizes) <= 4
    assert all(outcome.attempts == 1 for outcome in round_.outcomes.values())


def test_one_file_that_the_queue_never_takes_whole_is_halved(server: BatchServer, round_: Round) -> None:
    def plan(job: Job, lines: list[Line]) -> list[str]:
        if len(lines) > 3:
            job.errors = [error("token_limit_exceeded")]
            return ["validating", "failed"]
        return ["completed"]

    server.plan = plan
    round_.ask(requests(10), teacher(server.url))
    assert round_.failures == {}
    sizes = [len(server.lines(job)) for job in server.jobs.values()]
    assert sizes[:2] == [10, 5]
    assert max(sizes[2:]) <= 3


def test_a_queue_may_be_full_when_the_batch_is_created(server: BatchServer, round_: Round) -> None:
    body = json.dumps({"error": {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}}).encode()
    server.before = once("create", Answer(400, body))
    round_.ask(requests(4), teacher(server.url))
    assert round_.failures == {}
    assert [len(server.lines(job)) for job in server.jobs.values()] == [2, 2]


def test_a_queue_that_others_keep_full_ends_the_round_as_transient(server: BatchServer, round_: Round) -> None:
    def plan(job: Job, lines: list[Line]) -> list[str]:
        job.errors = [error("token_limit_exceeded", "Enqueued token limit reached")]
        return ["failed"]

    server.plan = plan
    with pytest.raises(Transient, match=r"takes no batch since 0\.3 seconds.*Enqueued token limit"):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.3}))
    assert round_.purse.spent == 0


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (error("invalid_json_line", "This line is not parseable", 2), r"line 2: invalid_json_line.*\(row row 1\)"),
        (error("mismatched_model", "All models must be m"), "mismatched_model: All models must be m"),
        (error("billing_hard_limit_reached", "Billing hard limit"), "Billing hard limit.*account"),
    ],
)
def test_a_file_or_an_account_that_is_refused_ends_the_round_at_once(
    server: BatchServer, round_: Round, problem: dict[str, Any], words: str
) -> None:
    def plan(job: Job, lines: list[Line]) -> list[str]:
        job.errors = [problem]
        return ["validating", "failed"]

    server.plan = plan
    with pytest.raises(InvalidInput, match=words):
        round_.ask(requests(3), teacher(server.url))
    assert len(server.jobs) == 1
    assert round_.purse.spent == 0


@pytest.mark.parametrize("num_failures", [1, 2])
def test_a_batch_that_fails_for_another_reason_gets_a_second_chance(
    server: BatchServer, round_: Round, num_failures: int
) -> None:
    def plan(job: Job, lines: list[Line]) -> list[str]:
        if job.number > num_failures:
            return ["completed"]
        job.errors = [error("server_error", "we lost it")] if job.number == 1 else []
        return ["failed"]

    server.plan = plan
    if num_failures == 1:
        assert round_.ask(requests(3), teacher(server.url)).failures == {}
    else:
        with pytest.raises(InvalidInput, match=r"no reason.*second time"):
            round_.ask(requests(3), teacher(server.url))
        assert len(server.jobs) == 2


def test_an_unknown_state_is_waited_for_and_logged_once(
    server: BatchServer, round_: Round, caplog: pytest.LogCaptureFixture
) -> None:
    server.plan = lambda job, lines: ["meditating"] * 4 + ["completed"]
    with caplog.at_level(logging.WARNING):
        round_.ask(requests(2), teacher(server.url))
    assert round_.failures == {}
    assert sum("meditating" in record.message for record in caplog.records) == 1


def test_an_unknown_state_that_stays_ends_the_round_as_transient(server: BatchServer, round_: Round) -> None:
    server.plan = lambda job, lines: ["meditating"]
    with pytest.raises(Transient, match="unknown status 'meditating'"):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.2}))
    assert round_.purse.settled == [("row 0", None), ("row 1", None)]


# What a row can come back as


@pytest.mark.parametrize("status", [429, 500, 503, 0, None])
def test_a_row_that_was_turned_away_goes_into_another_generation(
    server: BatchServer, round_: Round, status: int | None
) -> None:
    def run(job: Job, lines: list[Line]) -> tuple[list[Line], list[Line]]:
        bad = [line for line in lines if line["body"]["messages"][1]["content"] == "row 1" and job.number < 3]
        return [server.good(line) for line in lines if line not in bad], [
            {**server.bad(line), "response": None if status is None else {"status_code": status}} for line in bad
        ]

    server.run = run
    round_.ask(requests(3), teacher(server.url))
    assert round_.failures == {}
    assert [len(server.lines(job)) for job in server.jobs.values()] == [3, 1, 1]
    assert round_.outcomes["row 1"].attempts == 3
    assert round_.purse.spent == 3 * 7


@pytest.mark.parametrize(
    ("body", "kind", "num_batches", "usage"),
    [
        ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, "malformed", 2, Usage(11, 7)),
        ({"choices": []}, "malformed", 2, Usage(11, 7)),
        ({"choices": [], "usage": None}, "malformed", 2, None),
        ({"choices": [{"message": {"content": "a\x00"}, "finish_reason": "stop"}]}, "malformed", 2, Usage(11, 7)),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}, "refused", 1, Usage(11, 7)),
    ],
)
def test_an_answer_that_cannot_be_used_is_paid_for_and_asked_for_at_most_twice(
    server: BatchServer, round_: Round, body: dict[str, Any], kind: str, num_batches: int, usage: Usage | None
) -> None:
    server.run = lambda job, lines: ([server.good(line, **body) for line in lines], [])
    round_.ask(requests(1), teacher(server.url))
    assert round_.failures == {"row 0": kind}
    assert len(server.jobs) == num_batches
    assert round_.purse.settled == [("row 0", usage)] * num_batches


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_row_that_is_refused_is_not_asked_again(server: BatchServer, round_: Round, status: int) -> None:
    server.run = lambda job, lines: (
        [server.good(line) for line in lines[1:]],
        [server.bad(line, status=status, code="bad_row") for line in lines[:1]],
    )
    round_.ask(requests(3), teacher(server.url))
    assert round_.failures == {"row 0": "refused"}
    assert isinstance(failure := round_.outcomes["row 0"], Failure)
    assert f"HTTP {status}" in failure.reason
    assert "bad_row" in failure.reason
    assert len(server.jobs) == 1


# Result files


def test_a_torn_result_file_is_fetched_again_and_no_row_is_reported_twice(server: BatchServer, round_: Round) -> None:
    server.after = lambda call, body: (
        Answer(body=body[: len(body) // 2]) if call.kind == "download" and call.number == 1 else None
    )
    round_.ask(requests(9), teacher(server.url))
    assert round_.failures == {}
    assert server.count("download") == 2
    assert set(server.accepted.values()) == {1}


def test_a_result_file_cut_at_the_end_of_a_line_is_fetched_again(server: BatchServer, round_: Round) -> None:
    server.after = lambda call, body: (
        Answer(body=b"".join(body.splitlines(keepends=True)[:4]))
        if call.kind == "download" and call.number == 1
        else None
    )
    round_.ask(requests(9), teacher(server.url))
    assert round_.failures == {}
    assert set(server.accepted.values()) == {1}


def test_of_a_result_file_that_stays_torn_the_rest_is_asked_again(server: BatchServer, round_: Round) -> None:
    server.raw = lambda job, output: output[: len(output) * 2 // 3] if job.number == 1 else output
    round_.ask(requests(9), teacher(server.url))
    assert round_.failures == {}
    assert server.count("download") == 3 + 1
    first, second = server.jobs.values()
    assert 0 < len(server.lines(second)) < len(server.lines(first))
    assert Counter(server.accepted.values()) == Counter(
        {1: 9 - len(server.lines(second)), 2: len(server.lines(second))}
    )


GARBAGE = [
    b"\xff\xfe\x00nonsense", b"null", b"[]", b'{"custom_id": 7}', b'{"id": "x"}', b"{" * 100_000, b"[" * 100_000,
    b"<html>502 Bad Gateway</html>", b'{"custom_id": "someone-elses", "response": null, "error": null}', b"",
]  # fmt: skip


def test_garbage_among_the_results_belongs_to_no_row(
    server: BatchServer, round_: Round, caplog: pytest.LogCaptureFixture
) -> None:
    def raw(job: Job, output: bytes) -> bytes:
        lines = output.splitlines()
        endless = b"x" * MAX_RESULT_BYTES + lines[0].replace(b"re: row 0", b"not row 0")
        return b"\n".join([*GARBAGE, endless, *lines, endless + endless, *lines, *GARBAGE])

    server.raw = raw
    with caplog.at_level(logging.WARNING):
        round_.ask(requests(4), teacher(server.url))
    assert round_.failures == {}
    assert isinstance(reply := round_.outcomes["row 0"], Reply)
    assert reply.text == "re: row 0"
    assert len(server.jobs) == 1
    assert sum("no row of it waits for" in record.message for record in caplog.records) == 1
    assert round_.purse.spent == 4 * 7


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 400))
def test_no_bytes_between_results_stop_the_reading(
    data: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": USAGE}
    line = json.dumps({"custom_id": "c", "response": {"status_code": 200, "body": body}, "error": None}).encode()
    path = tmp_path_factory.getbasetemp() / "results.jsonl"
    path.write_bytes(data + b"\n" + line + b"\n" + line[:cut])
    found = [answer for answer in read_answers(path, "m") if answer is not None and answer.reply is not None]
    assert [one.reply.text for one in found if one.reply] == ["fine"] * (1 + (cut >= len(line)))


def test_a_result_file_that_is_gone_means_asking_again(server: BatchServer, round_: Round) -> None:
    server.before = lambda call: Answer(404, b"no such file") if call.name == "file-out-1" else None
    round_.ask(requests(2), teacher(server.url))
    assert round_.failures == {}
    assert len(server.jobs) == 2
    assert round_.purse.settled.count(("row 0", None)) == 1


# Calls that go wrong


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fault",
    [
        Answer(429, headers={"retry-after": "1"}), Answer(500), Answer(503, b"overloaded"), Answer(reset=True),
        Answer(200, b"<html>a proxy's page</html>"), Answer(200, b'{"object": "batch"}'),
    ],
    ids=["429", "500", "503", "reset", "html", "no fields"],
)  # fmt: skip
def test_a_call_that_fails_is_repeated_and_no_row_is_submitted_twice(
    server: BatchServer, round_: Round, kind: str, fault: Answer
) -> None:
    server.before = lambda call: fault if call.kind == kind and call.number <= 2 else None
    round_.ask(requests(4), teacher(server.url))
    assert round_.failures == {}
    assert server.count(kind) >= 3
    if kind != "download":  # nonsense in place of a result file is read as results, and counted as missing
        assert 1 <= round_.stats.retries <= 2  # the client itself repeats a GET on a connection that was kept too long
    assert set(server.accepted.values()) == {1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [Answer(500), Answer(reset=True), Answer(200, b"{}" * 50, cut=True)], ids=str)
def test_an_answer_that_is_lost_on_its_way_does_not_double_what_was_done(
    server: BatchServer, round_: Round, kind: str, fault: Answer
) -> None:
    server.after = lambda call, body: fault if (call.kind, call.number) == (kind, 1) else None
    round_.ask(requests(4), teacher(server.url, max_requests_per_file=2))
    assert round_.failures == {}
    assert len(server.jobs) == 2
    assert set(server.accepted.values()) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_never_succeeds_ends_the_round_as_transient(server: BatchServer, round_: Round, kind: str) -> None:
    server.before = always(kind, Answer(503, b"overloaded"))
    with pytest.raises(Transient, match=r"failed for 0\.2 seconds, the last time with: HTTP 503: overloaded"):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.2}))
    before = sum(server.accepted.values())
    server.before = lambda call: None
    assert Round(round_.folder).ask(requests(2), teacher(server.url)).failures == {}
    assert before in (0, 2)
    assert set(server.accepted.values()) == {1}


def test_a_dripping_answer_meets_the_deadline_of_the_call(server: BatchServer, round_: Round) -> None:
    server.before = once("read", Answer(body=b"{" * 1000, drip_seconds=0.1))
    begun = time.monotonic()
    round_.ask(requests(1), teacher(server.url, calls={"call_seconds": 0.3}))
    assert 0.3 < time.monotonic() - begun < 60  # the whole drips for 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [401, 403, 307])
def test_a_refusal_of_all_calls_ends_the_round_at_once(
    server: BatchServer, round_: Round, kind: str, status: int
) -> None:
    server.before = always(kind, Answer(status, b"no", headers={"location": "http://127.0.0.1:1/"}))
    with pytest.raises(InvalidInput, match="redirects to" if status == 307 else f"HTTP {status}"):
        round_.ask(requests(2), teacher(server.url))
    assert server.count(kind) == 1


@pytest.mark.parametrize(("kind", "status"), [("list", 404), ("list", 405), ("list", 501), ("upload", 404)])
def test_a_service_without_a_batch_api_is_named_as_such(
    server: BatchServer, round_: Round, kind: str, status: int
) -> None:
    server.before = always(kind, Answer(status))
    with pytest.raises(InvalidInput, match=r'no Batch API.*"openai"'):
        round_.ask(requests(2), teacher(server.url))


def test_nothing_listens_there(round_: Round) -> None:
    with pytest.raises(Transient, match="ClientConnectorError"):
        round_.ask(requests(1), teacher("http://127.0.0.1:9/v1", calls={"row_seconds": 0.2}))


def test_an_address_that_is_none_is_the_users_matter(round_: Round) -> None:
    with pytest.raises(InvalidInput, match="no address that can be called; correct base_url"):
        round_.ask(requests(1), teacher("http://127.0.0.1:99999/v1"))


def test_a_file_that_is_not_there_yet_is_named_again(server: BatchServer, round_: Round) -> None:
    body = b'{"error": {"message": "Cannot find file file-in-0, or project p does not have access to it."}}'
    server.before = lambda call: Answer(400, body) if call.kind == "create" and call.number < 3 else None
    assert round_.ask(requests(2), teacher(server.url)).failures == {}
    assert len(server.jobs) == 1


def test_a_batch_that_is_refused_as_such_is_the_users_matter(server: BatchServer, round_: Round) -> None:
    server.before = always("create", Answer(400, b'{"error": {"message": "Invalid endpoint"}}'))
    with pytest.raises(InvalidInput, match=r"refuses creating a batch with HTTP 400.*Invalid endpoint"):
        round_.ask(requests(2), teacher(server.url))
    assert server.count("create") == 1


# Limits


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 12_000), min_size=1, max_size=25),
    max_requests=st.integers(1, 12),
    max_bytes=st.integers(10_000, 40_000),
    max_tokens=st.none() | st.integers(1, 8_000),
)
def test_no_limit_is_ever_passed_and_no_row_is_lost(
    sizes: list[int],
    max_requests: int,
    max_bytes: int,
    max_tokens: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Two characters of three bytes each stand for the letters, so that bytes and characters are not the same."""
    rows = [
        Request(f"row {n}", (Message(role="user", content="あ" * (size // 3)),), 64) for n, size in enumerate(sizes)
    ]
    num_tokens = {name_of(row.key, 0): len(row.messages[0].content) // 3 + 1 for row in rows}
    most_enqueued = 0
    with serving() as server:

        def plan(job: Job, lines: list[Line]) -> list[str]:
            nonlocal most_enqueued
            live = [job, *(other for other in server.jobs.values() if other.status != "completed")]
            enqueued = sum(num_tokens[line["custom_id"]] for one in live for line in server.lines(one))
            most_enqueued = max(most_enqueued, enqueued)
            return ["in_progress", "completed"]

        server.plan = plan
        limits = {"max_requests_per_file": max_requests, "max_file_bytes": max_bytes, "max_enqueued_tokens": max_tokens}
        round_ = Round(tmp_path_factory.mktemp("limits"))
        round_.ask(rows, teacher(server.url, poll_seconds=0.001, **limits))
        inputs = [data for name, data in server.files.items() if name.startswith("file-in")]
    assert max(map(len, inputs), default=0) <= max_bytes
    assert max((data.count(b"\n") for data in inputs), default=0) <= max_requests
    assert max_tokens is None or most_enqueued <= max_tokens
    assert set(server.accepted.values()) <= {1}
    for row in rows:
        outcome = round_.outcomes[row.key]
        if isinstance(outcome, Failure):
            assert "over max_" in outcome.reason
            assert name_of(row.key, 0) not in server.accepted
    if max_tokens is None:  # Files are filled: the first row of each would not have fitted into the one before.
        for one, following in itertools.pairwise(inputs):
            first = following.index(b"\n") + 1
            assert one.count(b"\n") == max_requests or len(one) + first > max_bytes


@pytest.mark.parametrize(("spare_bytes", "num_files"), [(0, 2), (-1, 4)])
def test_a_file_is_filled_to_the_last_byte(
    server: BatchServer, round_: Round, spare_bytes: int, num_files: int
) -> None:
    rows = [Request(f"row {n}", (Message(role="user", content="é" * 3000),), 64) for n in range(4)]
    Round(round_.folder / "first").ask(rows[:1], teacher(server.url))
    num_bytes = 2 * len(server.files["file-in-0"]) + spare_bytes
    round_.ask([*rows[1:], replace(rows[0], key="row 4")], teacher(server.url, max_file_bytes=num_bytes), place=1)
    assert len(server.jobs) == 1 + num_files


def test_a_row_that_no_file_can_hold_fails_alone(server: BatchServer, round_: Round) -> None:
    rows = [*requests(2), Request("big", (Message(role="user", content="x" * 20_000),), 64)]
    round_.ask(rows, teacher(server.url, max_file_bytes=10_000))
    assert round_.failures == {"big": "refused"}
    assert isinstance(failure := round_.outcomes["big"], Failure)
    assert "over max_file_bytes=10000" in failure.reason
    assert sorted(key for key, _ in round_.purse.settled) == ["row 0", "row 1"]


# Budget


def test_what_rows_did_not_use_admits_further_ones(server: BatchServer, round_: Round) -> None:
    round_.purse = Purse(limit=350)
    round_.ask(requests(12), teacher(server.url))
    assert round_.failures == {}
    assert [len(server.lines(job)) for job in server.jobs.values()] == [3, 3, 3, 2, 1]
    assert round_.purse.spent == 12 * 7


def test_a_spent_budget_ends_the_round_when_all_that_was_paid_is_there(server: BatchServer, round_: Round) -> None:
    round_.purse = Purse(limit=350, most=100)
    server.run = lambda job, lines: (
        [server.good(line, usage=USAGE | {"completion_tokens": 100}) for line in lines],
        [],
    )
    with pytest.raises(OverBudget, match="row 3"):
        round_.ask(requests(9), teacher(server.url))
    assert set(round_.outcomes) == {"row 0", "row 1", "row 2"}
    assert (len(server.jobs), round_.purse.spent) == (1, 300)
    richer = Round(round_.folder, purse=Purse(limit=2000))
    richer.ask(requests(9)[3:], teacher(server.url))
    assert set(server.accepted.values()) == {1}


def test_results_that_the_budget_does_not_cover_wait_for_a_larger_one(server: BatchServer, round_: Round) -> None:
    with pytest.raises(Transient):
        server.before = always("download", Answer(500))
        round_.ask(requests(5), teacher(server.url, calls={"row_seconds": 0.1}))
    server.before = lambda call: None
    poor = Round(round_.folder, purse=Purse(limit=120))
    with pytest.raises(OverBudget):
        poor.ask(requests(8), teacher(server.url))
    assert len(poor.outcomes) == 3  # One at a time is admitted and settled, until less than 100 units are left.
    assert poor.purse.spent == 21
    rest = [row for row in requests(8) if row.key not in poor.outcomes]
    assert Round(round_.folder).ask(rest, teacher(server.url)).failures == {}
    assert set(server.accepted.values()) == {1}


def test_rows_of_earlier_batches_are_paid_first_and_wait_for_what_comes_back(
    server: BatchServer, round_: Round
) -> None:
    server.plan = lambda job, lines: ["completed"] if job.number == 1 else ["in_progress"] * 4 + ["completed"]
    server.before = always("download", Answer(500))
    with pytest.raises(Transient):
        round_.ask(requests(8), teacher(server.url, calls={"row_seconds": 0.1}, max_requests_per_file=5))
    server.before = lambda call: None
    again = Round(round_.folder, purse=Purse(limit=350))
    again.ask([*requests(10)[8:], *requests(8)], teacher(server.url))
    assert again.failures == {}
    assert set(again.purse.order[:3]) == {"row 5", "row 6", "row 7"}
    assert set(server.accepted.values()) == {1}
    assert again.purse.spent == 10 * 7


# Restarts


def test_a_second_round_takes_what_the_first_one_left_at_the_provider(server: BatchServer, round_: Round) -> None:
    server.plan = lambda job, lines: ["in_progress"] * 6 + ["completed"]

    async def cancelled() -> None:
        notes = FolderNotes(round_.folder / "notes")
        batch = Batch(teacher(server.url, max_requests_per_file=2), notes, round_.folder / "work", round_.purse)
        task = asyncio.create_task(batch.ask(iter(requests(5)), round_.keep))
        while server.count("read") < 4:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert round_.outcomes == {}
    assert sorted(round_.purse.settled) == [(f"row {n}", None) for n in range(5)]
    assert not any(job.status == "cancelled" for job in server.jobs.values())
    again = Round(round_.folder).ask(requests(6), teacher(server.url))
    assert again.failures == {}
    assert len(server.jobs) == 3 + 1
    assert set(server.accepted.values()) == {1}
    assert again.purse.spent == 6 * 7


@pytest.mark.parametrize("lost", ["notes", "metadata"])
def test_batches_are_found_by_their_notes_or_by_the_providers_list(
    server: BatchServer, round_: Round, lost: str, tmp_path: Path
) -> None:
    server.before = always("read", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(4), teacher(server.url, calls={"row_seconds": 0.1}, max_requests_per_file=2))
    server.before = lambda call: None
    folder = round_.folder
    if lost == "notes":
        folder = tmp_path / "another machine"
    else:
        for job in server.jobs.values():
            job.metadata = {}
    assert Round(folder).ask(requests(5), teacher(server.url)).failures == {}
    assert len(server.jobs) == 3
    assert set(server.accepted.values()) == {1}


def test_a_long_list_of_others_batches_is_read_to_its_end(server: BatchServer, round_: Round) -> None:
    server.before = always("read", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.1}))
    server.before = lambda call: None
    for number in range(2, 252):
        metadata = {"reasrm": "another run", "place": "0"} if number % 2 else {}
        server.jobs[f"batch_{number}"] = Job(f"batch_{number}", number, "file-of-others", metadata, [], "in_progress")
    assert Round(round_.folder / "elsewhere").ask(requests(2), teacher(server.url)).failures == {}
    assert set(server.accepted.values()) == {1}


def test_two_teachers_of_a_cascade_do_not_take_each_others_rows(server: BatchServer, round_: Round) -> None:
    assert round_.ask(requests(2), teacher(server.url)).failures == {}
    assert Round(round_.folder).ask(requests(2), teacher(server.url), place=1).failures == {}
    assert len(server.jobs) == 2
    assert len(server.accepted) == 4


def test_failures_that_were_reported_are_asked_anew_and_replies_are_taken_again(
    server: BatchServer, round_: Round
) -> None:
    server.run = lambda job, lines: (
        [server.good(line) for line in lines[1:] or lines],
        [server.bad(line, status=400) for line in lines[:1] if len(lines) > 1],
    )
    assert round_.ask(requests(4), teacher(server.url)).failures == {"row 0": "refused"}
    again = Round(round_.folder).ask(requests(4), teacher(server.url))
    assert again.failures == {}
    assert [len(server.lines(job)) for job in server.jobs.values()] == [4, 1]
    assert again.purse.spent == 4 * 7


def test_a_noted_batch_of_another_account_is_the_users_matter(server: BatchServer, round_: Round) -> None:
    server.before = always("read", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.1}))
    server.jobs.clear()
    server.before = always("read", Answer(404, b"No batch found with id batch_1"))
    with pytest.raises(InvalidInput, match=r"batch_1, which an earlier attempt submitted.*project"):
        Round(round_.folder).ask(requests(2), teacher(server.url))
    assert server.count("create") == 1


def test_a_row_that_was_submitted_again_is_left_to_its_second_batch(server: BatchServer, round_: Round) -> None:
    server.plan = lambda job, lines: ["expired"] if job.number == 1 else ["in_progress"] * 99
    server.run = lambda job, lines: ([server.good(line) for line in lines[:2]], [])
    server.before = lambda call: Answer(503) if call.kind == "read" and len(server.jobs) == 2 else None
    with pytest.raises(Transient):
        round_.ask(requests(4), teacher(server.url, calls={"row_seconds": 0.1}))
    server.before = lambda call: None
    server.jobs["batch_2"].states = ["in_progress", "completed"]
    again = Round(round_.folder).ask(requests(4), teacher(server.url))
    assert again.failures == {}
    assert [len(server.lines(job)) for job in server.jobs.values()] == [4, 2]


def test_attempts_of_earlier_rounds_are_not_counted(server: BatchServer, round_: Round) -> None:
    server.plan = lambda job, lines: ["expired" if job.number == 1 else "completed"]
    server.run = lambda job, lines: ([], [server.bad(one) for one in lines]) if job.number == 1 else (
        [server.good(one) for one in lines], []
    )  # fmt: skip
    server.before = always("download", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.1, "attempts": 1}))
    server.before = lambda call: None
    again = Round(round_.folder).ask(requests(2), teacher(server.url, calls={"attempts": 1}))
    assert again.failures == {}
    assert again.outcomes["row 0"].attempts == 2


def test_of_a_row_that_two_batches_answered_the_first_answer_is_taken(server: BatchServer, round_: Round) -> None:
    """As after a call to create a batch that got through long after its sender had died."""
    server.before = always("read", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(3), teacher(server.url, calls={"row_seconds": 0.1}))
    server.before = lambda call: None
    server.jobs["batch_2"] = replace(server.jobs["batch_1"], id="batch_2", number=2, states=["completed"])
    server.run = lambda job, lines: ([server.good(line, f"of {job.number}") for line in lines], [])
    again = Round(round_.folder).ask(requests(3), teacher(server.url))
    assert {reply.text for reply in again.outcomes.values() if isinstance(reply, Reply)} == {"of 2"}
    assert len(again.outcomes) == 3
    assert len(server.jobs) == 2


def test_a_note_that_another_writer_took_the_name_of_is_kept_under_the_next(server: BatchServer, round_: Round) -> None:
    @dataclass
    class Raced(FolderNotes):
        num_written: int = 0

        def write_partial(self, name: str, data: bytes) -> None:
            self.num_written += 1
            if self.num_written <= 2:
                super().write_partial(name, f"of another, {name}".encode())
            super().write_partial(name, data)

    server.before = always("read", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(2), teacher(server.url, calls={"row_seconds": 0.1}), Raced(round_.folder / "notes"))
    server.before = lambda call: None
    server.jobs["batch_1"].metadata = {}
    assert Round(round_.folder).ask(requests(2), teacher(server.url)).failures == {}
    assert len(server.jobs) == 1


def test_a_note_that_cannot_be_read_is_passed_over(server: BatchServer, round_: Round) -> None:
    notes = FolderNotes(round_.folder / "notes")
    notes.write_partial("batch-0-0", b"nonsense")
    assert round_.ask(requests(2), teacher(server.url), notes).failures == {}
    assert Round(round_.folder).ask(requests(2), teacher(server.url), notes).failures == {}
    assert len(server.jobs) == 1


@pytest.mark.usefixtures("services")
def test_notes_are_kept_in_s3(server: BatchServer, round_: Round, s3: Any) -> None:
    class BucketNotes:
        run_key = RUN_KEY

        def read_partial(self, name: str) -> bytes | None:
            data: bytes | None = s3.storage.read_bytes(f"{s3.prefix}/{name}")
            return data

        def write_partial(self, name: str, data: bytes) -> None:
            s3.storage.write_bytes(f"{s3.prefix}/{name}", data, if_absent=True)

    BucketNotes().write_partial("batch-0-0", b"of another writer")
    server.before = always("read", Answer(503))
    with pytest.raises(Transient):
        round_.ask(requests(3), teacher(server.url, calls={"row_seconds": 0.1}), BucketNotes())
    for job in server.jobs.values():
        job.metadata = {}
    server.before = lambda call: None
    assert Round(round_.folder / "elsewhere").ask(requests(3), teacher(server.url), BucketNotes()).failures == {}
    assert set(server.accepted.values()) == {1}


# Processes that are killed

NUM_KILLED_ROWS = 8
PACE_SECONDS = 0.1


def work(url: str, folder: Path, num_rows: int, pace_seconds: float = 0.0) -> None:
    """Ask for the rows that have no outcome yet, and write down each outcome at once."""
    path = folder / "outcomes.txt"
    known = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    with path.open("a", encoding="utf-8") as file:

        def keep(outcome: Outcome) -> None:
            file.write(outcome.key + "\n" if isinstance(outcome, Reply) else f"failed {outcome.key}\n")
            file.flush()
            time.sleep(pace_seconds)

        batch = Batch(teacher(url, max_requests_per_file=4), FolderNotes(folder / "notes"), folder / "work")
        asyncio.run(batch.ask((row for row in requests(num_rows) if row.key not in known), keep))


def start(server: BatchServer, folder: Path) -> "subprocess.Popen[bytes]":
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, server.url, str(folder), str(NUM_KILLED_ROWS)]
    with (folder / "stderr.txt").open("ab") as file:
        return subprocess.Popen(command, env=environment, cwd=root, stderr=file)


def wait_until(reached: Callable[[], bool], process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 180
    while not reached():
        assert process.poll() is None, (folder / "stderr.txt").read_text(encoding="utf-8")[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("point", "num_accepted"),
    [
        ("upload sent", 0), ("create unheard", 0), ("create unanswered", 4), ("second create unanswered", 8),
        ("in progress", 8), ("results unread", 8), ("results half read", 8),
    ],
)  # fmt: skip
def test_a_killed_process_has_no_row_run_twice(
    server: BatchServer, tmp_path: Path, point: str, num_accepted: int
) -> None:
    reached, over = threading.Event(), threading.Event()

    def hold() -> Answer:
        reached.set()
        over.wait(180)
        return Answer(reset=True)

    def before(call: Call) -> Answer | None:
        held = {"create unheard": ("create", 1), "in progress": ("read", 4), "results unread": ("download", 1)}
        return hold() if held.get(point) == (call.kind, call.number) and not over.is_set() else None

    def after(call: Call, body: bytes) -> Answer | None:
        held = {
            "upload sent": ("upload", 1),
            "create unanswered": ("create", 1),
            "second create unanswered": ("create", 2),
        }
        return hold() if held.get(point) == (call.kind, call.number) and not over.is_set() else None

    server.before, server.after = before, after
    outcomes = tmp_path / "outcomes.txt"
    if point == "results half read":
        reached_now = lambda: outcomes.exists() and outcomes.read_text(encoding="utf-8").count("\n") >= 2  # noqa: E731
    else:
        reached_now = reached.is_set
    process = start(server, tmp_path)
    try:
        wait_until(reached_now, process, tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=180)
    finally:
        over.set()
        process.kill()
    assert sum(server.accepted.values()) == num_accepted
    work(server.url, tmp_path, NUM_KILLED_ROWS)
    assert sorted(outcomes.read_text(encoding="utf-8").splitlines()) == [f"row {n}" for n in range(NUM_KILLED_ROWS)]
    assert server.accepted == Counter({name_of(f"row {n}", 0): 1 for n in range(NUM_KILLED_ROWS)})


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), PACE_SECONDS)
