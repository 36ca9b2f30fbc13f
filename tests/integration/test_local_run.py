"""The whole pipeline on this machine, with real servers, real kfp tasks and a tiny random model."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.adapters.stage import run_stage
from components.adapters.storage import Storage
from components.core.errors import InvalidInput
from components.core.manifest import STAGES, Manifest
from pipeline.config import load_recipe
from pipeline.lineage import chain
from pipeline.local import run_local, serving

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    before = Path.cwd()
    os.chdir(ROOT)  # the recipe names the samples by their path in the repository
    yield tmp_path_factory.mktemp("reasrm")
    os.chdir(before)


@pytest.fixture(scope="module")
def first(folder):
    return run_local(load_recipe("smoke"), folder, recipe="smoke")


@pytest.fixture(scope="module")
def second(first, folder):
    return run_local(load_recipe("smoke"), folder, recipe="smoke")


@pytest.fixture(scope="module")
def servers(second, folder):
    before = dict(os.environ)
    with serving(folder) as environment:
        yield environment
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def client(servers):
    import mlflow

    return mlflow.MlflowClient()


def runs_of(client, run):
    experiment = client.get_experiment_by_name(run.config.experiment)
    found = client.search_runs([experiment.experiment_id], f"tags.`reasrm.run_id` = '{run.run_id}'")
    parents = [one for one in found if one.data.tags.get("reasrm.role") == "pipeline"]
    nested = {one.data.tags["reasrm.stage"]: one for one in found if one not in parents}
    return parents, nested


def test_every_stage_is_done_and_says_so_in_numbers(first):
    assert [first.statuses[stage]["status"] for stage in STAGES] == ["done"] * len(STAGES)
    assert all(first.statuses[stage]["summary"] for stage in STAGES)
    assert first.statuses["gate"]["passed"] is True


def test_a_second_run_uses_everything_again(first, second):
    assert [second.statuses[stage]["status"] for stage in STAGES] == ["reused"] * len(STAGES)
    for stage in STAGES:
        assert second.manifest(stage) == first.manifest(stage)


def test_the_report_is_kept_in_the_run_and_at_the_top(second, folder):
    assert second.report.read_bytes() == (folder / "report.html").read_bytes()
    assert b"<html" in second.report.read_bytes()


def test_every_artifact_in_s3_is_what_its_manifest_says(first, servers):
    storage = Storage.from_env()
    for stage in STAGES:
        manifest = storage.open(first.statuses[stage]["uri"])
        assert isinstance(manifest, Manifest)
        assert storage.verify(manifest) == []
        assert manifest == first.manifest(stage)


def test_mlflow_has_one_parent_and_a_nested_run_for_each_stage(first, second, client):
    for run in (first, second):
        (parent,), nested = runs_of(client, run)
        assert parent.info.status == "FINISHED"
        assert parent.data.params["base_model"] == run.config.base_model
        assert set(nested) == set(STAGES)
        for stage, one in nested.items():
            assert one.data.tags["mlflow.parentRunId"] == parent.info.run_id, stage
            assert one.info.status == "FINISHED", stage
            assert any(key.startswith(f"{stage}.") for key in one.data.params), stage
            assert one.data.tags["reasrm.output_uri"] == run.statuses[stage]["uri"], stage


def test_stages_have_inputs_metrics_and_model_outputs_in_mlflow(first, client):
    _, nested = runs_of(client, first)
    for stage in STAGES:
        assert nested[stage].inputs.dataset_inputs, stage
        assert nested[stage].data.metrics, stage
    (source,) = nested["prepare"].inputs.dataset_inputs
    assert source.dataset.name == "pairs.jsonl.gz"
    for stage in ("sft", "grpo"):
        assert nested[stage].outputs.model_outputs, stage
        history = client.get_metric_history(nested[stage].info.run_id, "loss")
        assert len({point.step for point in history}) >= 2, stage
    assert "grpo.heldout.accuracy" in nested["benchmark"].data.metrics


def test_the_registered_model_is_in_s3_and_leads_back_to_the_pairs(first, client):
    version = client.get_model_version_by_alias("reasrm-smoke", "champion")
    assert version.source == f"{first.statuses['grpo']['uri']}/model"
    tree = json.dumps(chain("reasrm-smoke@champion", Storage.from_env()), default=vars)
    for stage in STAGES:
        assert first.statuses[stage]["uri"] in tree, stage
    assert "samples/pairs.jsonl.gz" in tree


def test_benchmarks_a_cascade_and_attempts_work_through_the_dag(folder, tmp_path, servers, monkeypatch):
    with gzip.open(ROOT / "samples/pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]), "utf-8")
    recording = '{kind = "recorded", uri = "samples/traces.jsonl.gz"%s}'
    settings = [
        f'benchmarks=[{{name = "ours", uri = "{tmp_path / "bench.jsonl"}"}}]',
        f"teacher=[{recording % ''}, {recording % ', show_label = true'}]",
        "traces.both_orders=true",
        "prepare.max_rl=80",
        "experiment=factory",
        "model_name=factory",
    ]
    attempts = judge_rl_pairs(load_recipe("smoke", settings), tmp_path, monkeypatch)
    run = run_local(load_recipe("smoke", [*settings, f"filter.attempts={attempts}"]), folder, recipe="smoke")

    assert run.statuses["prepare"]["status"] == "reused"
    prepared = run.manifest("prepare")
    asked = [row["prompt"] for row in rows[:30]]
    dropped = prepared.statistics["benchmarks"]["ours"]["dropped"]
    assert dropped["exact"] >= sum(row["prompt"] in asked for row in rows) >= 30
    assert "overlap.bin" in {entry.path for entry in prepared.files}
    steps = run.manifest("traces").statistics["steps"]
    assert steps["0"]["asked"] == 2 * prepared.statistics["pairs"]["distil"]
    assert steps["1"]["asked"] == steps["0"]["asked"] - steps["0"]["right"] > 0
    assert steps["1"]["rationalised"] == steps["1"]["traces"]
    filtered = run.manifest("filter")
    kept = filtered.statistics["rl"]["kept"]
    assert 2 <= kept < prepared.statistics["pairs"]["rl"]
    assert run.manifest("grpo").statistics["num_prompts"] == kept
    page = Storage.from_env().read_bytes(f"{filtered.uri}/report.html")
    assert run.output("filter", "report").read_bytes() == page


def judge_rl_pairs(config, tmp_path, monkeypatch):
    """Let the recording judge the rl pairs of a recipe in both orders; returns the uri of these attempts."""
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    place = {"artifact_root": config.artifact_root, "experiment": "attempts", "run_id": "attempts"}
    pairs = run_stage("prepare", config.prepare.model_dump(mode="json"), {}, **place).manifest
    teacher = {"kind": "recorded", "uri": "samples/traces.jsonl.gz"}
    settings = {"part": "rl", "both_orders": True, "teacher": teacher}
    return f"{run_stage('traces', settings, {'pairs': pairs}, **place).manifest.uri}/traces.jsonl"


def test_a_failing_stage_gives_its_message_its_log_and_its_kind(first, folder):
    with pytest.raises(InvalidInput) as caught:
        run_local(load_recipe("smoke", ["filter.max_trace_chars=100"]), folder, recipe="smoke")
    message, log = str(caught.value).splitlines()
    assert message.startswith("filter failed: ")
    assert "min_yield" in message  # what to change
    assert Path(log.removeprefix("log: ")).read_text("utf-8")


def test_an_interrupt_stops_the_stage_and_closes_the_run(folder, client):
    command = [sys.executable, "-m", "pipeline.cli", "run", "--recipe", "smoke", "--set", "sft.epochs=500"]
    before = set((folder / "runs").iterdir())
    process = subprocess.Popen(
        [*command, "--dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell without job control starts background jobs deaf to Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        run = wait_for_steps(folder, before, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert b"run the same command again" in errors
    assert json.loads((run / "status" / "sft.json").read_text("utf-8"))["error"] == "Transient"
    found = client.search_runs(
        [client.get_experiment_by_name("reasrm-smoke").experiment_id],
        f"tags.`reasrm.run_id` = '{run.name}' AND tags.`reasrm.role` = 'pipeline'",
    )
    assert [one.info.status for one in found] == ["KILLED"]


def wait_for_steps(folder: Path, before: set[Path], process) -> Path:
    """Return the folder of the new run once its SFT has done a step."""
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        for run in set((folder / "runs").iterdir()) - before:
            status = run / "status" / "sft.json"
            if status.exists() and json.loads(status.read_text("utf-8")).get("done", 0) >= 1:
                return run
        time.sleep(0.1)
    raise AssertionError("SFT did not get to its first step within a minute")
