"""The run of the whole pipeline in MLflow, below which each stage has its own.

KFP's MLflow plugin makes one for each run of KFP's, with one for each task below it (some deeper: KFP's groups of tasks
have runs too). Where it did, that tree is the one that is used; where it did not, the stages make the same.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.adapters.origin import OF_RUN, RECIPE, source_tags
from components.adapters.spool import MAX_PARAMS_OR_TAGS, MAX_TAG_CHARS, clean_key, cut, finite, flatten
from components.adapters.stage_run import SOURCE, Status
from components.adapters.tracking import (
    PLUGIN_TAG,
    StageOutput,
    all_experiments,
    all_of,
    all_pages,
    call,
    load,
    output_of,
    quoted,
    search_model,
    uri_of,
)
from components.core.errors import ReasrmError

logger = logging.getLogger(__name__)

_SHARED = {*OF_RUN.values(), "reasrm.uncommitted"}


def of_run(tags: Mapping[str, str]) -> dict[str, str]:
    """Return those tags of a stage that hold for its whole run."""
    return {key: value for key, value in tags.items() if key in _SHARED}


def ensure_experiment(client: Any, name: str) -> str:
    """Return the id of the experiment of this name, which is made or brought back where it is not there."""
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
            known = client.get_experiment_by_name(name)
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)


def ensure_parent(
    client: Any, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str], *, at: int | None = None
) -> Any:
    """Return a pipeline run's MLflow run, which is made where it is not there, with these tags.

    Of two that are made at once, the younger one goes. One that has ended is open again, unless it ended after `at`
    (milliseconds since 1970): then its stage is only told of late.
    """
    own = {**_names(run_id), **source_tags(f"recipe {tags.get(OF_RUN[RECIPE], 'unknown')}"), **tags}
    parent = _parent(client, experiment_id, run_id)
    if parent is None:
        mine = client.create_run(experiment_id, tags=own, run_name=name)
        parent = _parent(client, experiment_id, run_id) or mine
        if parent.info.run_id != mine.info.run_id:
            client.delete_run(mine.info.run_id)
    elif parent.info.status != "RUNNING" and not _is_plugins(parent) and not (at and at < (parent.info.end_time or 0)):
        client.update_run(parent.info.run_id, status="RUNNING")
    _add_tags(client, parent, own)
    return parent


def search_parents(client: Any, run_id: str, experiment_id: str, plugins: Sequence[str]) -> list[Any]:
    """Return the MLflow runs of a pipeline run: the plugin's in some experiments, then ours, the oldest first.

    Of ours there is one, but for the moment in which two stages make one at the same time.
    """
    ours = f"tags.`reasrm.run_id` = {quoted(run_id)} AND tags.`reasrm.role` = 'pipeline'"
    found: dict[str, Any] = {}
    for where, query in (plugins, f"tags.`{PLUGIN_TAG}` = {quoted(run_id)}"), ([experiment_id], ours):
        runs = client.search_runs(list(where), query)
        found |= {run.info.run_id: run for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))}
    return [run for run in found.values() if "mlflow.parentRunId" not in run.data.tags]


def name_root(client: Any, run: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag the plugin's run of the whole pipeline, which is at the top of the tree that this run is in."""
    while above := run.data.tags.get("mlflow.parentRunId"):
        run = client.get_run(above)
    if _is_plugins(run):
        _add_tags(client, run, {**_names(run_id), **tags})


def search_task(client: Any, parent: Any, stage: str) -> Any | None:
    """Return the run that the plugin made for a stage's task, if nobody has taken it yet; the newest of several."""
    if not _is_plugins(parent):
        return None
    groups = [parent]
    while groups:
        group = groups.pop()
        query = f"tags.`mlflow.parentRunId` = {quoted(group.info.run_id)}"
        below = client.search_runs([group.info.experiment_id], query, order_by=["attributes.start_time DESC"])
        free = [run for run in below if "reasrm.stage" not in run.data.tags]
        for run in free:
            if run.info.run_name == stage:
                return run
        groups += free
    return None


def open_parent(run_id: str, name: str, experiment: str, tags: Mapping[str, str]) -> bool:
    """Open the run of the whole pipeline; best effort, True if it is there."""

    def work(client: Any) -> bool:
        return bool(ensure_parent(client, ensure_experiment(client, experiment), run_id, name, tags))

    return _best_effort(f"opening run {run_id}", work)


def finish_parent(run_id: str, experiment: str, status: Status, tags: Mapping[str, str], at: int | None = None) -> bool:
    """Close the run of the whole pipeline, for the exit handler; best effort, True if it is done.

    `at` is when it ended, in milliseconds since 1970; without it that is now. Stages that are still open were killed
    before they could say so. The plugin's is tagged and left to KFP, which closes it and those below it.
    """

    def work(client: Any, parent: Any) -> None:
        _tag(client, parent, {**_names(run_id), **tags})
        if not _is_plugins(parent):
            query = f"tags.`mlflow.parentRunId` = {quoted(parent.info.run_id)} AND attributes.status = 'RUNNING'"
            for stage in client.search_runs([parent.info.experiment_id], query, max_results=1000):
                client.set_terminated(stage.info.run_id, "KILLED", at)
            client.set_terminated(parent.info.run_id, status, at)

    return _on_parent(f"closing run {run_id}", run_id, experiment, work)


