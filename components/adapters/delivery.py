"""The process that empties a spool into MLflow: `python -m components.adapters.delivery DIRECTORY SECONDS [URI]`.

It delivers in order and remembers the last operation that MLflow took. Each byte on its standard input says that
there is more; at the end of input it has SECONDS to deliver the rest. Whatever may have reached MLflow before a
failure is looked up before it is sent again, so nothing is there twice. While MLflow is away the spool is kept in S3
now and then, in the folder URI, as a stage or its machine may be killed.
"""

import json
import logging
import math
import os
import re
import select
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.adapters.pipeline_run import ensure_experiment, ensure_parent, name_root, of_run, search_task
from components.adapters.spool import (
    BATCHED,
    MAX_PARAMS_OR_TAGS,
    MAX_TAG_CHARS,
    Op,
    SpoolReader,
    State,
    clean_key,
    cut,
    next_batch,
    read_state,
    reject,
    sole_deliverer,
    write_state,
)
from components.adapters.tracking import (
    REFUSED,
    all_experiments,
    http_status,
    load,
    quoted,
    search_model,
)
from components.core.errors import ReasrmError
from components.core.redact import redact

logger = logging.getLogger(__name__)

LOCK_SECONDS = 15.0
KEEP_EVERY_SECONDS = 600.0
UNREACHABLE_SECONDS = 2.5
MAX_BACKOFF_SECONDS = 5.0
MAX_ARTIFACT_TRIES = 3
DIGEST_CHARS = 36  # What MLflow keeps of a dataset's digest; the whole one is in a tag of the input.

Point = tuple[int, int, float]


@dataclass(frozen=True)
class History:
    """What a run has of a metric: all points (step, time, value), and of other attempts the steps and last value."""

    points: frozenset[Point]
    steps: frozenset[int]
    last: float | None


