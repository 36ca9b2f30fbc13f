"""SFT on two real processes: one result, one run in MLflow, one clear end whatever dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.adapters import launch
from components.adapters.stage import run_stage
from components.core.errors import InvalidInput, ReasrmError
from components.core.manifest import Manifest
from components.sft.config import Config
from pipeline.services import Services

END_SECONDS = 180.0
STAGE_SECONDS = 400.0


@pytest.fixture
def config(tiny_model: Path) -> dict[str, Any]:
    return {
        "base_model": str(tiny_model), "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "epochs": 2,
        "precision": "fp32", "max_length": 4096, "processes": 2, "save_steps": 5,
    }  # fmt: skip


@pytest.fixture
def endless(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"epochs": 500, "save_steps": 2}


def workers(parent: int) -> dict[int, int]:
    """Return the process ids of the ranks that a process has started."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            variables = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(text.removeprefix(b"RANK=")) for text in variables if text.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, int(status.parent.name))
    return found


def wait_for(reached: Callable[[], bool], seconds: float = STAGE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def last_line(attempt: Any) -> str:
    return str(attempt.log.read_text(encoding="utf-8").strip().splitlines()[-1])


def manifests(s3: Any, root: str) -> list[str]:
    uris = [info.uri.removeprefix(root) for info in s3.storage.list(f"{root}/")]
    return [uri for uri in uris if uri.endswith("/manifest.json") and "/partial/" not in uri]


def runs(services: Services, digest: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(services.environment()["MLFLOW_TRACKING_URI"])
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(everywhere, f"tags.`reasrm.run_key` = '{digest}'"))


def test_two_processes_make_one_artifact_and_one_run(
    stage_runner: Callable[[str], Any], s3: Any, services: Services, config: dict[str, Any], examples: Manifest
) -> None:
    runner = stage_runner("two")
    attempt = runner.start("sft", config, {"examples": examples})
    manifest = attempt.finish()
    assert manifests(s3, runner.root) == [f"/sft/{manifest.run_key[:20]}/manifest.json"]
    assert [run.info.status for run in runs(services, manifest.run_key)] == ["FINISHED"]
    log = attempt.log.read_text(encoding="utf-8")
    assert '"rank": 0' in log
    assert '"rank": 1' in log
    workdir = next((runner.directory / "work").glob("sft-*"))
    assert {path.name for path in workdir.iterdir() if path.is_dir()} <= {"tracking", "launch"}
    assert [path.name for path in (workdir / "launch").iterdir()] == ["lock"]

    again = runner.start("sft", config | {"processes": 1}, {"examples": examples})
    assert again.finish() == manifest
    assert "sft reused" in last_line(again)


@dataclass
class Elsewhere:
    """A launcher of many machines, whose machines do nothing."""

    jobs: list[launch.Job] = field(default_factory=list)

    def launch(self, job: launch.Job) -> None:
        self.jobs.append(job)


def test_many_machines_are_for_a_launcher(
    services: Services,
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    examples: Manifest,
) -> None:
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    place: dict[str, Any] = {"artifact_root": s3.prefix, "experiment": "e", "run_id": "r", "run_name": "name"}
    asked = config | {"nodes": 2, "processes": "auto"}
    with pytest.raises(
        InvalidInput,
        match=r"SHUTDOWN_TIMEOUT=300 torchrun --nnodes=2 --nproc-per-node=auto .* components\.sft .* or take nodes = 1",
    ):
        run_stage("sft", asked, {"examples": examples}, **place)
    machines = Elsewhere()
    with pytest.raises(ReasrmError, match=f"no manifest at {s3.prefix}/sft/"):
        run_stage("sft", asked, {"examples": examples}, **place, launcher=machines)
    assert [(job.stage, job.nodes, job.processes) for job in machines.jobs] == [("sft", 2, "auto")]
    assert machines.jobs[0].environment == {"REASRM_RUN_NAME": "name"}


def test_a_message_of_a_worker_reaches_the_user(
    stage_runner: Callable[[str], Any], config: dict[str, Any], examples: Manifest
) -> None:
    attempt = stage_runner("wrong").start("sft", config | {"max_length": 16}, {"examples": examples})
    assert attempt.process.wait(timeout=400) == 2
    assert last_line(attempt).startswith("reasrm sft: [rank ")
    assert "raise max_length" in last_line(attempt)
    assert not attempt.output.exists()


def test_whatever_dies_everything_ends_and_the_rest_is_done_later(
    stage_runner: Callable[[str], Any],
    has_checkpoint: Callable[[str, int], bool],
    endless: dict[str, Any],
    examples: Manifest,
) -> None:
    runner = stage_runner("dying")
    inputs = {"examples": examples}

    attempt = runner.start("sft", endless, inputs)
    wait_for(lambda: has_checkpoint(runner.root, 2))
    ranks = workers(attempt.process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    assert attempt.process.wait(timeout=END_SECONDS) == 1
    assert "[rank 1 of 2] was killed (signal 9)" in last_line(attempt)
    assert are_gone(list(ranks.values()))

    attempt = runner.start("sft", endless, inputs)
    wait_for(lambda: has_checkpoint(runner.root, 10))
    ranks = workers(attempt.process.pid)
    os.killpg(attempt.process.pid, signal.SIGTERM)
    os.killpg(attempt.process.pid, signal.SIGTERM)  # A second one comes where several pass it on.
    assert attempt.process.wait(timeout=END_SECONDS) == 75
    assert "stopped by SIGTERM" in last_line(attempt)
    assert are_gone(list(ranks.values()))

    said = len(attempt.log.read_text(encoding="utf-8"))
    attempt = runner.start("sft", endless, inputs)
    wait_for(lambda: '"rank": 1' in attempt.log.read_text(encoding="utf-8")[said:])
    ranks = workers(attempt.process.pid)
    os.kill(attempt.process.pid, signal.SIGKILL)
    attempt.process.wait(timeout=END_SECONDS)
    wait_for(lambda: are_gone(list(ranks.values())), seconds=END_SECONDS)


def test_two_machines_that_torchrun_joins_make_one_artifact(
    services: Services, s3: Any, tmp_path: Path, config: dict[str, Any], examples: Manifest
) -> None:
    """Each has its own working folder, as a TrainJob's pods have; nobody starts torchrun for them."""
    asked = config | {"nodes": 2, "processes": 1}
    job = launch.plan("sft", asked, Config.model_validate(asked), {"examples": examples}, s3.prefix, "e", "r", "r")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for number in range(job.nodes):
        folder = tmp_path / f"machine-{number}"
        job.write(folder)
        where = ["--nnodes", "2", "--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", port]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *where]
        variables = {**os.environ, **services.environment(), **job.environment, "REASRM_WORKDIR": str(folder / "work")}
        with (folder / "log.txt").open("wb") as log:
            processes.append(
                subprocess.Popen([*command, *job.command(str(folder))], env=variables, stdout=log, stderr=log)
            )
    try:
        for number, process in enumerate(processes):
            text = tmp_path / f"machine-{number}" / "log.txt"
            assert process.wait(timeout=STAGE_SECONDS) == 0, text.read_text(encoding="utf-8")[-4000:]
    finally:
        for process in processes:
            process.kill()
    manifest = Manifest.from_bytes((tmp_path / "machine-0" / "output.json").read_bytes())
    assert manifests(s3, s3.prefix + "/sft") == [f"/{manifest.run_key[:20]}/manifest.json"]
    assert len(runs(services, manifest.run_key)) == 1
    assert not (tmp_path / "machine-1" / "output.json").exists()
