"""What each operation of a spool does in MLflow. What may have arrived before is looked up, and not sent twice."""

import json
import logging
import math
import re
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
)
from components.adapters.tracking import http_status, load, quoted, search_model

logger = logging.getLogger(__name__)

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