@dataclass
class Delivery:
    """Sends operations to MLflow. `uncertain`: the next operation may have arrived already."""

    directory: Path
    state: State
    mlflow: Any = field(default_factory=load)
    uncertain: bool = True
    history: dict[str, History] = field(default_factory=dict)
    params: dict[str, str] | None = None
    models: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = self.mlflow.MlflowClient()

    def send(self, ops: list[Op]) -> None:
        """Deliver one operation, or several that make one batch. Raises what MLflow's client raises."""
        if ops[0].kind in BATCHED:
            self._send_batch(ops)
            return
        handlers: dict[str, Callable[[Op], None]] = {
            "open": self._open,
            "input": self._input,
            "artifact": self._artifact,
            "model": self._model,
            "use_model": self._use_model,
            "scores": self._scores,
            "finish": self._finish,
        }
        handlers[ops[0].kind](ops[0])

    def _open(self, op: Op) -> None:
        data = op.data
        self.history, self.params = {}, None
        tags = {"reasrm.run_id": data["run_id"], "reasrm.stage": data["stage"], "reasrm.role": "stage"} | data["tags"]
        run, reused = self._attached(data["attach"]), True
        if run is not None:
            name_root(self.client, run, data["run_id"], of_run(tags))
        else:
            experiment_id = ensure_experiment(self.client, data["experiment"])
            names = (data["run_id"], data["run_name"])
            parent = ensure_parent(self.client, experiment_id, *names, of_run(tags), at=op.time)
            query = f"tags.`reasrm.run_id` = {quoted(data['run_id'])} AND tags.`reasrm.stage` = {quoted(data['stage'])}"
            found = self.client.search_runs([experiment_id], query)
            run = found[0] if found else search_task(self.client, parent, data["stage"])
            if run is None:
                tags["mlflow.parentRunId"] = parent.info.run_id
                run, reused = self._create(experiment_id, op, tags, data["stage"]), False
        info = run.info
        late = reused and info.status != "RUNNING" and op.time < (info.end_time or 0)
        if reused:
            self._reopen(run, tags, late)
        else:
            self.params, self.uncertain = {}, False
        self.state = replace(
            self.state,
            opened=op.time,
            open_seq=op.seq,
            reused=reused,
            run_id=info.run_id,
            experiment_id=str(info.experiment_id),
            told_until=self._end_of(op) if late else 0,
        )

    def _end_of(self, op: Op) -> int:
        """Return when the attempt that this operation opened did its last one."""
        end = op.time
        for later in SpoolReader(self.directory, op.seq).read():
            if later.kind == "open":
                break
            end = later.time
        return end

    def _finish(self, op: Op) -> None:
        """Close the run; told late, only if this attempt came to the end that the later one did not."""
        run_id, status = self.state.run_id, op.data["status"]
        if self.state.told_until and (status != "FINISHED" or self.client.get_run(run_id).info.status == "FINISHED"):
            return
        self.client.set_terminated(run_id, status, op.time)

    def _attached(self, run_id: str) -> Any | None:
        """Return the run that KFP's plugin made for this task; without it the stage gets one of its own."""
        if not run_id:
            return None
        try:
            return self.client.get_run(run_id)
        except self.mlflow.MlflowException as error:
            if http_status(error) != 404:
                raise
            logger.warning("MLFLOW_RUN_ID is %s, which this server does not know", run_id)
            return None

    def _create(self, experiment_id: str, op: Op, tags: dict[str, str], name: str) -> Any:
        return self.client.create_run(experiment_id, start_time=op.time, tags=tags, run_name=name)

    def _reopen(self, run: Any, tags: dict[str, str], late: bool) -> None:
        """Go on with a run; of one that ended after this attempt began, state and tags stay as they are."""
        known = run.data.tags
        new = {key: value for key, value in tags.items() if key not in known or (known[key] != value and not late)}
        if new:
            entities = [self.mlflow.entities.RunTag(key, value) for key, value in new.items()]
            self.client.log_batch(run.info.run_id, tags=entities[:MAX_PARAMS_OR_TAGS])
        if run.info.status != "RUNNING" and not late:
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.params = dict(run.data.params)

    def _send_batch(self, ops: list[Op]) -> None:
        entities = self.mlflow.entities
        metrics: list[Any] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        if self.uncertain:
            self.history, self.params = {}, None
        for op in ops:
            if op.kind == "metrics":
                step = op.data["step"]
                points = self._new_points(op.data["metrics"], step, op.time)
                metrics += [entities.Metric(key, value, op.time, step or 0) for key, value in points.items()]
            elif op.kind == "params":
                new, changed = self._new_params(op.data["params"])
                params |= new
                tags |= changed
            else:
                tags |= op.data["tags"]
        if tags and self.state.told_until:
            known = self.client.get_run(self.state.run_id).data.tags
            tags = {key: value for key, value in tags.items() if key not in known}
        if metrics or params or tags:
            self.client.log_batch(
                self.state.run_id,
                metrics=metrics,
                params=[entities.Param(key, value) for key, value in params.items()],
                tags=[entities.RunTag(key, value) for key, value in tags.items()],
            )

    def _new_params(self, params: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the parameters to send, and as tags the values that differ from what the run has already."""
        if self.params is None:
            self.params = dict(self.client.get_run(self.state.run_id).data.params)
        new = {key: value for key, value in params.items() if key not in self.params}
        late = self.state.told_until
        different = {key: value for key, value in params.items() if self.params.get(key, value) != value and not late}
        self.params |= new
        return new, {clean_key(f"reasrm.changed.{key}"): cut(v, MAX_TAG_CHARS) for key, v in different.items()}

    def _new_points(self, metrics: dict[str, float], step: int | None, at: int) -> dict[str, float]:
        """Leave out points that the run has: from this very operation, or of the same step before the stage's retry."""
        if not (self.uncertain or self.state.reused):
            return metrics
        new = {}
        for key, value in metrics.items():
            there = self._history(key)
            known = value == there.last if step is None else step in there.steps
            if not known and (step or 0, at, value) not in there.points:
                new[key] = value
        return new

    def _history(self, key: str) -> History:
        if key not in self.history:
            points = [(p.step, p.timestamp, p.value) for p in self.client.get_metric_history(self.state.run_id, key)]
            end = self.state.told_until or math.inf
            others = [point for point in points if not self.state.opened <= point[1] <= end]
            last = max(others, key=lambda point: point[1])[2] if others else None
            self.history[key] = History(frozenset(points), frozenset(step for step, _, _ in others), last)
        return self.history[key]

    def _dataset(self, data: dict[str, Any], context: str) -> str:
        """Link a dataset to the run; return the digest by which MLflow knows it."""
        entities, digest = self.mlflow.entities, data["digest"][:DIGEST_CHARS]
        source, profile = json.dumps({"uri": data["uri"]}), json.dumps(data["profile"])
        scheme = data["uri"].partition("://")[0] if "://" in data["uri"] else "local"
        dataset = entities.Dataset(data["name"], digest, source_type=scheme, source=source, profile=profile)
        tags = {"mlflow.data.context": context, "reasrm.digest": data["digest"]}
        linked = entities.DatasetInput(dataset, [entities.InputTag(key, value) for key, value in tags.items() if value])
        self.client.log_inputs(self.state.run_id, datasets=[linked])
        return str(digest)

    def _input(self, op: Op) -> None:
        self._dataset(op.data["dataset"], op.data["context"])

    def _artifact(self, op: Op) -> None:
        path = self.directory / "files" / str(op.seq) / op.data["name"]
        self.client.log_artifact(self.state.run_id, str(path))

    def _model(self, op: Op) -> None:
        data = op.data
        model_id = self._find_or_add(data, self.state.run_id)
        outputs = self.client.get_run(self.state.run_id).outputs.model_outputs
        if model_id not in {output.model_id for output in outputs}:
            output = self.mlflow.entities.LoggedModelOutput(model_id, step=data["step"])
            self.client.log_outputs(self.state.run_id, [output])

    def _use_model(self, op: Op) -> None:
        model_id = self._resolve(op.data["digest"], op.data)
        self.client.log_inputs(self.state.run_id, models=[self.mlflow.entities.LoggedModelInput(model_id)])

    def _resolve(self, reference: str, data: dict[str, Any] | None = None) -> str:
        if reference.startswith("m-"):
            return reference
        if data and data["uri"]:
            return self._find_or_add(data, None)
        if reference not in self.models:
            found = search_model(self.client, reference, prefer=self.state.experiment_id)
            if found is None:
                raise LookupError(f"MLflow knows no model whose manifest is {reference}; log_model it first")
            self.models[reference] = found.model_id
        return self.models[reference]

    def _find_or_add(self, data: dict[str, Any], run_id: str | None) -> str:
        """Return the id of a manifest's LoggedModel, added without copying weights if there is none.

        A run that makes the model lists it in its own experiment; one that only reads it takes any that there is.
        """
        digest = data["digest"]
        if digest in self.models:
            return self.models[digest]
        mine = self.state.experiment_id
        found = search_model(self.client, digest, prefer=mine, only=mine if run_id else "")
        if found is None:
            tags = {"reasrm.manifest_uri": data["uri"], "reasrm.manifest_digest": digest}
            found = self.client.create_logged_model(
                mine,
                re.sub(r"[/:.%\"']", "-", data["name"]),
                run_id,
                tags | data.get("tags", {}) | {"mlflow.model.isExternal": "true"},
                data.get("params", {}),
                data["model_type"],
            )
        if str(found.status) != "READY":
            self.client.finalize_logged_model(found.model_id, "READY")
        self.models[digest] = found.model_id
        return self.models[digest]

    def _scores(self, op: Op) -> None:
        data = op.data
        model_id, name = self._resolve(data["model"]), data["dataset"]["name"]
        digest = self._dataset(data["dataset"], "evaluation")
        there: dict[str, list[float]] = defaultdict(list)
        if self.uncertain or self.state.reused:
            for metric in self.client.get_logged_model(model_id).metrics or []:
                if (metric.run_id, metric.dataset_name, metric.dataset_digest) == (self.state.run_id, name, digest):
                    there[metric.key].append(metric.value)
        link = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest, "run_id": self.state.run_id}
        metrics = [
            self.mlflow.entities.Metric(key, value, op.time, 0, **link)
            for key, value in data["metrics"].items()
            if value not in there[key]
        ]
        if metrics:
            self.client.log_batch(self.state.run_id, metrics=metrics)


