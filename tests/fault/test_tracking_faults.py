"""MLflow dead at the start, in the middle and at the end: the stage goes on, and later everything is there once."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from components.adapters import model_versions, stage_run, tracking
from components.adapters.pipeline_run import finish_parent
from components.adapters.spool import read_state
from components.core.errors import InvalidInput, Transient

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 30.0
"""A call that waits on MLflow takes minutes; one that does not takes up to 10 s, on a busy machine three times that."""


class Gate:
    """A TCP gate before the real server: `up`, `down` (refuses), `hangs` (never answers), `cuts` (loses answers)."""

    def __init__(self, target):
        self.target, self.mode, self.connections, self.num_cut = target, "down", [], 0
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.listener, self.threads = None, []

    def set(self, mode):
        if self.listener is not None:
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
        for connection in self.connections:
            connection.close()
        self.connections, self.threads, self.mode = [], [], mode
        if mode != "down":
            self.listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
            self.start(self.accept, self.listener)

    def start(self, work, *args):
        self.threads.append(threading.Thread(target=work, args=args, daemon=True))
        self.threads[-1].start()

    def accept(self, listener):
        while True:
            try:
                inner = listener.accept()[0]
            except OSError:
                return
            self.connections.append(inner)
            if self.mode == "hangs":
                continue
            try:
                outer = socket.create_connection(self.target)
            except OSError:
                inner.shutdown(socket.SHUT_RDWR)
                continue
            self.connections.append(outer)
            self.start(self.pump, inner, outer, False)
            self.start(self.pump, outer, inner, True)

    def pump(self, source, sink, answers):
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.mode == "cuts":
                    self.num_cut += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def gate(services, monkeypatch):
    address = urlsplit(services.mlflow_uri)
    gate = Gate((address.hostname, address.port))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{gate.port}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield gate
    gate.set("down")


@pytest.fixture
def patient(monkeypatch):
    """Let a stage wait for an MLflow that is there, on a machine that may be busy."""
    for name in ("FINISH_SECONDS", "STALLED_SECONDS", "UNREACHABLE_SECONDS"):
        monkeypatch.setattr(stage_run, name, 60.0)


@pytest.fixture
def client(services):
    return tracking.load().MlflowClient(services.mlflow_uri)


@pytest.fixture
def name(request):
    return f"{request.node.name}-{uuid.uuid4().hex[:8]}"


class Timed:
    """Passes calls on to a stage's run, and remembers the slowest."""

    def __init__(self, run):
        self.run, self.slowest = run, 0.0

    def __getattr__(self, attribute):
        def call(*args, **keywords):
            start = time.monotonic()
            result = getattr(self.run, attribute)(*args, **keywords)
            self.slowest = max(self.slowest, time.monotonic() - start)
            return result

        return call


def open_run(name, workdir):
    return Timed(
        tracking.open_stage_run(
            run_id="run-1", run_name="demo", stage="sft", experiment=name, workdir=workdir, tags={"who": "test"}
        )
    )


def log(run, steps):
    run.log_params({"lr": 1e-6})
    for step in steps:
        run.log_metrics({"loss": 1.0 / (step + 1)}, step)
    model = run.log_model("sft", "s3://bucket/sft", "a" * 64, step=max(steps))
    run.log_scores(model, {"accuracy": 0.5}, ("heldout", "s3://bucket/heldout", "d" * 64))


def assert_all_there_once(client, name, num_steps):
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["demo", "sft"]
    [run_id] = [run.info.run_id for run in runs if run.info.run_name == "sft"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "1e-06"}
    points = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]
    assert points == [(step, 1.0 / (step + 1)) for step in range(num_steps)]
    assert [point.value for point in client.get_metric_history(run_id, "accuracy")] == [0.5]
    assert len(run.outputs.model_outputs) == 1
    assert len(run.inputs.dataset_inputs) == 1
    [model] = client.search_logged_models([experiment.experiment_id])
    assert [(metric.key, metric.value) for metric in model.metrics] == [("accuracy", 0.5)]


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["down", "hangs"])
def test_dead_from_start_to_end_then_replayed(gate, client, name, tmp_path, caplog, mode):
    gate.set(mode)
    run = open_run(name, tmp_path)
    log(run, range(5))
    assert run.slowest < 4  # a request that hangs is given up after five seconds
    assert not run.finish("FINISHED")
    assert run.slowest < LIMIT_SECONDS
    assert f"operations wait in {tmp_path}" in caplog.text
    assert client.get_experiment_by_name(name) is None
    assert tracking.replay(tmp_path, timeout_seconds=3) > 0
    gate.set("up")
    assert tracking.replay(tmp_path) == 0
    assert_all_there_once(client, name, 5)
    assert tracking.replay(tmp_path) == 0


@pytest.mark.usefixtures("patient")
def test_dead_in_the_middle_and_back_again(gate, client, name, tmp_path):
    gate.set("up")
    run = open_run(name, tmp_path)
    run.log_metrics({"loss": 1.0}, 0)
    until(lambda: read_state(tmp_path / "tracking").acked == 2)
    gate.set("down")
    for step in range(1, 50):
        run.log_metrics({"loss": 1.0 / (step + 1)}, step)
    until(lambda: read_state(tmp_path / "tracking").error)
    log(run, range(50, 60))
    gate.set("up")
    assert run.finish("FINISHED")
    assert run.slowest < LIMIT_SECONDS
    assert_all_there_once(client, name, 60)


