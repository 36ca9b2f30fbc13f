"""How the processes that train together are started: in this process, by torchrun on this machine, or by a `Launcher`.

The workers run the stage's own command line; torchrun tells each its rank (`components.adapters.ranks`), and the first
one does what a process alone would do. Nobody but torchrun is needed: on many machines a user starts
`torchrun -m components.<stage> ...` himself, or `components.adapters.trainjob` has pods start it.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import Manifest
from components.core.redact import redact
from components.core.training import TrainingConfig

logger = logging.getLogger(__name__)

STOP_VARIABLE = "REASRM_STOP_SECONDS"
STOP_SECONDS = 300
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
LAUNCHER_VARIABLE = "REASRM_LAUNCHER_PID"
# The kernel kills silently: the agent finds a killed process only after others have noticed that it is gone.
NOTICED_SECONDS = 2.0
STOPPED = "stopped by SIGTERM"
"""How the message of a process that was asked to end begins."""
_FOLDER, _SCRATCH = "{folder}", "{scratch}"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """Processes that run one stage together: everything that a launcher has to know."""

    stage: str
    arguments: tuple[str, ...]
    """Of `python -m components.<stage>`; `{folder}` stands for the folder that holds `files`, `{scratch}` for one that
    may be written to.
    """
    nodes: int
    processes: int | Literal["auto"]
    """On each machine; auto: one a GPU."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What the command reads, by name."""
    key: str = ""
    """The work's run key: jobs of the same stage and key do the same work."""
    run_arguments: tuple[str, ...] = ()
    """More arguments: those that tell runs of the same work apart."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that tell runs of the same work apart."""

    def command(self, folder: str, scratch: str = "") -> list[str]:
        """Return what follows `python` or `torchrun` on the command line; without `scratch` the folder serves as it."""
        places = {_FOLDER: folder, _SCRATCH: scratch or folder}
        arguments = [*self.arguments, *self.run_arguments]
        for name, place in places.items():
            arguments = [part.replace(name, place) for part in arguments]
        return ["-m", f"components.{self.stage}", *arguments]

    def write(self, folder: Path) -> None:
        """Write the files into a new folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


class Launcher(Protocol):
    """Runs a job's processes, here or elsewhere."""

    def launch(self, job: Job) -> None:
        """Return when all have ended well. Raises the error that the first failing one ended with."""


def is_wanted(config: TrainingConfig, launcher: Launcher | None = None) -> bool:
    """Say whether the work is not for this process alone; with a launcher it never is.

    One process that sees several GPUs is launched too: the trainer would else spread over them by threads. SFT with no
    epochs only hands a model on, which one process does.
    """
    if launcher is not None:
        return True
    if _hands_on(config):
        return False
    return config.nodes > 1 or processes_here(config) > 1 or (config.processes == 1 and _num_gpus() > 1)


def processes_here(config: TrainingConfig) -> int:
    """Return how many processes this machine runs."""
    return max(_num_gpus(), 1) if config.processes == "auto" else config.processes


def check(stage: str, config: TrainingConfig, launcher: Launcher | None) -> None:
    """Raise InvalidInput where the processes that are asked for cannot be started from here.

    What a launcher can start it says itself.
    """
    seconds = stop_seconds()
    if launcher is not None:
        return
    if config.nodes > 1:
        raise InvalidInput(
            f"nodes is {config.nodes}, and this process can start others only on its own machine: on Kubeflow take "
            'a profile with training = "trainjob"; or on each machine '
            f"start `TORCH_ELASTIC_SHUTDOWN_TIMEOUT={seconds} torchrun --nnodes={config.nodes} "
            f"--nproc-per-node={config.processes} --rdzv-backend=c10d --rdzv-endpoint=<first machine>:29500 "
            f"--rdzv-id=<one name> -m components.{stage} --config ... --inputs ... --output ...`; or take nodes = 1"
        )
    asked, num_gpus = processes_here(config), _num_gpus()
    if 0 < num_gpus < asked:
        raise InvalidInput(
            f"processes is {asked}, and this machine has {num_gpus} GPUs: each process needs one of its own; lower it, "
            'or take processes = "auto"'
        )


def plan(
    stage: str,
    config: Mapping[str, Any],
    settings: TrainingConfig,
    inputs: Mapping[str, Manifest],
    artifact_root: str,
    experiment: str,
    run_id: str,
    run_name: str,
    *,
    key: str = "",
    launcher: Launcher | None = None,
) -> Job:
    """Return the job whose every process runs the stage's command line with this configuration and these inputs.

    Without a launcher it is for this machine, which is asked for its GPUs.
    """
    files = {"config.json": json.dumps(config, ensure_ascii=False)}
    named = []
    for name, manifest in inputs.items():
        files[f"{name}.manifest.json"] = manifest.to_bytes().decode()
        named.append(f"{name}={_FOLDER}/{name}.manifest.json")
    arguments = [
        "--config", f"{_FOLDER}/config.json", "--inputs", *named, "--output", f"{_SCRATCH}/output.json",
        "--artifact-root", artifact_root,
    ]  # fmt: skip
    nodes, processes = settings.nodes, settings.processes
    if _hands_on(settings):
        nodes, processes = 1, 1
    return Job(
        stage,
        tuple(arguments),
        nodes,
        processes_here(settings) if launcher is None and nodes == 1 else processes,
        files,
        key,
        ("--experiment", experiment, "--run-id", run_id),
        {"REASRM_RUN_NAME": run_name},
    )


