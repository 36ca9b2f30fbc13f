"""What is planned for several processes, and which of their failures the user is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from components.adapters import launch, ranks
from components.adapters.follow import follow_stage
from components.adapters.launch import Failure
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import Manifest
from components.core.training import TrainingConfig
from components.sft.config import Config as SftConfig

MANIFEST = Manifest(
    kind="pairs", stage="prepare", uri="s3://b/ü", run_key="k", code_version="1", config={}, files=()
)  # fmt: skip


def settings(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(values)


@pytest.mark.parametrize(
    ("num_gpus", "values", "processes", "wanted"),
    [
        (0, {}, 1, False),
        (1, {}, 1, False),
        (8, {}, 8, True),
        (0, {"processes": 2}, 2, True),
        (8, {"processes": 1}, 1, True),  # else the trainer would spread over all eight by threads
        (0, {"nodes": 2}, 1, True),
    ],
)
def test_one_process_a_gpu(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, values: dict[str, Any], processes: int, wanted: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert launch.processes_here(settings(**values)) == processes
    assert launch.is_wanted(settings(**values)) is wanted


def test_handing_a_model_on_is_the_work_of_one_process() -> None:
    asked = {"base_model": "m", "processes": 2}
    assert launch.is_wanted(SftConfig.model_validate(asked))
    assert not launch.is_wanted(SftConfig.model_validate(asked | {"epochs": 0}))


class Elsewhere:
    """A launcher that keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[launch.Job] = []

    def launch(self, job: launch.Job) -> None:
        self.jobs.append(job)


def test_with_a_launcher_all_training_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks for the GPUs of this machine then: it may have no torch."""
    monkeypatch.setattr(launch, "_num_gpus", lambda: pytest.fail("torch was asked"))
    elsewhere = Elsewhere()
    hands_on = SftConfig.model_validate({"base_model": "m", "nodes": 2, "processes": 2, "epochs": 0})
    for asked, planned in (
        (settings(), (1, "auto")),
        (settings(nodes=4, processes=8), (4, 8)),
        (hands_on, (1, 1)),
    ):
        assert launch.is_wanted(asked, elsewhere)
        launch.check("sft", asked, elsewhere)
        job = launch.plan("sft", {}, asked, {}, "s3://b/root", "e", "r", "name", key="k", launcher=elsewhere)
        assert (job.nodes, job.processes, job.key) == (*planned, "k")
    first = launch.plan("sft", {}, settings(), {}, "s3://b/root", "e", "run 1", "a", key="k", launcher=elsewhere)
    second = launch.plan("sft", {}, settings(), {}, "s3://b/root", "f", "run 2", "b", key="k", launcher=elsewhere)
    assert first != second
    assert (first.arguments, first.files) == (second.arguments, second.files)


def test_what_cannot_be_started_from_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch.check("sft", settings(processes=2), None)
    with pytest.raises(InvalidInput, match="processes is 4, and this machine has 2 GPUs"):
        launch.check("sft", settings(processes=4), None)
    monkeypatch.setenv("REASRM_STOP_SECONDS", "5m")
    with pytest.raises(InvalidInput, match="REASRM_STOP_SECONDS is '5m'"):
        launch.check("sft", settings(processes=2), None)


def test_a_job_carries_all_that_its_command_reads(tmp_path: Path) -> None:
    asked = {"nodes": 3, "base_model": "ü"}
    planned = launch.plan("grpo", asked, settings(nodes=3), {"pairs": MANIFEST}, "s3://b/root", "e", "r 1", "name")
    folder = tmp_path / "a job"
    planned.write(folder)
    module, stage, *arguments = planned.command(str(folder))
    named = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (module, stage) == ("-m", "components.grpo")
    assert json.loads(Path(named["--config"]).read_text(encoding="utf-8")) == asked
    name, _, path = named["--inputs"].partition("=")
    assert (name, Manifest.from_bytes(Path(path).read_bytes())) == ("pairs", MANIFEST)
    assert (named["--artifact-root"], named["--experiment"], named["--run-id"]) == ("s3://b/root", "e", "r 1")
    assert Path(named["--output"]).parent == folder
    assert (planned.nodes, planned.processes) == (3, "auto")


def found(tmp_path: Path, rank: int, exit_code: int, at: float, error: BaseException | None = None) -> Failure:
    """Return what is known of a process that ended `at` seconds, by torch's own reading."""
    path = tmp_path / f"{rank}.json"
    if error is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
            patch.setattr(time, "time", lambda: at)
            launch.report_failure(error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: at)
        return Failure.of(rank, ProcessFailure(local_rank=rank, pid=1, exitcode=exit_code, error_file=str(path)))


