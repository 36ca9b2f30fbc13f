"""MLflow: the only file that imports it. Stages speak to a spool (`stage_run`), and `delivery` empties that.

The functions below are direct calls, for `publish`, the exit handler and `reasrm lineage`; they need MLflow to answer.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from components.adapters.stage_run import StageRun, Status, open_stage_run, replay
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.redact import redact

__all__ = [
    "ModelInfo",
    "RunInfo",
    "StageOutput",
    "StageRun",
    "Status",
    "find_logged_model",
    "find_model",
    "find_outputs",
    "find_run",
    "find_runs",
    "list_runs",
    "open_stage_run",
    "replay",
    "run_tags",
]

logger = logging.getLogger(__name__)
T = TypeVar("T")

REFUSED = {400, 404, 409, 413, 422}
DENIED = {401, 403}
NUM_QUESTIONS_AT_ONCE = 8
NUM_USERS = 5
"""Runs of one artifact that are looked at for the one that made it: the first, unless MLflow was away then."""
COLLIDED = ("IntegrityError", "UniqueViolation")
"""What MLflow's database says when two write the same new tag or alias at once; the second time it is an update."""
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # We retry ourselves: MLflow's own back-off waits longer than our limit.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}


@dataclass(frozen=True)
class ModelInfo:
    """A LoggedModel: MLflow's id, where its manifest is, and the run that made it."""

    model_id: str
    name: str
    uri: str
    digest: str
    source_run_id: str
    experiment_id: str


@dataclass(frozen=True)
class StageOutput:
    """The artifact of one stage of a pipeline run; `reused`: an earlier run had made it."""

    stage: str
    uri: str
    digest: str
    mlflow_run_id: str
    reused: bool


def quoted(value: str) -> str:
    """Return a value as MLflow's filter language wants it; it knows no escape for a quote."""
    if "'" in value:
        raise InvalidInput(f"{value!r} cannot be looked up in MLflow because of its quote; use a name without one")
    return f"'{value}'"


def load() -> Any:
    """Return the mlflow package, set so that no call of it waits long."""
    os.environ.update(SETTINGS)
    import mlflow

    return mlflow


def http_status(error: Any) -> int:
    """Return the HTTP status that an MLflow error stands for; 503 for one that is no answer of MLflow's own.

    A proxy's 404 page while MLflow is away must not count as MLflow refusing something.
    """
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException) or getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
        return int(error.get_http_status_code())
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
        return status if status in DENIED else 503
    return 503 if isinstance(error, OSError) else 400


def call(what: str, work: Callable[[Any], T]) -> T | None:
    """Run direct calls; None if the thing does not exist. Raises Transient or InvalidInput."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise InvalidInput(f"{what}: MLFLOW_TRACKING_URI is not set; set it to the MLflow server's address")
    client, where = load().MlflowClient(), redact(uri)
    for last_try in (False, True):
        start = time.monotonic()
        try:
            return work(client)
        except ReasrmError:
            raise
        except Exception as error:
            status, reason = http_status(error), redact(str(error))
            if status == 404 or (status == 400 and "not found" in reason):
                return None
            if status in REFUSED and not any(word in reason for word in COLLIDED):
                raise InvalidInput(f"{what}: MLflow at {where} refused it: {reason}") from error
            if status in DENIED:
                raise InvalidInput(f"{what}: MLflow at {where} denied access, check credentials: {reason}") from error
            if last_try or time.monotonic() - start > 1:
                message = f"{what}: MLflow at {where} does not answer; check the server, then run this again: {reason}"
                raise Transient(message) from error
            time.sleep(0.5)
    raise AssertionError("the last try returns or raises")


def all_experiments(client: Any) -> list[str]:
    """Return the ids of all experiments that are not deleted."""
    return [str(experiment.experiment_id) for experiment in all_pages(client.search_experiments)]


def search_model(client: Any, reference: str, prefer: str = "", only: str = "") -> Any | None:
    """Return the LoggedModel of a manifest (digest or uri): the oldest, first of a preferred run or experiment."""
    key = "reasrm.manifest_uri" if "://" in reference else "reasrm.manifest_digest"
    found = client.search_logged_models(
        [only] if only else all_experiments(client), f"tags.`{key}` = {quoted(reference)}"
    )

    def rank(model: Any) -> tuple[bool, int]:
        return prefer not in {str(model.experiment_id), model.source_run_id}, model.creation_timestamp

    return min(found, key=rank, default=None)


def find_model(reference: str) -> ModelInfo | None:
    """Return the LoggedModel of a manifest, by digest or uri. Raises Transient or InvalidInput."""
    return _model(call(f"looking up model {reference}", lambda client: search_model(client, reference)))


def find_logged_model(model_id: str) -> ModelInfo | None:
    """Return a LoggedModel by MLflow's id, or None. Raises Transient or InvalidInput."""
    return _model(call(f"reading logged model {model_id}", lambda client: client.get_logged_model(model_id)))


def _model(model: Any) -> ModelInfo | None:
    if model is None:
        return None
    tags = model.tags
    return ModelInfo(
        model.model_id,
        model.name,
        tags.get("reasrm.manifest_uri", ""),
        tags.get("reasrm.manifest_digest", ""),
        model.source_run_id or "",
        str(model.experiment_id),
    )


def find_run(digest: str) -> str | None:
    """Return the id of the run whose output has this manifest digest. Raises Transient or InvalidInput."""
    return find_runs([digest]).get(digest)