@dataclass(frozen=True)
class Torchrun:
    """torchrun's agent in this process, for the processes of this machine; `folder` is for the job's files."""

    folder: Path

    def launch(self, job: Job) -> None:
        """Run the processes to their end.

        SIGTERM and Ctrl-C go on to them, and they get REASRM_STOP_SECONDS to write a checkpoint before they are killed.
        """
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        if not isinstance(job.processes, int) or job.nodes > 1:
            raise ValueError(f"{job.processes} processes on {job.nodes} machines are not for this machine alone")
        folder = self.folder.absolute()
        job.write(folder)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=job.processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
            # What this process does on SIGTERM and Ctrl-C ends the workers too; the agent's own handler would be
            # interrupted by a second SIGTERM and leave them. It must have some signal.
            signals_to_handle="SIGQUIT",
            shutdown_timeout=stop_seconds(),
        )
        logger.info("%s: %s processes by torchrun", job.stage, job.processes)
        try:
            with _surroundings(_variables(job)):
                elastic_launch(config, sys.executable)(*job.command(str(folder)))
        except ChildFailedError as error:
            failures = [Failure.of(rank, failure) for rank, failure in error.failures.items()]
            raise first(failures).error(job.processes) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Failure:
    """How one of the processes ended; `moment` in seconds since the epoch."""

    rank: int
    exit_code: int
    moment: float
    message: str = ""

    @classmethod
    def of(cls, rank: int, failure: Any) -> "Failure":
        """Read what the agent found, and what the process left behind by `report_failure`."""
        left = failure.error_file_data
        if "moment" in left:
            return cls(rank, failure.exitcode, float(left["moment"]), str(left["message"]))
        found = cls(rank, failure.exitcode, failure.timestamp)
        return found if found.is_crash else replace(found, moment=found.moment - NOTICED_SECONDS)

    @property
    def is_crash(self) -> bool:
        """Say whether it ended itself by a signal: on its own, or as NCCL does when another one is gone (SIGABRT)."""
        return self.exit_code < 0 and not self.message and -self.exit_code not in (signal.SIGKILL, signal.SIGTERM)

    @property
    def is_stopped(self) -> bool:
        """Say whether it ended because it was asked to."""
        return self.exit_code == -signal.SIGTERM or self.message.startswith(STOPPED)

    def error(self, num_processes: int) -> ReasrmError:
        """Return the error that this process ended with, under its rank."""
        who = f"[rank {self.rank} of {num_processes}]"
        if self.message:
            kinds = {kind.exit_code: kind for kind in (InvalidInput, Transient)}
            return kinds.get(self.exit_code, ReasrmError)(f"{who} {self.message}")
        if self.exit_code == -signal.SIGTERM:
            return Transient(f"{who} was stopped by SIGTERM; run again to go on from the last checkpoint")
        if self.exit_code == -signal.SIGKILL:
            return ReasrmError(
                f"{who} was killed (signal 9), most likely because the machine or the container ran out of memory: "
                "set gradient_checkpointing or give it more memory, then run again to go on from the last checkpoint"
            )
        how = f"by signal {-self.exit_code}" if self.exit_code < 0 else f"with exit code {self.exit_code}"
        return ReasrmError(f"{who} ended {how} without a word; its last lines in the log say more")


def first(failures: Sequence[Failure]) -> Failure:
    """Return the failure that the others follow from: the earliest; SIGTERM is how the agent ends the others.

    A crash says least, and often follows from what another process could still say.
    """

    def order(failure: Failure) -> tuple[bool, float, int]:
        return failure.exit_code == -signal.SIGTERM, failure.moment, failure.rank

    crashes = [failure for failure in failures if failure.is_crash]
    told = min((failure for failure in failures if not failure.is_crash), key=order, default=None)
    if told is None or told.is_stopped:
        return min([*crashes, *([told] if told else [])], key=order)
    return told


def report_failure(error: BaseException) -> None:
    """Leave an error where torchrun looks for it; without torchrun there is nothing to do."""
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if not path:
        return
    name = "" if isinstance(error, ReasrmError) else f"{type(error).__name__}: "
    moment = time.time()
    left = {"message": redact(f"{name}{error}"), "timestamp": int(moment), "moment": moment}
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_text(json.dumps(left), encoding="utf-8")
        temporary.replace(path)
    except OSError as problem:
        logger.warning("torchrun is not told of the error: %s", problem)


def end_with_launcher() -> None:
    """Let the kernel end this process when the agent that started it dies (on Linux): orphans would keep the GPUs.

    Ends it now if a launcher of ours is dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is not None and launcher != str(os.getppid()):
        sys.exit(f"the process {launcher} that started this one is gone")


def _hands_on(config: TrainingConfig) -> bool:
    return getattr(config, "epochs", None) == 0  # a setting of SFT alone


def _num_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def stop_seconds() -> int:
    """Return how long processes that are asked to stop have for a checkpoint. Raises InvalidInput on nonsense."""
    text = os.environ.get(STOP_VARIABLE, str(STOP_SECONDS))
    if not text.isdecimal():
        raise InvalidInput(f"{STOP_VARIABLE} is {text!r}; give whole seconds, such as {STOP_SECONDS}")
    return int(text)


def _variables(job: Job) -> dict[str, str]:
    """Return the variables of the workers here: they find this code, and share the cores."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // int(job.processes)))
    return {**job.environment, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, LAUNCHER_VARIABLE: str(os.getpid())}


@contextmanager
def _surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the workers, which inherit them; afterwards restore these and what the agent changes."""
    before, handler = dict(os.environ), signal.getsignal(signal.SIGQUIT)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGQUIT, handler)
