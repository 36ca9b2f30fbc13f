"""A real HTTP server that speaks the chat completions protocol and misbehaves on script; what training stages read."""

import json
import random
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.core import prompts
from components.core.manifest import MANIFEST_NAME, Manifest, describe
from components.core.records import write_jsonl
from components.core.schema import Example, PreferencePair


@dataclass(frozen=True)
class Answer:
    """What the server does with one call."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    reset: bool = False
    drip_seconds: float = 0.0


@dataclass(frozen=True)
class Call:
    """One call as it came in; `prompt` is the last message."""

    number: int
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]
    time: float
    num_active: int


class TeacherServer(ThreadingHTTPServer):
    """Answers every call with `script(call)`; keeps all calls."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []
        self.num_active = 0
        self.lock = threading.Lock()
        self.script: Callable[[Call], Answer] = self.good

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, **fields: Any) -> Answer:
        return Answer(**fields)

    def good(self, call: Call, **fields: Any) -> Answer:
        return Answer(body=self.completion(f"re: {call.prompt}"), **fields)

    def completion(self, text: str | None, finish_reason: str | None = "stop", **message: Any) -> bytes:
        choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> Call:
        with self.lock:
            self.num_active += 1
            prompt = body["messages"][-1]["content"]
            call = Call(len(self.calls) + 1, prompt, body, headers, time.monotonic(), self.num_active)
            self.calls.append(call)
        return call

    def leave(self) -> None:
        with self.lock:
            self.num_active -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the plan."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TeacherServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = self.server.enter(body, dict(self.headers.items()))
        try:
            answer = self.server.script(call)
            time.sleep(answer.delay_seconds)
        finally:
            self.server.leave()  # Before the answer goes out: whoever has it may call again at once.
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(answer.status)
        usual = {"content-type": "application/json", "content-length": str(len(answer.body))}
        for name, value in (usual | answer.headers).items():
            self.send_header(name, value)
        self.close_connection |= answer.headers.get("content-length", "") not in ("", usual["content-length"])
        self.end_headers()
        if not answer.drip_seconds:
            self.wfile.write(answer.body)
            return
        for byte in answer.body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(answer.drip_seconds)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@contextmanager
def running() -> Iterator[TeacherServer]:
    """Serve on a free port until the end of the block."""
    server = TeacherServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def teacher_server() -> Iterator[TeacherServer]:
    with running() as server:
        yield server


@pytest.fixture
def other_server() -> Iterator[TeacherServer]:
    """A host that nobody may be sent to."""
    with running() as server:
        yield server


@pytest.fixture
def commit_pairs(s3: Any, tmp_path: Path) -> Callable[..., Manifest]:
    """Return a maker of pairs artifacts: `distil` and `rl` pairs, of which the first answer is right."""

    def commit(distil: int, rl: int = 0) -> Manifest:
        folder = tmp_path / "pairs"
        folder.mkdir()
        values = [
            {"id": f"p{n}", "prompt": f"What is {n} plus 1?", "response_a": f"{n + 1}", "response_b": f"{n}"}
            for n in range(distil + rl)
        ]
        pairs = [PreferencePair.model_validate(value | {"label": "A"}) for value in values]
        write_jsonl(folder / "distil.jsonl", pairs[:distil])
        if rl:
            write_jsonl(folder / "rl.jsonl", pairs[distil:])
        names = {"kind": "pairs", "stage": "prepare", "uri": f"{s3.prefix}/pairs", "run_key": "0" * 64, "config": {}}
        manifest = Manifest.model_validate({**names, "code_version": "0", "files": describe(folder)})
        s3.storage.commit(manifest, folder)
        return manifest

    return commit


TRACE = (
    "<type>Reasoning</type>\n<solution>{sum}</solution>\n<eval>\n<quote_A>{a}</quote_A>\n"
    "<summary_A>says {a}</summary_A>\n<quote_B>{b}</quote_B>\n<summary_B>says {b}</summary_B>\n"
    "so {label}\n</eval>\n<answer>[[{label}]]</answer>"
)