STOPPED = Transient("stopped by SIGTERM")
LOST = RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("ends", "kind", "message"),
    [
        ([(2, 9.0, InvalidInput("raise it")), (75, 9.1, STOPPED)], InvalidInput, "[rank 0 of 2] raise it"),
        ([(75, 9.6, STOPPED), (1, 9.5, KeyError("x"))], ReasrmError, "[rank 1 of 2] KeyError: 'x'"),
        ([(75, 9.5, Transient("S3 is away")), (-15, 9.5, None)], Transient, "[rank 0 of 2] S3 is away"),
        # Who was killed is found a little after the others have noticed it,
        ([(1, 9.5, LOST), (-9, 9.9, None)], ReasrmError, "[rank 1 of 2] was killed (signal 9)"),
        # and the agent itself kills who does not end after the first failure.
        ([(1, 9.5, ReasrmError("no disk")), (-9, 39.5, None)], ReasrmError, "[rank 0 of 2] no disk"),
        ([(-15, 9.5, None), (-15, 9.5, None)], Transient, "[rank 0 of 2] was stopped by SIGTERM"),
        ([(-11, 9.5, None), (75, 9.6, STOPPED)], ReasrmError, "[rank 0 of 2] ended by signal 11"),
        # NCCL aborts a process that has lost another one, without a word of its own.
        ([(1, 9.9, KeyError("x")), (-6, 10.1, None)], ReasrmError, "[rank 0 of 2] KeyError: 'x'"),
        ([(1, 9.5, LOST), (-6, 9.4, None), (-9, 9.9, None)], ReasrmError, "[rank 2 of 2] was killed"),
        ([(75, 9.5, STOPPED), (-6, 11.5, None)], Transient, "[rank 0 of 2] stopped by SIGTERM"),
        ([(-6, 9.5, None), (-15, 9.6, None)], ReasrmError, "[rank 0 of 2] ended by signal 6"),
        ([(3, 9.5, None), (-15, 9.6, None)], ReasrmError, "[rank 0 of 2] ended with exit code 3"),
    ],
)
def test_the_user_is_told_of_the_failure_that_the_others_follow_from(
    tmp_path: Path, ends: list[tuple[int, float, BaseException | None]], kind: type[ReasrmError], message: str
) -> None:
    failures = [found(tmp_path, rank, code, 1e9 + at, error) for rank, (code, at, error) in enumerate(ends)]
    error = launch.first(failures).error(2)
    assert type(error) is kind
    assert str(error).startswith(message)


def test_a_reported_failure_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "very-secret-value")
    failure = found(tmp_path, 0, 1, 1e9, ReasrmError("refused very-secret-value"))
    assert failure.message == "refused ***"


def test_a_part_of_a_place_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "there",
        "GROUP_RANK": "2",
        "LOCAL_WORLD_SIZE": "3",
    }.items():
        monkeypatch.setenv(name, value)
    ranks.forget_strays()
    assert not ranks.launched()
    assert (ranks.rank(), ranks.world_size(), os.environ.get("MASTER_ADDR")) == (0, 1, None)
    assert (ranks.node(), ranks.num_nodes()) == (0, 1)


def test_a_stage_of_one_process_refuses_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(ranks.PLACE, ("1", "1", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="filter is the work of one process"):
        follow_stage("filter", {}, {}, artifact_root="s3://nowhere/x")


FETCHING = """
import pathlib, sys, time
from components.adapters.ranks import fetch_once
folder = pathlib.Path(sys.argv[1])
def fetch():
    folder.mkdir(exist_ok=True)
    with (folder / "fetched").open("a") as file:
        file.write(sys.argv[2])
    time.sleep(0.3)
fetch_once(folder, sys.argv[2], fetch)
assert sys.argv[2] in (folder / "fetched").read_text()
"""


def test_processes_of_one_machine_fetch_once(tmp_path: Path) -> None:
    place = dict(zip(ranks.PLACE, ("0", "0", "2", "127.0.0.1", "29500"), strict=True))
    command = [sys.executable, "-c", FETCHING, str(tmp_path / "base")]
    root = str(Path(launch.__file__).parents[2])
    started = [
        subprocess.Popen([*command, what], env=os.environ | place | {"PYTHONPATH": root})
        for what in ("a", "b", "a", "a")
    ]
    assert [process.wait(timeout=180) for process in started] == [0, 0, 0, 0]
    assert sorted((tmp_path / "base" / "fetched").read_text()) == ["a", "b"]


def test_what_an_earlier_launch_fetched_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the moment at which the agent began may be the same in a restarted container with its old disk."""
    for name, value in zip(ranks.PLACE, ("0", "0", "2", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    folder, fetched = tmp_path / "base", []

    def fetch() -> None:
        folder.mkdir(exist_ok=True)
        fetched.append("a")

    for _ in range(2):
        ranks.fetch_once(folder, "a", fetch)
    assert fetched == ["a"]
    mark = tmp_path / ".base.fetched"
    began = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    assert f" {began} " in mark.read_text()
    mark.write_text(mark.read_text().replace(f" {began} ", f" {int(began) - 1} "))
    ranks.fetch_once(folder, "a", fetch)
    assert fetched == ["a", "a"]


WORKER = """
import time
from components.adapters.launch import end_with_launcher
end_with_launcher()
print("on", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(worker.pid, flush=True)
worker.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_worker_ends_with_its_launcher() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(launch.__file__).parents[2])}
    command = [sys.executable, "-c", LAUNCHER, WORKER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    worker, said = int(process.stdout.readline()), process.stdout.readline()
    assert said == "on\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=180)  # The pipe closes only when the worker has ended too.
    assert not Path(f"/proc/{worker}/fd/1").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_worker_whose_launcher_is_gone_already_ends() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(launch.__file__).parents[2]), launch.LAUNCHER_VARIABLE: "1"}
    command = [sys.executable, "-c", WORKER]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=180)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "the process 1 that started this one is gone\n"
