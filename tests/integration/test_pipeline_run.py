"""Runs in MLflow of the whole pipeline: ours, and the tree that KFP's plugin makes."""

import time
import uuid

import pytest

from components.adapters import origin, stage_run
from components.adapters.pipeline_run import finish_parent, open_parent, stages_of
from components.adapters.stage_run import open_stage_run, replay
from components.adapters.tracking import load
from components.core.manifest import Manifest, Parent
from components.report.cached import record_cached
from components.report.kept import tell_here
from components.report.run import close

ORIGIN = {
    origin.RECIPE: "weekly",
    origin.PIPELINE_VERSION: "reasrm-0123456789ab",
    origin.IMAGE: "registry/stage@sha256:" + "1" * 64,
    origin.COMMIT: "c" * 40 + "-dirty",
}
NAMED = {
    "reasrm.recipe": "weekly",
    "reasrm.pipeline_version": "reasrm-0123456789ab",
    "mlflow.source.git.commit": "c" * 40,
    "reasrm.uncommitted": "true",
}


@pytest.fixture
def run(served, monkeypatch):
    """The names of a pipeline run and of its experiment, with an origin in the environment."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    for name, value in ORIGIN.items():
        monkeypatch.setenv(name, value)
    unique = uuid.uuid4().hex[:8]
    return f"run-{unique}", f"experiment-{unique}"


@pytest.fixture
def client(served):
    return load().MlflowClient(served.mlflow_uri)


def do_stage(run, stage, workdir, manifest=None, source=None):
    tracking = open_stage_run(
        run_id=run[0], run_name="weekly 7", stage=stage, experiment=run[1], workdir=workdir / stage, tags={}
    )
    if manifest is not None:
        for name, parent in manifest.parents.items():
            tracking.log_input(name, manifest.model_copy(update={"uri": parent.uri}), stage)
        tracking.log_output(manifest)
        if manifest.kind == "model":
            tracking.log_model(stage, manifest.uri, manifest.digest)
    if source is not None:
        tracking.log_source(*source)
    tracking.finish("FINISHED")
    assert replay(workdir / stage) == 0
    return tracking.mlflow_run_id


def runs_of(client, experiment):
    known = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([known.experiment_id])} if known else {}


def tags_of(entity):
    return {key: entity.tags[key] for key in NAMED if key in entity.tags}


def commit(s3, folder, stage, kind, **told):
    parents = {name: value for name, value in told.items() if isinstance(value, Manifest)}
    uri = f"{s3.prefix}/{stage}/{uuid.uuid4().hex[:20]}"
    above = {name: Parent(uri=parent.uri, digest=parent.digest) for name, parent in parents.items()}
    manifest = Manifest(
        kind=kind, stage=stage, uri=uri, run_key=stage[0] * 64, code_version="1", config={}, files=(), parents=above,
        statistics={name: value for name, value in told.items() if name not in parents},
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    s3.storage.commit(manifest, folder)
    return manifest


def cached_in(run, s3, but=()):
    return [made.stage for made in record_cached(*run, stages_of(run[0]), s3.storage, but=but)]


def test_origin_stands_on_run_stage_and_model(run, client, s3, tmp_path):
    assert open_parent(run[0], "weekly 7", run[1], origin.origin_tags(origin.OF_RUN))
    model = commit(s3, tmp_path / "empty", "sft", "model")
    do_stage(run, "sft", tmp_path, model)
    runs = runs_of(client, run[1])
    assert set(runs) == {"weekly 7", "sft"}
    assert runs["sft"].data.tags["mlflow.parentRunId"] == runs["weekly 7"].info.run_id
    [logged] = client.search_logged_models([runs["sft"].info.experiment_id])
    for entity in (runs["weekly 7"].data, runs["sft"].data, logged):
        assert tags_of(entity) == NAMED
    assert runs["sft"].data.tags["reasrm.image"] == logged.tags["reasrm.image"] == ORIGIN[origin.IMAGE]
    assert runs["sft"].data.tags["mlflow.source.name"] == ORIGIN[origin.IMAGE]
    assert logged.tags["reasrm.run_id"] == run[0]
    assert "reasrm.image" not in runs["weekly 7"].data.tags  # its stages have several


@pytest.mark.parametrize("is_injected", [True, False])
def test_tree_of_kfps_plugin_is_used_and_left_to_kfp(run, client, tmp_path, monkeypatch, is_injected):
    run_id, experiment = run
    home = client.create_experiment(experiment)
    root = client.create_run(home, run_name="weekly 7", tags={"kfp.pipeline_run_id": run_id}).info.run_id
    group = client.create_run(home, run_name="exit-handler-1", tags={"mlflow.parentRunId": root}).info.run_id
    task = client.create_run(home, run_name="sft", tags={"mlflow.parentRunId": group}).info.run_id
    if is_injected:
        monkeypatch.setenv("MLFLOW_RUN_ID", task)
    assert do_stage(run, "sft", tmp_path) == task
    assert finish_parent(run_id, experiment, "FINISHED", {"reasrm.outcome": "promoted"})
    runs = runs_of(client, experiment)
    assert set(runs) == {"weekly 7", "exit-handler-1", "sft"}  # none was made beside it
    assert tags_of(runs["weekly 7"].data) == NAMED
    assert runs["weekly 7"].data.tags["reasrm.run_id"] == run_id
    assert runs["weekly 7"].data.tags["reasrm.outcome"] == "promoted"
    assert runs["weekly 7"].info.status == "RUNNING"
    assert runs["sft"].data.tags["mlflow.parentRunId"] == group
    assert runs["sft"].data.tags["reasrm.stage"] == "sft"


def test_run_of_ours_is_closed_where_the_plugins_is_elsewhere(run, client, tmp_path):
    run_id, experiment = run
    elsewhere = client.create_experiment(f"{experiment}-kfp")
    client.create_run(elsewhere, run_name="weekly 7", tags={"kfp.pipeline_run_id": run_id})
    do_stage(run, "sft", tmp_path)
    assert finish_parent(run_id, experiment, "FAILED", {"reasrm.error": "no"})
    assert runs_of(client, experiment)["weekly 7"].info.status == "FAILED"
    assert runs_of(client, f"{experiment}-kfp")["weekly 7"].info.status == "RUNNING"
    tags = runs_of(client, f"{experiment}-kfp")["weekly 7"].data.tags
    assert (tags["reasrm.error"], tags["reasrm.run_id"]) == ("no", run_id)


def test_stages_that_kfp_had_in_its_cache_get_runs_that_say_so(run, client, s3, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    before = commit(s3, empty, "prepare", "pairs")
    champion = commit(s3, empty, "grpo", "model", pairs=before)
    pairs = commit(s3, empty, "prepare", "pairs", since=before)
    examples = commit(s3, empty, "filter", "examples", pairs=pairs)
    tuned = commit(s3, empty, "sft", "model", examples=examples, warm_start=champion)
    grpo = commit(s3, empty, "grpo", "model", pairs=pairs, sft=tuned)
    do_stage(run, "grpo", tmp_path, grpo)
    own = client.create_run(client.create_experiment(f"{run[1]}-kfp"), run_name="report").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)  # KFP's plugin has a run for the exit handler's task too: not theirs
    assert cached_in(run, s3) == ["filter", "prepare", "sft"]
    assert "reasrm.stage" not in client.get_run(own).data.tags
    assert cached_in(run, s3) == []  # a retry of the exit handler
    runs = runs_of(client, run[1])
    assert set(runs) == {"weekly 7", "prepare", "filter", "sft", "grpo"}
    parent = runs["weekly 7"].info.run_id
    made = {"prepare": pairs, "filter": examples, "sft": tuned}
    for stage, manifest in made.items():
        tags = runs[stage].data.tags
        assert tags["reasrm.cached"] == "kfp"
        assert tags["reasrm.reused"] == "true"
        assert manifest.uri in tags["mlflow.note.content"]
        assert (tags["reasrm.output_uri"], tags["mlflow.parentRunId"]) == (manifest.uri, parent)
        assert runs[stage].info.status == "FINISHED"
    assert "reasrm.cached" not in runs["grpo"].data.tags
    [linked] = runs["filter"].inputs.dataset_inputs
    assert (linked.dataset.name, linked.dataset.digest) == ("pairs", pairs.digest[:36])
    assert len(runs["sft"].outputs.model_outputs) == 1


def test_stage_that_mlflow_was_too_slow_for_is_told_later_and_not_taken_for_cached(
    run, client, s3, tmp_path, monkeypatch, served
):
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path))
    monkeypatch.setattr(stage_run, "UNREACHABLE_SECONDS", 0.1)
    pairs = commit(s3, tmp_path / "empty", "prepare", "pairs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    late = open_stage_run(
        run_id=run[0], run_name="x", stage="prepare", experiment=run[1], workdir=tmp_path / "prepare-1f", tags={}
    )
    late.log_output(pairs)
    assert not late.finish("FINISHED")
    waiting = tell_here(s3.storage, time.monotonic() + 60)
    assert waiting == {"prepare"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.mlflow_uri)
    do_stage(run, "filter", tmp_path, commit(s3, tmp_path / "empty", "filter", "examples", pairs=pairs))
    assert cached_in(run, s3, but=waiting) == []
    assert finish_parent(*run, "FINISHED", {})
    assert tell_here(s3.storage, time.monotonic() + 60) == set()
    assert runs_of(client, run[1])["weekly 7"].info.status == "FINISHED"  # what is told late opens no run again
    assert runs_of(client, run[1])["prepare"].data.tags["reasrm.output_uri"] == pairs.uri


def test_run_of_the_pipeline_shows_data_stages_and_numbers(run, client, s3, tmp_path):
    empty = tmp_path / "empty"
    pairs = commit(s3, empty, "prepare", "pairs", summary="24 distil, 4 | held out")
    model = commit(s3, empty, "grpo", "model", pairs=pairs)
    check = {"name": "strict accuracy", "value": 0.25}
    publish = commit(
        s3, empty, "publish", "release", summary="version 2", model_name="judge", version="2", passed=False,
        promoted=False, outcome="The alias was not moved.", reasons=["strict accuracy is 0.25, needs 0.5"],
        checks=[check, {"name": "weights finite", "value": None}], judge="grpo", grpo=model,
    )  # fmt: skip
    do_stage(run, "prepare", tmp_path, pairs, source=("s3://bucket/day.jsonl", "d" * 64))
    do_stage(run, "grpo", tmp_path, model)
    do_stage(run, "publish", tmp_path, publish)
    close(*run, "SUCCEEDED", None, {"seed": 7}, s3.prefix)
    parent = runs_of(client, run[1])["weekly 7"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"strict_accuracy": 0.25, "passed": 0, "promoted": 0}
    assert parent.data.tags["reasrm.model_version"] == "judge/2"
    assert parent.data.tags["reasrm.gate"] == "rejected"
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith("**judge version 2.** **The gate is not passed.** The alias was not moved.\n- strict")
    assert "| prepare | 24 distil, 4 \\| held out |  |" in description
    [made] = parent.outputs.model_outputs
    assert client.get_logged_model(made.model_id).tags["reasrm.manifest_digest"] == model.digest
    [linked] = parent.inputs.dataset_inputs
    assert (linked.dataset.name, linked.dataset.digest) == ("day.jsonl", "d" * 36)


def test_mlflow_that_is_away_is_no_error(run, monkeypatch, s3):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    close(*run, "FAILED", "no", {"seed": 7}, s3.prefix)
    assert not open_parent(run[0], "weekly 7", run[1], {})
