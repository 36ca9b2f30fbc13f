"""The one way into a stage, whoever starts it: a KFP task, `python -m components.<stage>`, or a test.

`run_stage` validates the configuration before anything heavy is imported, names the work by its run key, returns at
once when that work is already committed, and otherwise calls the stage's `run` and commits what it wrote.
"""

import fcntl
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

import components
from components.adapters import launch, ranks
from components.adapters.progress import Progress
from components.adapters.untold import Shelf
from components.core.config import StageConfig
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import Manifest, Parent, describe, parents_of, run_key, started_from
from components.core.records import explain
from components.core.redact import redact
from components.core.training import TrainingConfig

if TYPE_CHECKING:
    from components.adapters.storage import Storage
    from components.adapters.tracking import StageRun

logger = logging.getLogger(__name__)

WORKDIR_VARIABLE = "REASRM_WORKDIR"
WORKDIR = ".reasrm/work"
RUN_ID_VARIABLE = "REASRM_RUN_ID"
RUN_NAME_VARIABLE = "REASRM_RUN_NAME"
KEY_LENGTH = 20
COPIES = ("inputs", "sources", "base", "judges")
"""Folders of a stage's working folder with nothing in them that does not lie in S3 or on a hub too."""


@dataclass(frozen=True)
class Inputs(Mapping[str, Manifest]):
    """The artifacts a stage reads, by name."""

    manifests: Mapping[str, Manifest]
    storage: "Storage"
    directory: Path

    def __getitem__(self, name: str) -> Manifest:
        if name not in self.manifests:
            raise InvalidInput(f"the input {name!r} is missing, given are {sorted(self.manifests)}; add it to --inputs")
        return self.manifests[name]

    def __contains__(self, name: object) -> bool:
        return name in self.manifests

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifests)

    def __len__(self) -> int:
        return len(self.manifests)

    def fetch(self, name: str, only: list[str] | None = None) -> Path:
        """Download an input's files (all, or those named) and return their folder; every sha256 has been checked."""
        manifest, folder = self[name], self.directory / name
        what = f"{manifest.digest} {only}"
        return ranks.fetch_once(folder, what, lambda: self.storage.fetch(manifest, folder, only=only))


@dataclass
class Output:
    """Where a stage puts its result, and its lines to the outside while it works."""

    uri: str
    directory: Path
    workdir: Path
    storage: "Storage"
    tracking: "StageRun"
    progress: Progress
    run_key: str
    summary: str = ""
    sources: Sequence[Mapping[str, Any]] = ()
    """What the stage reads beside its inputs, as it went into the run key: uri and sha256."""

    def partial_uri(self, name: str) -> str:
        """Return where work in progress called `name` lives: below the output, but no part of it."""
        return f"{self.uri}/partial/{name}"

    def read_partial(self, name: str) -> bytes | None:
        """Return work that an earlier attempt committed under this name, or None."""
        return self.storage.read_bytes(self.partial_uri(name))

    def once(self, name: str, decide: Callable[[], str]) -> str:
        """Return what the first attempt at this work decided, so that a resumed one goes on in the same way."""
        decided = self.read_partial(name)
        if decided is None:
            self.write_partial(name, decide().encode())
            decided = self.read_partial(name) or b""  # of two writers the first wins
        return decided.decode()

    def write_partial(self, name: str, data: bytes) -> None:
        """Commit a piece of work; the first writer wins, so a second attempt cannot change what was built upon."""
        self.storage.write_bytes(self.partial_uri(name), data, if_absent=True)


@dataclass(frozen=True)
class StageResult:
    """What `run_stage` gives back: the committed manifest, and whether it was there before."""

    manifest: Manifest
    reused: bool


