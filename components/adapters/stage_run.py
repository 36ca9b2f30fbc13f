"""What a stage says to MLflow. Every call returns at once; a process of its own delivers it.

A process and not a thread: the MLflow client takes a second of pure Python to import, which a thread would take from
the stage through the interpreter lock, and two threads that import large packages at once can deadlock. It also
outlives a stage that is killed long enough to hand in the last metrics.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from components.adapters.origin import origin_tags, source_of, source_tags
from components.adapters.spool import (
    MAX_PARAMS_OR_TAGS,
    MAX_POINTS,
    MAX_TAG_CHARS,
    Spool,
    State,
    clean_key,
    cut,
    finite,
    flatten,
    numeric_leaves,
    read_state,
)
from components.core.manifest import MANIFEST_NAME, Manifest
from components.core.redact import redact

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10.0
STALLED_SECONDS = 4.5
UNREACHABLE_SECONDS = 3.0
DESCRIPTION = "mlflow.note.content"
"""Tag of what MLflow shows as a run's description, Markdown."""
SOURCE = "source"
"""Context of a dataset that no stage made."""
MODEL_TYPE = "reasoning-reward-model"
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class StageRun:
    """One stage's run in MLflow; made by `open_stage_run`. Nothing here raises or waits because of MLflow."""

    origin: Mapping[str, str]
    """Tags that say which pipeline run this belongs to and where that comes from; see `origin.origin_tags`."""
    spool: Spool
    open_seq: int
    worker: "subprocess.Popen[bytes] | None"
    nonfinite: int = 0
    keep_at: str = ""
    """Uri of the folder in S3 where the spool is kept while MLflow is away."""

    @property
    def mlflow_run_id(self) -> str | None:
        """The id of the run in MLflow, or None as long as MLflow has not been reached."""
        state = read_state(self.spool.directory)
        return state.run_id if state.run_id and state.open_seq == self.open_seq else None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted keys. A retried run keeps its first value; the new one is a tag."""
        for part in _parts(flatten(params).items(), MAX_PARAMS_OR_TAGS):
            self._append("params", {"params": part})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers; those that are not finite are left out and counted in `nonfinite_metrics`."""
        kept, num_dropped = finite(metrics)
        if num_dropped:
            self.nonfinite += num_dropped
            kept["nonfinite_metrics"] = float(self.nonfinite)
        for part in _parts(kept.items(), MAX_POINTS):
            self._append("metrics", {"metrics": part, "step": step})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the stage's run."""
        cleaned = {clean_key(key): cut(str(value), MAX_TAG_CHARS) for key, value in tags.items()}
        for part in _parts(cleaned.items(), MAX_PARAMS_OR_TAGS):
            self._append("tags", {"tags": part})

    def log_input(self, name: str, manifest: Manifest, context: str) -> None:
        """Link an artifact that the stage read: a dataset with its S3 source and its manifest's digest."""
        profile: dict[str, float] = {"files": len(manifest.files), "bytes": sum(entry.size for entry in manifest.files)}
        profile |= numeric_leaves(manifest.statistics)
        dataset = {"name": name, "uri": manifest.uri, "digest": manifest.digest, "profile": profile}
        self._append("input", {"dataset": dataset, "context": context})

    def log_source(self, uri: str, digest: str) -> None:
        """Link something from outside that the stage read: a preference file, recorded traces, a base model."""
        name = uri.rstrip("/").rpartition("/")[2]
        dataset = {"name": name, "uri": uri, "digest": digest, "profile": {}}
        self._append("input", {"dataset": dataset, "context": SOURCE})

    def log_output(self, manifest: Manifest) -> None:
        """Record the artifact that the stage made: tags, its manifest, its statistics as metrics `stat.*`."""
        self._append("artifact", {"name": MANIFEST_NAME}, {MANIFEST_NAME: manifest.to_bytes()})
        self.log_metrics(numeric_leaves(manifest.statistics, "stat."))
        output = {"output_uri": manifest.uri, "output_digest": manifest.digest, "run_key": manifest.run_key}
        self.set_tags({f"reasrm.{key}": value for key, value in output.items()})

    def log_reused(self, manifest: Manifest, why: str = "an earlier run had made it") -> None:
        """Record that the stage did nothing, as its artifact was there; `why` stands in the run's description."""
        note = f"Nothing was done here: {why}.\n\n`{manifest.uri}`"
        self.set_tags({"reasrm.reused": "true", DESCRIPTION: note})
        self.log_output(manifest)
        if manifest.kind == "model":
            self.log_model(manifest.stage, manifest.uri, manifest.digest)

    def log_model(
        self,
        name: str,
        manifest_uri: str,
        digest: str,
        *,
        step: int | None = None,
        params: Mapping[str, Any] | None = None,
        model_type: str = MODEL_TYPE,
    ) -> str:
        """Record a model whose weights lie at a manifest's uri, as this run's output.

        Returns the reference for `use_model` and `log_scores`, which is the digest: MLflow's own id is only known
        once MLflow was reached.
        """
        model = {"name": name, "uri": manifest_uri, "digest": digest, "model_type": model_type, "step": step or 0}
        self._append("model", model | {"params": flatten(params or {}), "tags": self.origin})
        return digest

    def use_model(self, model: str, *, name: str = "model", uri: str = "") -> None:
        """Link a model that this stage reads, by its manifest's digest; with a uri, one unknown to MLflow is added."""
        self._append("use_model", {"digest": model, "name": name, "uri": uri, "model_type": MODEL_TYPE})

    def log_scores(self, model: str, metrics: Mapping[str, float], dataset: tuple[str, str, str]) -> None:
        """Record scores on a dataset (name, uri, digest) on the model itself, so that models compare.

        The model is known by its manifest's digest or uri, or by MLflow's id.
        """
        name, uri, digest = dataset
        kept, num_dropped = finite(metrics)
        if num_dropped:
            self.nonfinite += num_dropped
            self._append("metrics", {"metrics": {"nonfinite_metrics": float(self.nonfinite)}, "step": None})
        described = {"name": name, "uri": uri, "digest": digest, "profile": {}}
        for part in _parts(kept.items(), MAX_POINTS):
            self._append("scores", {"model": model, "metrics": part, "dataset": described})

    def log_artifact(self, path: Path) -> None:
        """Attach a small file; it is copied now, so the stage may change or delete it."""
        self._append("artifact", {"name": path.name}, {path.name: path})

    def finish(self, status: Status) -> bool:
        """Close the run and wait up to ten seconds for delivery; True if MLflow has everything.

        The wait ends early when MLflow does not answer. What is left stays in the spool for `replay`.
        """
        self._append("finish", {"status": status})
        if self.worker is None:
            return False
        state = _wait(self.worker, self.spool.directory, self.spool.last_seq, FINISH_SECONDS)
        return _report(self.spool.directory, state, self.spool.last_seq)

    def _append(self, kind: str, data: Mapping[str, Any], files: Mapping[str, bytes | Path] | None = None) -> None:
        try:
            self.spool.append(kind, data, files)
        except OSError as error:
            logger.warning("tracking: %s is lost, the spool %s cannot be written: %s", kind, self.spool.path, error)
            return
        if self.worker is not None and self.worker.stdin is not None and not self.worker.stdin.closed:
            try:
                os.write(self.worker.stdin.fileno(), b"\n")
            except BlockingIOError:
                pass  # It has enough wake-up calls waiting.
            except BrokenPipeError:
                logger.warning("tracking: the delivery process ended, see %s", self.spool.directory / "delivery.log")
                _stop(self.worker)
                self.worker = _start_worker(self.spool.directory, FINISH_SECONDS, self.keep_at)