@dataclass(frozen=True)
class Told:
    """What MLflow knows of a run's stages, parts aside: which have a run, what they made, and the uris of their inputs.

    `sources` aside, which no stage made.
    """

    stages: frozenset[str] = frozenset()
    outputs: tuple[StageOutput, ...] = ()
    inputs: frozenset[str] = frozenset()


def stages_of(run_id: str) -> Told:
    """Return what MLflow knows of the stages of a pipeline run. Raises Transient or InvalidInput."""

    def work(client: Any) -> list[Any]:
        query = f"tags.`reasrm.run_id` = {quoted(run_id)} AND tags.`reasrm.role` = 'stage'"
        known = all_experiments(client)
        return all_pages(lambda **page: client.search_runs(known, query, **page)) if known else []

    runs = all_of(f"looking up the stages of run {run_id}", work)
    given = [one for run in runs for one in run.inputs.dataset_inputs]
    inputs = {uri_of(one.dataset.source) for one in given if SOURCE not in {tag.value for tag in one.tags}}
    made = (output_of(run) for run in runs)
    stages = frozenset(run.data.tags.get("reasrm.stage", "") for run in runs)
    return Told(stages, tuple(one for one in made if one), frozenset(inputs - {""}))


def tag_parent(run_id: str, experiment: str, tags: Mapping[str, str]) -> bool:
    """Tag the run of the whole pipeline; best effort, True if it is done."""
    what = f"tagging run {run_id}"
    return _on_parent(what, run_id, experiment, lambda client, parent: _tag(client, parent, tags))


def log_parent(
    run_id: str,
    experiment: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    data_of: str = "",
    model: str = "",
) -> bool:
    """Record settings and main numbers on the run of the whole pipeline, and what it started from and ended with.

    These are the data that its stage `data_of` read, and the model of this manifest (digest). Best effort, True if it
    is done. Settings once recorded stay.
    """

    def work(client: Any, parent: Any) -> None:
        entities, known = load().entities, parent.data.params
        new = [entities.Param(key, value) for key, value in flatten(params).items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS_OR_TAGS):
            client.log_batch(parent.info.run_id, params=new[start : start + MAX_PARAMS_OR_TAGS])
        points = {name: value for name, value in finite(metrics)[0].items() if parent.data.metrics.get(name) != value}
        now = round(time.time() * 1000)
        if points:
            client.log_batch(parent.info.run_id, metrics=[entities.Metric(*point, now, 0) for point in points.items()])
        query = f"tags.`reasrm.run_id` = {quoted(run_id)} AND tags.`reasrm.stage` = {quoted(data_of)}"
        for stage in client.search_runs([parent.info.experiment_id], query) if data_of else ():
            if stage.inputs.dataset_inputs:
                client.log_inputs(parent.info.run_id, datasets=stage.inputs.dataset_inputs)
        found = search_model(client, model, prefer=str(parent.info.experiment_id)) if model else None
        if found and found.model_id not in {one.model_id for one in parent.outputs.model_outputs}:
            client.log_outputs(parent.info.run_id, [entities.LoggedModelOutput(found.model_id, step=0)])

    return _on_parent(f"recording the settings of run {run_id}", run_id, experiment, work)


def _names(run_id: str) -> dict[str, str]:
    return {"reasrm.run_id": run_id, "reasrm.role": "pipeline"}


def _is_plugins(run: Any) -> bool:
    return PLUGIN_TAG in run.data.tags


def _add_tags(client: Any, run: Any, tags: Mapping[str, str]) -> None:
    """Set the tags that a run does not have yet: stages may be of images of different commits."""
    _tag(client, run, {key: value for key, value in tags.items() if key not in run.data.tags})


def _tag(client: Any, run: Any, tags: Mapping[str, str]) -> None:
    entities = load().entities
    cleaned = {clean_key(key): cut(str(value), MAX_TAG_CHARS) for key, value in tags.items()}
    new = [entities.RunTag(key, value) for key, value in cleaned.items() if run.data.tags.get(key) != value]
    if new:
        client.log_batch(run.info.run_id, tags=new)


def _parent(client: Any, experiment_id: str, run_id: str) -> Any | None:
    return next(iter(search_parents(client, run_id, experiment_id, [experiment_id])), None)


def _on_parent(what: str, run_id: str, experiment: str, work: Callable[[Any, Any], None]) -> bool:
    """Do something to a pipeline run's MLflow runs; False, with a warning, if that was not possible."""

    def find(client: Any) -> bool:
        known = client.get_experiment_by_name(experiment)
        own = str(known.experiment_id) if known else ""
        parents = search_parents(client, run_id, own, all_experiments(client))
        for parent in parents:
            work(client, parent)
        return bool(parents)

    return _best_effort(what, find)


def _best_effort(what: str, work: Callable[[Any], bool]) -> bool:
    try:
        return bool(call(what, work))
    except ReasrmError as error:
        logger.warning("tracking: %s", error)
        return False