@dataclass(frozen=True)
class Work:
    """A stage's work, with its name and its places; every process that takes part comes to the same."""

    stage: str
    settings: StageConfig
    inputs: Mapping[str, Manifest]
    parents: Mapping[str, Parent]
    sources: Sequence[dict[str, Any]] | None
    version: str
    key: str
    uri: str
    workdir: Path
    storage: "Storage"

    def committed(self) -> Manifest | None:
        """Return the manifest of this work if it is done."""
        return self.storage.open(self.uri)

    def run(self, directory: Path, tracking: "StageRun", progress: Progress) -> tuple[dict[str, Any], Output]:
        """Call the stage's `run` with an empty output folder; return its statistics and what it said about them."""
        inputs, output = self.places(directory, tracking, progress)
        stage = importlib.import_module(f"components.{self.stage}.run")
        return stage.run(self.settings, inputs, output), output

    def places(self, directory: Path, tracking: "StageRun", progress: Progress) -> tuple[Inputs, Output]:
        """Return what the work reads, and where its result goes: `directory`, which is emptied."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        output = Output(
            self.uri, directory, self.workdir, self.storage, tracking, progress, self.key, sources=self.sources or ()
        )
        return Inputs(self.inputs, self.storage, self.workdir / "inputs"), output

    def clear(self, folders: Sequence[str]) -> None:
        """Delete folders below the working folder."""
        for folder in folders:
            shutil.rmtree(self.workdir / folder, ignore_errors=True)


def name_work(stage: str, settings: StageConfig, inputs: Mapping[str, Manifest], artifact_root: str) -> Work:
    """Name a piece of work by all that decides its result. Raises what the storage and the stage's sources raise."""
    from components.adapters.storage import Storage

    if ranks.world_size() > 1 and not isinstance(settings, TrainingConfig):
        raise InvalidInput(f"{stage} is the work of one process, and torchrun started several; start it without")
    storage = Storage.from_env()
    storage.ensure_bucket(artifact_root)
    parents = parents_of(inputs)
    sources = _sources(stage, settings, storage)
    version = code_version(stage)
    key = run_key(stage, settings.decisive(), parents, version, sources)
    uri = f"{artifact_root.rstrip('/')}/{stage}/{key[:KEY_LENGTH]}"
    workdir = Path(os.environ.get(WORKDIR_VARIABLE, WORKDIR)) / f"{stage}-{key[:KEY_LENGTH]}"
    return Work(stage, settings, inputs, parents, sources, version, key, uri, workdir, storage)


def run_stage(
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Manifest],
    *,
    artifact_root: str,
    experiment: str,
    run_id: str,
    run_name: str = "",
    launcher: launch.Launcher | None = None,
    content: str = "",
) -> StageResult:
    """Do a stage's work once and return its committed manifest.

    `content` is what `content_of` gave before the run began. What is read now has to be the same: KFP's cache knows
    this work by it.

    Work that wants several processes is handed to torchrun, and all work to `launcher` where there is one; each process
    comes back here, the first one for the work below and the others to `follow.follow_stage`.

    Raises:
        InvalidInput: the configuration, an input or the set-up has to be changed; nothing heavy was imported yet
            where that could be known.
        Transient: S3, MLflow or a teacher is not there for now, or the process was asked to stop.
    """
    settings = load_config(stage, config)
    progress = Progress(stage)
    try:
        work = name_work(stage, settings, inputs, artifact_root)
        check_content(work, content)
        together = _launched_from_here(work, launcher)
        if together is not None:
            launch.check(stage, together, launcher)
            job = launch.plan(
                stage,
                config,
                together,
                inputs,
                artifact_root,
                experiment,
                run_id,
                run_name,
                key=work.key,
                launcher=launcher,
            )
            with exclusive(work.workdir / "launch") as folder:
                (launcher or launch.Torchrun(folder / "job")).launch(job)
            return StageResult(_result_of(work), reused=False)
        shelf = Shelf.of(work.storage, artifact_root, run_id, work.workdir)
        with exclusive(work.workdir), tracked(run_id, run_name, stage, experiment, work.workdir, shelf) as tracking:
            describe_work(work, tracking)
            committed = work.committed()
            if committed is not None:
                tracking.log_reused(committed)
                progress.end("reused", str(committed.statistics.get("summary", "")), uri=work.uri)
                return StageResult(committed, reused=True)
            statistics, output = work.run(work.workdir / "output", tracking, progress)
            ranks.leave()  # Nothing is committed unless all processes came this far.
            if work.sources is not None:
                statistics.setdefault("sources", work.sources)
            manifest = Manifest(
                kind=settings.kind,
                stage=stage,
                uri=work.uri,
                run_key=work.key,
                code_version=work.version,
                config=settings.model_dump(mode="json"),
                files=describe(output.directory),
                parents=dict(work.parents),
                statistics={**statistics, "summary": output.summary},
            )
            work.storage.commit(manifest, output.directory)
            tracking.log_output(manifest)
            if manifest.kind == "model":
                tracking.log_model(stage, manifest.uri, manifest.digest)
        work.clear((*COPIES, "output", "followers"))
        progress.end("done", output.summary, uri=work.uri)
        return StageResult(manifest, reused=False)
    except BaseException as error:
        kind = Transient if isinstance(error, Stopped) else type(error)
        progress.end("failed", redact(str(error)) or kind.__name__, error=kind.__name__)
        raise


def _launched_from_here(work: Work, launcher: launch.Launcher | None) -> TrainingConfig | None:
    """Return the settings of work that is still to be done and that wants processes which this one has to start."""
    settings = work.settings
    if not isinstance(settings, TrainingConfig) or ranks.launched() or work.committed() is not None:
        return None
    return settings if launch.is_wanted(settings, launcher) else None


def describe_work(work: Work, tracking: "StageRun") -> None:
    """Tell MLflow what this work is and what it reads."""
    tracking.set_tags({"reasrm.run_key": work.key, "reasrm.code_version": work.version})
    tracking.log_params({work.stage: work.settings.model_dump(mode="json")})
    describe_inputs(work.stage, work.inputs, tracking)
    for source in work.sources or ():
        tracking.log_source(str(source["uri"]), str(source["sha256"]))
    for name, start in started_from(work.stage, work.settings.model_dump(), work.sources or ()).items():
        tracking.use_model(start.digest, name=name, uri=start.uri)