def open_stage_run(
    *,
    run_id: str,
    run_name: str,
    stage: str,
    experiment: str,
    workdir: Path,
    tags: Mapping[str, str],
    is_own_task: bool = True,
    keep_at: str = "",
) -> StageRun:
    """Open a stage's run below its pipeline run, or again if the stage is retried.

    Where KFP's MLflow plugin has made a run for the stage (MLFLOW_RUN_ID names it where this process is the stage's own
    task, or it is found by its name), that is the one. Without MLFLOW_TRACKING_URI everything stays in
    `workdir/tracking` until `replay`.
    """
    spool = Spool.open(workdir / "tracking")
    origin = {"reasrm.run_id": run_id, **origin_tags()}
    names = {"run_id": run_id, "run_name": run_name, "stage": stage, "experiment": experiment}
    tags = {**origin, **source_tags(source_of(stage)), **tags}
    cleaned = {clean_key(key): cut(str(value), MAX_TAG_CHARS) for key, value in tags.items()}
    attach = {"attach": os.environ.get("MLFLOW_RUN_ID", "") if is_own_task else ""}
    seq = spool.append("open", names | attach | {"tags": cleaned}).seq
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        logger.warning("tracking: MLFLOW_TRACKING_URI is not set; metrics and lineage stay in %s", spool.directory)
        return StageRun(origin, spool, seq, None)
    return StageRun(origin, spool, seq, _start_worker(spool.directory, FINISH_SECONDS, keep_at), keep_at=keep_at)


