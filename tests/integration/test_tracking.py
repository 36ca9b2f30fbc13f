import json
import uuid
from pathlib import Path

import pytest

from components.adapters import model_versions, stage_run, tracking
from components.adapters.pipeline_run import finish_parent, log_parent
from components.core.errors import InvalidInput
from components.core.manifest import FileEntry, Manifest, Parent
from pipeline.lineage import chain

SESSION = uuid.uuid4().hex


@pytest.fixture
def experiment(services, monkeypatch, request):
    """The name of an experiment that no other test uses, on the real server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.mlflow_uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    for name in ("FINISH_SECONDS", "STALLED_SECONDS"):
        monkeypatch.setattr(stage_run, name, 60.0)  # MLflow is there, and this machine may be busy
    return f"{request.node.name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(services):
    return tracking.load().MlflowClient(services.mlflow_uri)


def manifest(stage, kind="pairs", parents=(), **statistics):
    return Manifest(
        kind=kind,
        stage=stage,
        uri=f"s3://bucket/{SESSION}/{stage}/{len(parents)}",
        run_key=stage[0] * 64,
        code_version="1",
        config={},
        files=(FileEntry(path="data", size=5, sha256="0" * 64),),
        parents={parent.stage: Parent(uri=parent.uri, digest=parent.digest) for parent in parents},
        statistics=statistics,
    )


def open_run(experiment, workdir, stage="sft", run_id="run-1"):
    return tracking.open_stage_run(
        run_id=run_id, run_name="demo", stage=stage, experiment=experiment, workdir=workdir, tags={"who": "test"}
    )


def all_runs(client, experiment):
    known = client.get_experiment_by_name(experiment)
    return client.search_runs([known.experiment_id], order_by=["attributes.start_time ASC"])


def history(client, run_id, key):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_a_pipeline_run_is_one_run_with_one_nested_run_per_stage(experiment, client, tmp_path):
    for stage in ("prepare", "sft"):
        run = open_run(experiment, tmp_path / stage, stage)
        run.log_params({stage: {"seed": 1}})
        for step in range(3):
            run.log_metrics({"loss": 1.0 - step / 4}, step)
        assert run.finish("FINISHED")
    runs = {r.info.run_name: r for r in all_runs(client, experiment)}
    assert set(runs) == {"demo", "prepare", "sft"}
    for stage in ("prepare", "sft"):
        assert runs[stage].data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id
        assert runs[stage].data.params == {f"{stage}.seed": "1"}
        assert runs[stage].info.status == "FINISHED"
        assert runs[stage].data.tags["who"] == "test"
        assert history(client, runs[stage].info.run_id, "loss") == [(0, 1.0), (1, 0.75), (2, 0.5)]
    assert runs["demo"].info.status == "RUNNING"
    assert log_parent("run-1", experiment, {"seed": 7}, {"accuracy": 0.5})
    assert log_parent("run-1", experiment, {"seed": 8, "more": {"x": 1}}, {"accuracy": 0.5, "bad": float("nan")})
    assert finish_parent("run-1", experiment, "FINISHED", {"outcome": "promoted"})
    parent = client.get_run(runs["demo"].info.run_id)
    assert (parent.info.status, parent.data.tags["outcome"]) == ("FINISHED", "promoted")
    assert parent.data.params == {"seed": "7", "more.x": "1"}
    assert history(client, parent.info.run_id, "accuracy") == [(0, 0.5)]
    assert "bad" not in parent.data.metrics
    assert not finish_parent("another", experiment, "FINISHED", {})


def test_a_retried_stage_goes_on_in_its_run_and_doubles_nothing(experiment, client, tmp_path):
    artifact = manifest("sft", "model", loss=0.5)
    for attempt, status in enumerate(("FAILED", "FINISHED")):
        run = open_run(experiment, tmp_path / str(attempt))
        run.log_params({"lr": f"1e-{attempt}", "seed": 1})
        for step in range(2 + 2 * attempt):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step)
        run.log_metrics({"total": 3.0})
        run.log_input("pairs", manifest("prepare"), "training")
        model = run.log_model("sft", artifact.uri, artifact.digest, step=3)
        run.log_scores(model, {"accuracy": 0.5}, ("heldout", "s3://bucket/heldout", "d" * 64))
        run.log_output(artifact)
        assert run.finish(status)
    stages = [r for r in all_runs(client, experiment) if r.info.run_name == "sft"]
    assert len(stages) == 1
    run_id = stages[0].info.run_id
    done = client.get_run(run_id)
    assert done.info.status == "FINISHED"
    assert done.data.params == {"lr": "1e-0", "seed": "1"}
    assert done.data.tags["reasrm.changed.lr"] == "1e-1"
    assert history(client, run_id, "loss") == [(0, 1.0), (1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]
    assert history(client, run_id, "total") == [(0, 3.0)]
    assert history(client, run_id, "accuracy") == [(0, 0.5)]
    assert len(done.outputs.model_outputs) == 1
    assert len(done.inputs.dataset_inputs) == 2
    assert len(client.search_logged_models([done.info.experiment_id])) == 1
    assert len(client.get_logged_model(done.outputs.model_outputs[0].model_id).metrics) == 1


def test_a_new_value_of_a_summary_metric_is_shown_after_a_retry(experiment, client, tmp_path):
    for value in (0.5, 0.5, 0.75):
        run = open_run(experiment, tmp_path)
        run.log_metrics({"accuracy": value})
        assert run.finish("FINISHED")
    assert history(client, run.mlflow_run_id, "accuracy") == [(0, 0.5), (0, 0.75)]


def test_inputs_outputs_models_and_scores_are_there_for_a_client(experiment, client, tmp_path):
    pairs = manifest("prepare", rows={"rl": 3})
    model = manifest("grpo", "model", [pairs], reward=0.5, note="text")
    run = open_run(experiment, tmp_path / "grpo", "grpo")
    run.log_input("pairs", pairs, "training")
    reference = run.log_model("grpo", model.uri, model.digest, step=10, params={"lr": {"peak": 1e-6}})
    run.log_output(model)
    (tmp_path / "curve.svg").write_text("<svg/>")
    run.log_artifact(tmp_path / "curve.svg")
    (tmp_path / "curve.svg").unlink()
    assert run.finish("FINISHED")
    bench = open_run(experiment, tmp_path / "benchmark", "benchmark")
    bench.use_model(reference)
    bench.use_model("b" * 64, name="Qwen/base.v1", uri="s3://bucket/base")
    bench.log_scores(reference, {"accuracy": 0.75, "nan": float("nan")}, ("heldout", pairs.uri, pairs.digest))
    assert bench.finish("FINISHED")

    done = client.get_run(run.mlflow_run_id)
    [linked] = done.inputs.dataset_inputs
    assert (linked.dataset.name, linked.dataset.digest) == ("pairs", pairs.digest[:36])
    assert linked.dataset.source == json.dumps({"uri": pairs.uri})
    assert linked.dataset.source_type == "s3"
    tags = {tag.key: tag.value for tag in linked.tags}
    assert tags == {"mlflow.data.context": "training", "reasrm.digest": pairs.digest}
    assert done.data.tags["reasrm.output_uri"] == model.uri
    assert done.data.tags["reasrm.output_digest"] == model.digest
    assert done.data.tags["reasrm.run_key"] == model.run_key
    assert done.data.metrics == {"stat.reward": 0.5}
    assert {file.path for file in client.list_artifacts(done.info.run_id)} == {"manifest.json", "curve.svg"}
    stored = Path(client.download_artifacts(done.info.run_id, "manifest.json", str(tmp_path)))
    assert Manifest.from_bytes(stored.read_bytes()) == model
    [output] = done.outputs.model_outputs
    assert output.step == 10
    logged = client.get_logged_model(output.model_id)
    assert (logged.name, logged.source_run_id, str(logged.status)) == ("grpo", done.info.run_id, "READY")
    assert logged.params == {"lr.peak": "1e-06"}
    assert logged.tags["reasrm.manifest_uri"] == model.uri
    [score] = logged.metrics
    assert (score.key, score.value, score.dataset_name) == ("accuracy", 0.75, "heldout")

    measured = client.get_run(bench.mlflow_run_id)
    names = {client.get_logged_model(used.model_id).name for used in measured.inputs.model_inputs}
    assert names == {"grpo", "Qwen-base-v1"}
    assert measured.data.metrics["nonfinite_metrics"] == 1
    found = tracking.find_model(model.digest)
    assert found == tracking.find_model(model.uri)
    assert (found.model_id, found.uri, found.source_run_id) == (output.model_id, model.uri, done.info.run_id)
    assert tracking.find_model("0" * 64) is None
    assert tracking.find_run(model.digest) == done.info.run_id


def test_under_kfps_plugin_the_stage_uses_the_run_it_is_given(experiment, client, tmp_path, monkeypatch):
    experiment_id = client.create_experiment(experiment)
    given = client.create_run(experiment_id, run_name="kfp-task").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    run = open_run(f"{experiment}-unused", tmp_path)
    run.log_metrics({"loss": 1.0}, 0)
    assert run.finish("FINISHED")
    assert run.mlflow_run_id == given
    [only] = all_runs(client, experiment)
    assert only.data.metrics == {"loss": 1.0}
    assert only.data.tags["reasrm.stage"] == "sft"
    assert client.get_experiment_by_name(f"{experiment}-unused") is None


def test_an_injected_run_that_the_server_does_not_know_is_no_obstacle(experiment, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    run = open_run(experiment, tmp_path)
    assert run.finish("FINISHED")
    assert {r.info.run_name for r in all_runs(client, experiment)} == {"demo", "sft"}


def test_what_mlflow_limits_is_made_to_fit(experiment, client, tmp_path):
    run = open_run(experiment, tmp_path)
    params = {f"param-{i}": i for i in range(250)} | {"k" * 300: 1, "long": "x" * 10_000, "odd ä/../(key)": ""}
    run.log_params(params)
    run.log_metrics({f"metric {i}%": i for i in range(1200)}, 1)
    run.set_tags({"note": "y" * 10_000, "//odd": "1"})
    assert run.finish("FINISHED")
    done = client.get_run(run.mlflow_run_id)
    assert len(done.data.params) == 253
    assert len(done.data.metrics) == 1200
    assert done.data.tags["note"].startswith("yyy")
    assert not (tmp_path / "tracking" / "rejected.jsonl").exists()


def test_a_version_is_registered_once_and_found_by_alias(experiment, client, tmp_path):
    model = manifest("grpo", "model", reward=1.0)
    run = open_run(experiment, tmp_path)
    run.log_model("grpo", model.uri, model.digest)
    assert run.finish("FINISHED")
    tags = {"reasrm.run_key": "k" * 64, "reasrm.manifest_uri": model.uri, "reasrm.manifest_digest": model.digest}
    name = f"registry-{experiment}"
    versions = [
        model_versions.register_version(name, f"{model.uri}/model", run.mlflow_run_id, model.digest, tags, "a judge")
        for _ in range(2)
    ]
    assert versions[0] == versions[1]
    assert (versions[0].version, versions[0].description) == ("1", "a judge")
    assert versions[0].model_id == tracking.find_model(model.digest).model_id
    again = model_versions.register_version(name, f"{model.uri}/model", None, None, tags | {"reasrm.run_key": "l"}, "")
    assert again == versions[0], "another run that ends with the same model"
    other = {"reasrm.run_key": "l", "reasrm.manifest_digest": "0" * 64}
    assert model_versions.register_version(name, f"{model.uri}/model", None, None, other, "").version == "2"
    assert model_versions.get_alias(name, "champion") is None
    for version in ("1", "2"):
        model_versions.set_alias(name, "champion", version)
        assert model_versions.get_alias(name, "champion").version == version
    assert model_versions.get_version(name, "1") == versions[0]
    assert model_versions.get_version(name, "").version == "2"
    assert model_versions.get_version(name, "9") is None
    assert model_versions.get_version("unheard of", "") is None
    assert model_versions.get_alias("unheard of", "champion") is None
    with pytest.raises(InvalidInput, match="no version 9"):
        model_versions.set_alias(name, "champion", "9")
    with pytest.raises(InvalidInput, match=r"needs the tag reasrm\.run_key"):
        model_versions.register_version(name, model.uri, None, None, {}, "")


def test_lineage_starts_from_a_version_an_alias_or_a_run(experiment, tmp_path):
    pairs = manifest("prepare", sources=[{"uri": "s3://data/p.jsonl", "sha256": "a" * 64, "rows": 3}])
    model = manifest("sft", "model", [pairs])
    scores = manifest("benchmark", "scores", [model, pairs], accuracy=0.5)
    store = {m.uri: m for m in (pairs, model, scores)}

    class Store:
        def open(self, uri):
            return store.get(uri)

    run = open_run(experiment, tmp_path)
    run.log_output(model)
    assert run.finish("FINISHED")
    name = f"lineage-{experiment}"
    tags = {"reasrm.run_key": "k", "reasrm.manifest_uri": model.uri, "reasrm.manifest_digest": model.digest}
    tags["reasrm.benchmark_uri"] = scores.uri
    model_versions.register_version(name, f"{model.uri}/model", run.mlflow_run_id, None, tags, "")
    model_versions.set_alias(name, "champion", "1")
    trees = [chain(reference, Store()) for reference in (name, f"{name}/1", f"{name}@champion", f"models:/{name}/1")]
    assert [tree.parents for tree in trees[1:3]] == [trees[0].parents, trees[0].parents]
    assert trees[2].statistics == {"aliases": "champion"}
    [benchmark] = trees[0].parents
    assert (benchmark.stage, benchmark.mlflow_run_id) == ("benchmark", None)
    assert (benchmark.parents[0].stage, benchmark.parents[0].mlflow_run_id) == ("sft", run.mlflow_run_id)
    assert benchmark.parents[0].parents[0].parents[0].uri == "s3://data/p.jsonl"
    assert chain(run.mlflow_run_id, Store()).uri == model.uri
    with pytest.raises(InvalidInput, match=r"MLflow has no run 0{32}; check the id"):
        chain("0" * 32, Store())
    with pytest.raises(InvalidInput, match="MLflow has no model version and no run"):
        chain(f"{name}@nobody", Store())