def find_runs(digests: Collection[str]) -> dict[str, str]:
    """Return for manifest digests the ids of the runs that made them, where there are such.

    A run that used the work again has the same output, and counts only where no other is known; of several the oldest
    run is the one that made it. Raises Transient or InvalidInput.
    """

    def work(client: Any) -> list[tuple[str, str]]:
        known = all_experiments(client)

        def maker(digest: str) -> str:
            query, oldest = f"tags.`reasrm.output_digest` = {quoted(digest)}", ["attributes.start_time ASC"]
            found = client.search_runs(known, query, order_by=oldest, max_results=NUM_USERS) if known else ()
            made = [run for run in found if run.data.tags.get("reasrm.reused") != "true"]
            return next((str(run.info.run_id) for run in (*made, *found)), "")

        with ThreadPoolExecutor(NUM_QUESTIONS_AT_ONCE) as pool:
            return [(digest, run) for digest, run in zip(digests, pool.map(maker, digests), strict=True) if run]

    return dict(all_of("looking up the runs that made the artifacts", work)) if digests else {}


def find_outputs(run_id: str, tag: str = "reasrm.run_id") -> list[StageOutput]:
    """Return what the stages of a pipeline run made, parts aside. Raises Transient or InvalidInput.

    The run is named by KFP's id, or with the tag `mlflow.parentRunId` by MLflow's of its parent run.
    """

    def work(client: Any) -> list[StageOutput]:
        known, query = all_experiments(client), f"tags.`{tag}` = {quoted(run_id)}"
        runs = all_pages(lambda **page: client.search_runs(known, query, **page)) if known else ()
        return [made for made in map(output_of, runs) if made]

    return all_of(f"looking up run {run_id}", work)


def output_of(run: Any) -> StageOutput | None:
    """Return what a stage's run of MLflow made; None if it made nothing, or is a part's."""
    tags = run.data.tags
    if "reasrm.output_uri" not in tags or "reasrm.part" in tags:
        return None
    names = (tags.get("reasrm.stage", ""), tags["reasrm.output_uri"], tags.get("reasrm.output_digest", ""))
    return StageOutput(*names, str(run.info.run_id), tags.get("reasrm.reused") == "true")


def run_tags(mlflow_run_id: str) -> dict[str, str] | None:
    """Return the tags of a run, or None if there is no such run. Raises Transient or InvalidInput."""
    return call(f"reading run {mlflow_run_id}", lambda client: dict(client.get_run(mlflow_run_id).data.tags))


PLUGIN_TAG = "kfp.pipeline_run_id"
"""Tag of KFP's plugin's run of the whole pipeline (KFP 2.17, backend/src/apiserver/plugins/mlflow/util.go)."""


@dataclass(frozen=True)
class RunInfo:
    """A pipeline run: when its first stage began (seconds since 1970), and what its stages work or worked on.

    `works` are stages with the keys of their work, of which an artifact's uri is made; `uris` is all that they read and
    made.
    """

    run_id: str
    started: float
    running: bool
    works: tuple[tuple[str, str], ...]
    uris: tuple[str, ...]


def list_runs() -> list[RunInfo]:
    """Return the pipeline runs of all experiments, the newest first. Raises Transient or InvalidInput."""

    def work(client: Any) -> list[RunInfo]:
        known = all_experiments(client)
        found: dict[str, list[Any]] = {}
        for run in all_pages(lambda **page: client.search_runs(known, **page)) if known else ():
            if "reasrm.run_id" in run.data.tags:
                found.setdefault(run.data.tags["reasrm.run_id"], []).append(run)
        return sorted((_run(name, runs) for name, runs in found.items()), key=lambda run: (-run.started, run.run_id))

    return all_of("listing the runs", work)


def all_of(what: str, work: Callable[[Any], list[T]]) -> list[T]:
    """Return a whole list; a server that answers "not found" has not said that there is nothing."""
    found = call(what, work)
    if found is None:
        where = redact(os.environ.get("MLFLOW_TRACKING_URI", ""))
        raise InvalidInput(
            f"{what}: {where} answers that there is no such thing; set it to the MLflow server's address"
        )
    return found


def _run(name: str, runs: list[Any]) -> RunInfo:
    tags = [run.data.tags for run in runs]
    works = {
        (one.get("reasrm.part_of") or one["reasrm.stage"], one["reasrm.run_key"])
        for one in tags
        if "reasrm.stage" in one and "reasrm.run_key" in one
    }
    uris = {one["reasrm.output_uri"] for one in tags if one.get("reasrm.output_uri")}
    uris |= {uri for run in runs for given in run.inputs.dataset_inputs if (uri := uri_of(given.dataset.source))}
    # A stage that was killed never tells of its end; the run of the whole pipeline is closed behind all its stages, and
    # opened again by one that begins later. That of KFP's plugin is not ours to read so much from.
    whole = [run for run in runs if run.data.tags.get("reasrm.role") == "pipeline" and PLUGIN_TAG not in run.data.tags]
    running = any(run.info.status == "RUNNING" for run in whole or runs)
    started = min(run.info.start_time for run in runs) / 1000
    return RunInfo(name, started, running, tuple(sorted(works)), tuple(sorted(uris)))


def uri_of(source: str) -> str:
    """Return the uri in a dataset's source as `delivery` writes it; empty for one of another's."""
    try:
        return str(json.loads(source)["uri"])
    except (ValueError, TypeError, KeyError):
        return ""


def all_pages(search: Callable[..., Any]) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