def keep(directory: Path, uri: str) -> None:
    """Keep in S3 what MLflow was not told yet. Best effort."""
    from components.adapters.storage import Storage
    from components.adapters.untold import Shelf

    try:
        Shelf(Storage.from_env(), uri).settle(directory, told=False)
    except ReasrmError as error:
        logger.warning("the spool is not kept at %s: %s", uri, error)


def deliver(directory: Path, drain_seconds: float, keep_at: str = "") -> bool:
    """Deliver until the input ends and the spool is empty, or the time after the end of input is up."""
    kept = time.monotonic()
    delivery = Delivery(directory, replace(read_state(directory), deliverer=os.getpid(), error=""))
    write_state(directory, delivery.state)
    reader, ops, ended_at, failures = SpoolReader(directory, delivery.state.acked), list[Op](), 0.0, 0
    while True:
        ops += reader.read()
        if ops:
            batch = next_batch(ops)
            done = _attempt(delivery, batch, failures)
            ops = [op for op in ops if op.seq > delivery.state.acked]
            if done:
                failures = 0
                continue
            failures += 1
            if keep_at and time.monotonic() - kept > KEEP_EVERY_SECONDS:
                keep(directory, keep_at)
                kept = time.monotonic()
        elif ended_at:
            return True
        over = time.monotonic() - ended_at if ended_at else 0.0
        if over > drain_seconds or (failures and over > min(UNREACHABLE_SECONDS, drain_seconds)):
            return False
        pause = min(MAX_BACKOFF_SECONDS, 0.2 * 2 ** min(failures, 5)) if failures else 1.0
        if ended_at:
            time.sleep(min(pause, 0.3))
        elif _input_ended(pause, wake=not failures):
            ended_at = time.monotonic()