@pytest.mark.usefixtures("patient")
def test_answers_lost_after_mlflow_took_the_request(gate, client, name, tmp_path):
    gate.set("cuts")
    run = open_run(name, tmp_path)
    log(run, range(5))
    until(lambda: gate.num_cut > 1)
    for _ in range(8):
        before = read_state(tmp_path / "tracking").acked
        gate.set("up")
        until(lambda before=before: read_state(tmp_path / "tracking").acked > before)
        gate.set("cuts")
        run.log_metrics({"noise": 1.0})
        seen = gate.num_cut
        until(lambda seen=seen: gate.num_cut > seen)
    gate.set("up")
    assert run.finish("FINISHED")
    assert_all_there_once(client, name, 5)


STAGE = """
import os, signal, sys
from pathlib import Path
from components.adapters import tracking
run = tracking.open_stage_run(
    run_id="run-1", run_name="demo", stage="sft", experiment=sys.argv[1], workdir=Path(sys.argv[2]), tags={}
)
for step in range(5):
    run.log_metrics({"loss": 1.0 / (step + 1)}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("mode", ["up", "down"])
def test_a_killed_stage_loses_no_point_and_its_retry_doubles_none(gate, client, name, tmp_path, mode):
    gate.set(mode)
    killed = subprocess.run([sys.executable, "-c", STAGE, name, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    if mode == "up":
        # The delivery process outlives the stage for long enough.
        until(lambda: read_state(tmp_path / "tracking").acked == 6)
    gate.set("up")
    run = open_run(name, tmp_path)
    log(run, range(3, 8))
    assert run.finish("FINISHED")
    assert_all_there_once(client, name, 8)


@pytest.mark.usefixtures("patient")
def test_a_killed_delivery_process_is_replaced(gate, client, name, tmp_path, caplog):
    gate.set("up")
    run = open_run(name, tmp_path)
    log(run, range(3))
    first = run.run.worker
    until(lambda: read_state(tmp_path / "tracking").acked)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    for step in range(3, 6):
        run.log_metrics({"loss": 1.0 / (step + 1)}, step)
    assert run.finish("FINISHED")
    assert "the delivery process ended" in caplog.text
    assert_all_there_once(client, name, 6)


@pytest.mark.usefixtures("patient")
def test_what_mlflow_refuses_is_put_aside_and_holds_nothing_up(gate, client, name, tmp_path, caplog):
    gate.set("up")
    run = open_run(name, tmp_path)
    run.log_scores("e" * 64, {"accuracy": 0.5}, ("heldout", "s3://bucket/heldout", "d" * 64))
    log(run, range(3))
    assert run.finish("FINISHED")
    assert_all_there_once(client, name, 3)
    refused = (tmp_path / "tracking" / "rejected.jsonl").read_text().splitlines()
    assert len(refused) == 1
    assert "knows no model whose manifest is eee" in refused[0]
    assert "MLflow refused 1 operations" in caplog.text


def test_without_a_tracking_uri_everything_is_kept_for_later(gate, client, name, tmp_path, caplog, monkeypatch):
    with monkeypatch.context() as unset:
        unset.delenv("MLFLOW_TRACKING_URI")
        run = open_run(name, tmp_path)
        log(run, range(3))
        assert not run.finish("FINISHED")
        assert run.run.mlflow_run_id is None
        assert tracking.replay(tmp_path) == run.run.spool.last_seq
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"tracking: MLFLOW_TRACKING_URI is not set; metrics and lineage stay in {tmp_path / 'tracking'}"
    ]
    gate.set("up")
    assert tracking.replay(tmp_path) == 0
    assert_all_there_once(client, name, 3)


@pytest.mark.parametrize("mode", ["down", "hangs"])
def test_publishing_without_mlflow_says_that_it_can_be_tried_again(gate, name, mode, caplog):
    gate.set(mode)
    start = time.monotonic()
    message = f"registering {name}: MLflow at http://127.0.0.1:{gate.port} does not answer; check the server"
    with pytest.raises(Transient, match=re.escape(message)):
        model_versions.register_version(name, "s3://bucket/m", None, None, {"reasrm.run_key": "k"}, "")
    assert not finish_parent("run-1", name, "FAILED", {})
    assert "does not answer" in caplog.text
    assert time.monotonic() - start < 2 * LIMIT_SECONDS


def test_publishing_without_an_address_is_the_users_to_mend(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InvalidInput, match="MLFLOW_TRACKING_URI is not set; set it"):
        model_versions.set_alias("model", "champion", "1")


def test_a_full_disk_does_not_stop_the_stage(gate, name, tmp_path, caplog):
    gate.set("up")
    run = open_run(name, tmp_path)
    ops = tmp_path / "tracking" / "ops.jsonl"
    until(lambda: read_state(tmp_path / "tracking").acked == 1)
    ops.unlink()
    ops.mkdir()
    run.log_metrics({"loss": 1.0}, 0)
    assert "metrics is lost, the spool" in caplog.text
    ops.rmdir()
    run.finish("FAILED")