def replay(workdir: Path, timeout_seconds: float = 60.0) -> int:
    """Deliver what an earlier stage left in its spool; return the number of operations still left.

    Without time it only counts them.
    """
    spool = Spool.open(workdir / "tracking")
    left = spool.last_seq - read_state(spool.directory).acked
    if not left or timeout_seconds <= 0 or not os.environ.get("MLFLOW_TRACKING_URI"):
        return left
    worker = _start_worker(spool.directory, timeout_seconds)
    if worker is None:
        return left
    state = _wait(worker, spool.directory, spool.last_seq, timeout_seconds)
    _report(spool.directory, state, spool.last_seq)
    return spool.last_seq - state.acked


def _parts(items: Iterable[tuple[str, Any]], size: int) -> Iterable[dict[str, Any]]:
    iterator = iter(items)
    while part := dict(islice(iterator, size)):
        yield part


def _start_worker(directory: Path, drain_seconds: float, keep_at: str = "") -> "subprocess.Popen[bytes] | None":
    """Start the process that delivers a spool; it ends when its standard input does and the spool is empty."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "components.adapters.delivery", str(directory), str(drain_seconds), keep_at]
    try:
        with (directory / "delivery.log").open("ab") as log:
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
    except OSError as error:
        logger.warning("tracking: no delivery process, metrics stay in %s: %s", directory, error)
        return None
    assert worker.stdin is not None  # noqa: S101 - it was asked for
    os.set_blocking(worker.stdin.fileno(), False)
    return worker


def _wait(worker: "subprocess.Popen[bytes]", directory: Path, last_seq: int, seconds: float) -> State:
    """Wait until a spool is delivered, but not on a server that does not answer or does not get on."""
    if worker.stdin is not None:
        worker.stdin.close()
    start = moved = time.monotonic()
    state = read_state(directory)
    while worker.poll() is None:
        now, before, state = time.monotonic(), state, read_state(directory)
        moved = now if state.acked > before.acked else moved
        if state.acked >= last_seq:
            break
        stalled = now - moved > max(STALLED_SECONDS, seconds / 4)  # who waits longer does so for a slow server
        unreachable = bool(state.error) and now - start > UNREACHABLE_SECONDS
        running = state.deliverer == worker.pid  # Until then it loads, or waits for another to end.
        if now - start > seconds or (running and (stalled or unreachable)):
            break
        time.sleep(0.01)
    _stop(worker)
    return read_state(directory)


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    if worker.stdin is not None:
        worker.stdin.close()
    worker.kill()
    worker.wait()


def _report(directory: Path, state: State, last_seq: int) -> bool:
    left = last_seq - state.acked
    if left:
        reason = redact(state.error) or "MLflow was too slow"
        logger.warning("tracking: %s of %s operations wait in %s: %s", left, last_seq, directory, reason)
    if state.rejected:
        path = directory / "rejected.jsonl"
        last = json.loads(path.read_text().splitlines()[-1])
        logger.warning("tracking: MLflow refused %s operations (%s): %s", state.rejected, path, last["reason"])
    return not left