def describe_inputs(stage: str, inputs: Mapping[str, Manifest], tracking: "StageRun") -> None:
    """Tell MLflow which artifacts a stage reads."""
    for name, parent in inputs.items():
        tracking.log_input(name, parent, context=stage)
        if parent.kind == "model":
            tracking.use_model(parent.digest, name=name, uri=parent.uri)


def _result_of(work: Work) -> Manifest:
    manifest = work.committed()
    if manifest is None:
        raise ReasrmError(
            f"the processes of {work.stage} ended well, but there is no manifest at {work.uri}: they worked with other "
            "code, another base model or another storage than this one; see that all machines have the same"
        )
    return manifest


def load_config(stage: str, config: Mapping[str, Any]) -> StageConfig:
    """Return the stage's validated configuration. Raises InvalidInput naming each field that is wrong."""
    model: type[StageConfig] = importlib.import_module(f"components.{stage}.config").Config
    try:
        return model.model_validate_json(json.dumps(config))
    except ValidationError as error:
        raise InvalidInput(f"the configuration of stage {stage!r} is not valid: {explain(error)}") from error


def code_version(stage: str) -> str:
    """Return the version and a digest of the code that decides this stage's result: its folder, core and adapters."""
    root = Path(components.__file__).parent
    digest = hashlib.sha256()
    for folder in ("adapters", "core", stage):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".txt", ".jinja"}:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def check_content(work: Work, content: str) -> None:
    """Raise InvalidInput if the work's code or what it reads is not what `content` (of `content_of`) stands for.

    An empty one stands for anything.
    """
    if content and content != _content(work.version, work.sources, work.storage):
        uris = ", ".join(str(source["uri"]) for source in work.sources or ())
        raise InvalidInput(
            f"{f'{uris}, or ' if uris else ''}the code of {work.stage} is not what it was when this run began. If its "
            "data changed, start a new run, which uses again what still holds; if it did not, the tasks' images are of "
            "different versions of the code: build and push all of them"
        )


def content_of(stage: str, settings: StageConfig, storage: "Storage") -> str:
    """Return a digest of a stage's code, of all that it reads beside its inputs and of where S3 is, in 20 hex digits.

    Raises what the stage's sources raise: InvalidInput where something is not there.
    """
    return _content(code_version(stage), _sources(stage, settings, storage), storage)


def _content(version: str, sources: Sequence[Mapping[str, Any]] | None, storage: "Storage") -> str:
    text = json.dumps([version, sources, storage.endpoint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _sources(stage: str, settings: StageConfig, storage: "Storage") -> list[dict[str, Any]] | None:
    """Ask the stage for digests of what it reads beside its inputs (`components/<stage>/sources.py`, if it has one)."""
    name = f"components.{stage}.sources"
    if importlib.util.find_spec(name) is None:
        return None
    found: list[dict[str, Any]] = importlib.import_module(name).sources(settings, storage)
    return found


@contextmanager
def exclusive(workdir: Path) -> Iterator[Path]:
    """Hold a folder for this process alone. Raises Transient when another one has it."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Transient(f"another process is doing this very work in {workdir}; wait for it to end") from error
        yield workdir


@contextmanager
def tracked(
    run_id: str,
    run_name: str,
    stage: str,
    experiment: str,
    workdir: Path,
    shelf: Shelf | None = None,
    *,
    is_own_task: bool = True,
) -> Iterator["StageRun"]:
    """Keep a run of MLflow open for a piece of work, and close it as the work ends.

    What MLflow was not told by then is put on the shelf. `is_own_task`: this process is the stage's own task.
    """
    from components.adapters.tracking import open_stage_run

    shelf = shelf if os.environ.get("MLFLOW_TRACKING_URI") else None  # without it nobody would come for it
    if shelf:
        shelf.restore(workdir / "tracking")
    tracking = open_stage_run(
        run_id=run_id,
        run_name=run_name or run_id,
        stage=stage,
        experiment=experiment,
        workdir=workdir,
        tags={},
        is_own_task=is_own_task,
        keep_at=shelf.uri if shelf else "",
    )
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield tracking
        status = "FINISHED"
    except (KeyboardInterrupt, Stopped, Transient):
        status = "KILLED"
        raise
    finally:
        told = False
        try:
            told = tracking.finish(status)
        finally:
            if shelf:
                shelf.settle(tracking.spool.directory, told)


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception, so that no library's `except Exception` takes it for a failure of its own."""


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Turn SIGTERM (preemption, "Terminate run") into Transient, so that a stage ends as resumable."""

    def stop(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the clean end
        raise Stopped("stopped by SIGTERM; run again to go on from the last committed piece of work")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Stopped as error:
        raise Transient(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, previous)
