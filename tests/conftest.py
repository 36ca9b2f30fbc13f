"""Real servers for tests that need them: SeaweedFS and MLflow, started once per session on free ports."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.adapters.storage import Storage
from components.core.manifest import Manifest
from pipeline.services import BUCKET, Services


@dataclass(frozen=True)
class Bucket:
    """A connection to the embedded S3 server and a prefix that no other test uses."""

    storage: Storage
    prefix: str


@pytest.fixture(scope="session", autouse=True)
def cheap_stacks() -> Iterator[None]:
    """Whenever a setting of a task is made, kfp asks for the whole stack with its sources, and uses the caller's name.

    That takes seconds a pipeline where torch is loaded, as it is in the process of the tests.
    """
    if importlib.util.find_spec("kfp") is None:  # on a machine that only trains
        yield
        return
    from kfp.dsl import pipeline_task

    def names() -> list[tuple[None, None, None, str]]:
        return [(None, None, None, frame.f_code.co_name) for frame, _ in traceback.walk_stack(sys._getframe(1))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=names))
        yield


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with Services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture
def served(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The servers, with this process's environment pointing at them."""
    for name, value in services.environment().items():
        monkeypatch.setenv(name, value)
    return services


@pytest.fixture
def s3(served: Services) -> Bucket:
    return Bucket(Storage.from_env(), f"s3://{BUCKET}/test-{uuid.uuid4().hex[:12]}")


STAGE_SECONDS = 400.0


@dataclass
class StageProcess:
    """One attempt at a stage, as the real command line that a pod runs."""

    process: "subprocess.Popen[bytes]"
    output: Path
    log: Path

    def finish(self) -> Manifest:
        """Wait for success and return the committed manifest."""
        code = self.process.wait(timeout=STAGE_SECONDS)
        assert code == 0, self.log.read_text(encoding="utf-8")[-4000:]
        return Manifest.from_bytes(self.output.read_bytes())

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """Send SIGKILL as soon as `reached()`; fail if the process ends or nothing happens before."""
        deadline = time.monotonic() + STAGE_SECONDS
        while not reached():
            text = self.log.read_text(encoding="utf-8")[-4000:]
            assert self.process.poll() is None, f"ended with {self.process.returncode} before the kill: {text}"
            assert time.monotonic() < deadline, f"never reached the point of the kill: {text}"
            time.sleep(0.005)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=180)
        assert not self.output.exists()


@dataclass
class StageRunner:
    """Starts stages with a scratch folder and an artifact root of their own, so that two histories cannot meet."""

    directory: Path
    environment: Mapping[str, str]
    root: str

    def start(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, Manifest]) -> StageProcess:
        """Start `python -m components.<stage>`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        named = []
        for name, manifest in inputs.items():
            path = self.directory / f"{name}.manifest.json"
            path.write_bytes(manifest.to_bytes())
            named.append(f"{name}={path}")
        output, log = self.directory / "output.json", self.directory / "log.txt"
        command = [
            sys.executable, "-m", f"components.{stage}", "--config", str(self.directory / "config.json"),
            "--inputs", *named, "--output", str(output), "--artifact-root", self.root,
            "--run-id", self.root.rpartition("test-")[2].replace("/", "-"),
        ]  # fmt: skip
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, env=dict(self.environment), stdout=file, stderr=file, start_new_session=True
            )
        return StageProcess(process, output, log)


@pytest.fixture
def stage_runner(services: Services, s3: Bucket, tmp_path: Path) -> Callable[[str], StageRunner]:
    """Return a maker of runners: one name, one history."""

    def make(name: str) -> StageRunner:
        environment = {**os.environ, **services.environment(), "REASRM_WORKDIR": str(tmp_path / name / "work")}
        return StageRunner(tmp_path / name, environment, f"{s3.prefix}/{name}")

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a real tokenizer and chat template."""
    from pipeline.models import make_tiny_random

    directory = tmp_path_factory.mktemp("models") / "tiny-random"
    make_tiny_random(directory)
    return directory


os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