def _attempt(delivery: Delivery, batch: list[Op], failures: int) -> bool:
    """Send a batch; True if it is done with, delivered or refused for good. Anything else is left to the next try."""
    reason = ""
    try:
        delivery.send(batch)
    except Exception as error:
        reason, status = redact(f"{type(error).__name__}: {error}"), http_status(error)
        refused = status in REFUSED and batch[0].kind != "open"
        stuck = batch[0].kind == "artifact" and failures + 1 >= MAX_ARTIFACT_TRIES and _answers(delivery)
        if not refused and not stuck:
            logger.warning("operation %s: %s", batch[0].seq, reason)
            delivery.uncertain, delivery.state = True, replace(delivery.state, error=reason)
            write_state(delivery.directory, delivery.state)
            return False
        delivery.uncertain = True
        if len(batch) > 1:  # Find the one that is at fault.
            return all(_attempt(delivery, [op], failures) for op in batch)
    if reason:
        logger.error("operation %s is refused: %s", batch[0].seq, reason)
        delivery.state = reject(delivery.directory, batch[0], reason, delivery.state)
    delivery.uncertain = bool(reason)
    delivery.state = replace(delivery.state, acked=batch[-1].seq, error="")
    write_state(delivery.directory, delivery.state)
    return True


def _answers(delivery: Delivery) -> bool:
    """Tell whether MLflow itself is there, so that a failing artifact store alone does not hold up the rest."""
    try:
        return bool(all_experiments(delivery.client))
    except Exception as error:
        logger.warning("MLflow does not answer: %s", error)
        return False


def _input_ended(pause_seconds: float, wake: bool) -> bool:
    """Wait for a byte, or for the time to pass; True once the stage has closed its end, or is dead."""
    until = time.monotonic() + pause_seconds
    while (left := until - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        if not os.read(sys.stdin.fileno(), 65536):
            return True
        if wake:
            return False
        time.sleep(min(0.05, max(left, 0.0)))
    return False


def main() -> int:
    """Run as a process of its own; exit code 75 if something is left in the spool."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # MLflow without pandas is what mlflow-skinny is; it loads in half of the time.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    directory, drain_seconds, keep_at = Path(sys.argv[1]), float(sys.argv[2]), "".join(sys.argv[3:])
    with sole_deliverer(directory, LOCK_SECONDS) as alone:
        done = alone and deliver(directory, drain_seconds, keep_at)
        if alone and not done and keep_at:  # the stage does so itself, unless it was killed
            keep(directory, keep_at)
    return 0 if done else 75


if __name__ == "__main__":
    sys.exit(main())