def sums(count: int) -> list[PreferencePair]:
    """Pairs that ask for sums, of which one answer is right."""
    rng = random.Random(7)
    made = []
    for index in range(count):
        x, y, right_first = rng.randrange(50), rng.randrange(50), rng.random() < 0.5
        answers = (str(x + y), str(x + y + 1)) if right_first else (str(x + y + 1), str(x + y))
        pair = {
            "id": f"p{index}",
            "prompt": f"{x} + {y} = ?",
            "response_a": answers[0],
            "response_b": answers[1],
            "label": "A" if right_first else "B",
            "category": "sums",
        }
        made.append(PreferencePair.model_validate(pair))
    return made


@pytest.fixture
def commit_folder(s3: Any) -> Callable[[Path, str], Manifest]:
    """Return a maker of artifacts: all files of a folder, under the folder's name."""

    def commit(directory: Path, kind: str) -> Manifest:
        names = {"kind": kind, "stage": "test", "uri": f"{s3.prefix}/{directory.name}", "run_key": "k", "config": {}}
        manifest = Manifest.model_validate({**names, "code_version": "1", "files": describe(directory)})
        return s3.storage.commit(manifest, directory)  # type: ignore[no-any-return]

    return commit


@pytest.fixture
def examples(commit_folder: Callable[[Path, str], Manifest], tmp_path: Path) -> Manifest:
    """24 short traces to fine-tune on."""
    rows = []
    for pair in sums(24):
        written = TRACE.format(sum="?", a=pair.response_a, b=pair.response_b, label=pair.label)
        completion = ({"role": "assistant", "content": written},)
        asked = prompts.render(pair, "rubric").messages
        rows.append(Example(key=pair.key, prompt=asked, completion=completion, label=pair.label))
    (tmp_path / "examples").mkdir()
    write_jsonl(tmp_path / "examples" / "sft.jsonl", rows)
    return commit_folder(tmp_path / "examples", "distillation")


@pytest.fixture
def rl_pairs(commit_folder: Callable[[Path, str], Manifest], tmp_path: Path) -> Manifest:
    """12 pairs for RL, and 6 held out, in both orders."""
    (tmp_path / "pairs").mkdir()
    write_jsonl(tmp_path / "pairs" / "rl.jsonl", sums(12))
    held_out = [pair.shown(swapped) for pair in sums(6) for swapped in (False, True)]
    write_jsonl(tmp_path / "pairs" / "heldout.jsonl", held_out)
    return commit_folder(tmp_path / "pairs", "pairs")


@pytest.fixture
def tiny_artifact(commit_folder: Callable[[Path, str], Manifest], tmp_path: Path, tiny_model: Path) -> Manifest:
    """The tiny model as a stage's output."""
    shutil.copytree(tiny_model, tmp_path / "tiny" / "model")
    return commit_folder(tmp_path / "tiny", "model")


@pytest.fixture
def has_checkpoint(s3: Any) -> Callable[[str, int], bool]:
    """Return a check whether a checkpoint of this step, or of a later one, is committed below a root."""

    def check(root: str, step: int) -> bool:
        marks = [info.uri for info in s3.storage.list(f"{root}/") if info.uri.endswith(f"/{MANIFEST_NAME}")]
        return any(f"/checkpoints/{done:08d}/" in uri for uri in marks for done in range(step, step + 50))

    return check


@pytest.fixture
def run_with_kills(
    stage_runner: Callable[[str], Any], has_checkpoint: Callable[[str, int], bool]
) -> Callable[..., tuple[Manifest, Manifest]]:
    """Return a function that does a stage's work twice: undisturbed, and killed at two steps."""

    def run(
        stage: str, config: dict[str, Any], inputs: dict[str, Manifest], *, steps: int, seed: int
    ) -> tuple[Manifest, Manifest]:
        calm = stage_runner("calm").start(stage, config, inputs).finish()
        runner = stage_runner("killed")
        for step in sorted(random.Random(seed).sample(range(1, steps), 2)):
            runner.start(stage, config, inputs).kill_when(lambda step=step: has_checkpoint(runner.root, step))
        return calm, runner.start(stage, config, inputs).finish()

    return run
