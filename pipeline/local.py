"""The same DAG on this machine: an S3 server, an MLflow server and kfp.local, with everything in one folder.

What a run did is read from the files that its stages wrote (status, manifests), not from kfp's return value: that
says only that some task failed.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.adapters import origin
from components.adapters.stage import RUN_ID_VARIABLE, RUN_NAME_VARIABLE
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import STAGES, Manifest
from pipeline.config import RunConfig
from pipeline.execute import PARAMETERS_FILE, TASK_OUTPUTS
from pipeline.revision import revision

SHOWN = ("preflight", *STAGES)
"""What a user is shown, in the order of the work."""
DEFAULT_DIRECTORY = Path(".reasrm")
POLL_SECONDS = 0.2
STOP_SECONDS = 20.0
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
_FAILURES: Mapping[str, type[ReasrmError]] = {"InvalidInput": InvalidInput, "Transient": Transient}

Statuses = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One run's folder and what its stages have said so far."""

    run_id: str
    recipe: str
    config: RunConfig
    folder: Path
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """kfp's own output."""
        return self.folder / "logs" / "kfp.log"

    @property
    def report(self) -> Path:
        """The report that publish wrote."""
        return self.folder / "report.html"

    @property
    def benchmark_report(self) -> Path:
        """The report that the benchmark wrote."""
        return self.folder / "benchmark.html"

    def stage_log(self, stage: str) -> Path:
        """All that a stage's process wrote."""
        return self.folder / "logs" / f"{stage}.log"

    def read_statuses(self) -> Statuses:
        """Read what the stages say now; files are replaced whole, so each is valid."""
        for path in (self.folder / "status").glob("*.json"):
            with contextlib.suppress(OSError):
                self.statuses[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return self.statuses

    def manifest(self, stage: str) -> Manifest | None:
        """Return the manifest that a stage's task handed on, or None if it did not get that far."""
        paths = (path for path in self._outputs(f"{stage}*") if path.is_file())
        for path in paths:
            with contextlib.suppress(ValueError):
                return Manifest.from_bytes(path.read_bytes())
        return None

    @property
    def nothing_new(self) -> str:
        """Why the run ended after its first stage, as there was nothing to learn; empty if it did not."""
        prepared = self.manifest("prepare")
        found = prepared is not None and prepared.statistics.get("nothing_new")
        return str(prepared.statistics["summary"]) if prepared and found else ""

    def output(self, task: str, name: str) -> Path | None:
        """Return the file of one of a task's outputs."""
        return next((path for path in self._outputs(f"{task}*") if path.name == name), None)

    def _outputs(self, task: str) -> Iterator[Path]:
        return (self.folder / TASK_OUTPUTS).glob(f"**/{task}/*")


class Watcher:
    """Sees a run as it goes; this one keeps quiet, `pipeline.screen` draws."""

    def begin(self, run: Run) -> None:
        """Take note that a run has its folder."""

    def say(self, what: str) -> None:
        """Take note of what is being got ready."""

    def update(self, run: Run) -> None:
        """Take note of what the stages say, a few times a second."""

    def end(self, run: Run) -> None:
        """Take note that nothing changes any more."""


def run_local(
    config: RunConfig,
    directory: Path = DEFAULT_DIRECTORY,
    *,
    recipe: str = "custom",
    watcher: Watcher | None = None,
) -> Run:
    """Run the whole pipeline on this machine and return what came of it.

    Finished work found in the folder's object store is used again. Raises InvalidInput, Transient or ReasrmError with
    the failing stage's message and the path of its log; KeyboardInterrupt stops the running stage and the servers.
    """
    watcher = watcher or Watcher()
    directory = directory.absolute()
    config = config.model_copy(update={"base_model": _local_model(config.base_model, directory)})
    config = RunConfig.model_validate(_settings(config))
    run = _new_run(config, directory, recipe)
    watcher.begin(run)
    try:
        with _base_model(run, watcher) as model_is_ready:
            watcher.say("starting the S3 and MLflow servers")
            with _services(directory) as environment:
                model_is_ready()
                watcher.say("")
                code = _execute(run, environment | _task_environment(run, directory), lambda: watcher.update(run))
        run.read_statuses()
        watcher.update(run)
        _raise_for_failure(run, code)
        _keep_reports(run, directory)
    finally:
        watcher.end(run)
    return run


def _settings(config: RunConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json", exclude=set(STAGES))
    return plain | {stage: config.stage_settings(stage) for stage in STAGES}


def _new_run(config: RunConfig, directory: Path, recipe: str) -> Run:
    run_id = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run = Run(run_id, recipe, config, directory / "runs" / run_id)
    for name in ("status", "logs", TASK_OUTPUTS):
        (run.folder / name).mkdir(parents=True)
    (run.folder / PARAMETERS_FILE).write_text(json.dumps(config.arguments(), indent=1), encoding="utf-8")
    return run


def _local_model(reference: str, directory: Path) -> str:
    """Return the base model's reference, with the default folder in it replaced by the one that is used.

    Raises InvalidInput if it is a path where there is nothing and nothing can be made.
    """
    from pipeline.models import MAKERS

    if reference.startswith("s3://") or _HUB_ID.fullmatch(reference):
        return reference
    path = Path(reference)
    if path.parts[:1] == (DEFAULT_DIRECTORY.name,) and directory != DEFAULT_DIRECTORY.absolute():
        path = directory.joinpath(*path.parts[1:])
    if path.is_dir() or (path.absolute().parent == directory / "models" and path.name in MAKERS):
        return str(path)
    made = ", ".join(f"{DEFAULT_DIRECTORY}/models/{name}" for name in MAKERS)
    raise InvalidInput(
        f"base model {reference!r} does not exist; give a folder with a model, an s3:// uri, a hub id with "
        f"@<40 hex digits> as revision, or one that is made on the spot: {made}"
    )


@contextlib.contextmanager
def _base_model(run: Run, watcher: Watcher) -> Iterator[Callable[[], None]]:
    """Make the base model in a process of its own if it is not there yet; call the yielded function to wait for it."""
    path = Path(run.config.base_model)
    if run.config.base_model.startswith("s3://") or path.is_dir() or path.name not in _makers():
        yield lambda: None
        return
    command = [sys.executable, "-m", "pipeline.models", path.name, str(path)]
    log = run.stage_log("base_model")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=_python_environment())

    def wait() -> None:
        watcher.say(f"making the base model {path.name}")
        if process.wait() == InvalidInput.exit_code:
            raise InvalidInput(_last_line(log))
        if process.returncode:
            raise ReasrmError(f"could not make the base model {path}: {_last_line(log)}\nlog: {log}")

    try:
        yield wait
    finally:
        process.kill()
        process.wait()


def _makers() -> Mapping[str, object]:
    from pipeline.models import MAKERS

    return MAKERS


@contextlib.contextmanager
def _services(directory: Path) -> Iterator[dict[str, str]]:
    from pipeline.services import Services

    with Services(directory) as services:
        yield services.environment()


def _python_environment() -> dict[str, str]:
    """Return the environment for a Python process that finds this code, wherever it runs from."""
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _task_environment(run: Run, directory: Path) -> dict[str, str]:
    return {
        RUN_ID_VARIABLE: run.run_id,
        RUN_NAME_VARIABLE: run.run_id,
        origin.RECIPE: run.recipe,
        origin.COMMIT: revision(),
        "REASRM_STATUS": str(run.folder / "status"),
        "REASRM_LOGS": str(run.folder / "logs"),
        "REASRM_WORKDIR": str(directory / "work"),
    }


def _execute(run: Run, environment: Mapping[str, str], on_poll: Callable[[], None]) -> int:
    """Run the DAG in a process group of its own and return its exit code; on an interrupt, stop the whole group."""
    command = [sys.executable, "-m", "pipeline.execute", str(run.folder)]
    with run.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_python_environment() | dict(environment),
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            run.read_statuses()
            on_poll()
    finally:
        if process.poll() is None:
            _stop(run, process)
        if not run.stage_log("report").exists():
            _close_tracking(run, environment)
    return process.returncode


def _stop(run: Run, process: "subprocess.Popen[bytes]") -> None:
    """Ask the group to end, so that the running stage commits what it has; after STOP_SECONDS end it for certain."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if all(status["status"] != "running" for status in run.read_statuses().values()):
                break
            time.sleep(POLL_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _close_tracking(run: Run, environment: Mapping[str, str]) -> None:
    """Close the pipeline's run in MLflow where the exit handler had no chance to."""
    from components.adapters.pipeline_run import finish_parent

    os.environ.update(environment)
    finish_parent(run.run_id, run.config.experiment, "KILLED", {})


def _raise_for_failure(run: Run, code: int) -> None:
    tasks: tuple[str, ...] = (*SHOWN[:-1], "gate", SHOWN[-1])
    if run.nothing_new:
        tasks = tasks[: tasks.index("prepare") + 1]
    unfinished = [task for task in tasks if run.statuses.get(task, {}).get("status") not in {"done", "reused"}]
    if not unfinished and code == 0:
        return
    if not unfinished:
        raise ReasrmError(f"all stages are done, but the pipeline failed: {_last_line(run.log)}\nlog: {run.log}")
    stage = unfinished[0]
    status = run.statuses.get(stage, {})
    log = run.stage_log(stage) if run.stage_log(stage).exists() else run.log
    if status.get("status") == "failed":
        error = _FAILURES.get(str(status.get("error")), ReasrmError)
        raise error(f"{stage} failed: {status['summary']}\nlog: {log}")
    what = "was killed (out of memory?)" if status else "did not start"
    raise ReasrmError(f"{stage} {what}: {_last_line(log)}\nlog: {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it wrote nothing"


def _keep_reports(run: Run, directory: Path) -> None:
    """Put the reports where a reader finds them: in the run's folder, and the newest at the top."""
    for task, kept in (("publish", run.report), ("benchmark", run.benchmark_report)):
        report = run.output(task, "report")
        if report is not None:
            shutil.copyfile(report, kept)
            shutil.copyfile(report, directory / kept.name)


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[dict[str, str]]:
    """Start a folder's servers, or find them running, and let this process reach them."""
    with _services(directory) as environment:
        os.environ.update(environment)
        yield environment
