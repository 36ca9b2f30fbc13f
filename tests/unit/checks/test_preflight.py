import json
import logging
from datetime import UTC, datetime

import pytest

from components.adapters.stage import content_of
from components.adapters.storage import Storage
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest
from pipeline import preflight as module
from pipeline.preflight import STAGES, check, due_day, preflight
from pipeline.profile import load_profile

TEACHER = 'teacher={kind = "openai", base_url = "%s/v1", model = "big", calls = {api_key_env = "OPENAI_API_KEY"}}'
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def run(s3, smoke):
    """Return a run's parameters with settings changed."""

    def parameters(*settings):
        return smoke(f"artifact_root={s3.prefix}/run", *settings).arguments()

    return parameters


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    """Return a preflight that believes to be in a pod of a cluster."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")

    def call(parameters, profile_name="trainjob"):
        profile = load_profile(profile_name)
        return check(parameters | profile.parameters(), json.dumps(profile.constants()), connect=lambda: cluster)

    return call


def problems(error):
    """The names of what an error's message lists."""
    return [line[2:].split(":")[0] for line in str(error.value).splitlines() if line.startswith("- ")]


def test_a_run_that_can_work_begins_with_the_contents_of_its_stages(run, smoke, s3):
    parameters = run()
    found = check(parameters, "")
    config = smoke(f"artifact_root={s3.prefix}/run")
    storage = Storage.from_env()
    assert found.contents == {stage: content_of(stage, getattr(config, stage), storage) for stage in STAGES}
    assert all(len(digest) == 20 for digest in found.contents.values())
    assert found.warnings == []
    assert s3.storage.list(f"{s3.prefix}/run") == []


def test_other_data_behind_the_same_uri_is_another_content(run, s3):
    uri = f"{s3.prefix}/pairs.jsonl"
    parameters = run(f'preference_data=["{uri}"]')
    s3.storage.write_bytes(uri, b"{}\n")
    first = check(parameters, "").contents
    assert check(parameters, "").contents == first
    s3.storage.write_bytes(uri, b'{"other": 1}\n')
    second = check(parameters, "").contents
    assert {stage for stage in STAGES if first[stage] != second[stage]} == {"prepare"}


def test_all_wrong_values_are_named_at_once(run):
    parameters = run() | {"seed": -1, "grammar": "sonnet", "sft_config": '{"epochs": -2}'}
    with pytest.raises(InvalidInput) as error:
        check(parameters, "")
    assert all(name in str(error.value) for name in ("seed", "grammar", "sft.epochs"))


def test_all_that_is_missing_is_named_at_once_with_its_remedy(run, s3, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    parameters = run(
        TEACHER % NOWHERE,
        f'preference_data=["{s3.prefix}/no-pairs.jsonl"]',
        "base_model=/no/such/model",
        f"filter.attempts={s3.prefix}/no-attempts.jsonl",
    )
    with pytest.raises(InvalidInput) as error:
        check(parameters, "")
    assert sorted(problems(error)) == ["teacher big", "what filter reads", "what prepare reads", "what sft reads"]
    assert "missing (4)" in str(error.value)  # the base model is said once, not for the benchmark again
    assert "put OPENAI_API_KEY into the secret reasrm-teacher" in str(error.value)
    assert "no-pairs.jsonl" in str(error.value)


def test_what_only_does_not_answer_is_worth_another_try(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary0123456789abcdef")
    with pytest.raises(Transient) as error:
        check(run(TEACHER % NOWHERE), "")
    assert problems(error) == ["teacher big"]
    assert "canary" not in str(error.value)


def test_a_teacher_is_not_missed_once_its_traces_are_there(run, smoke, s3, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary0123456789abcdef")
    settings = [TEACHER % NOWHERE, f"artifact_root={s3.prefix}/run"]
    config, inputs = smoke(*settings), {}
    for stage, name in (("prepare", "pairs"), ("traces", "traces")):
        work = module.name_work(stage, getattr(config, stage), inputs, config.artifact_root)
        inputs = {name: Manifest(
            kind=name, stage=stage, uri=work.uri, run_key=work.key, code_version="1", config={}, files=(),
            parents={}, statistics={},
        )}  # fmt: skip
        s3.storage.write_bytes(f"{work.uri}/manifest.json", inputs[name].to_bytes())
    (warning,) = check(config.arguments(), "").warnings
    assert warning.startswith("teacher big: ")


def test_mlflow_being_down_stops_nothing(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    found = check(run("benchmark.champion=reasrm-smoke@champion"), "")
    assert any("MLflow" in warning for warning in found.warnings)
    assert set(found.contents) == {*STAGES} - {"benchmark"}  # its champion is not known
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (warning,) = check(run(), "").warnings
    assert "MLFLOW_TRACKING_URI is not set" in warning


def test_a_bucket_that_does_not_answer_ends_it_at_once(run, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", NOWHERE)
    with pytest.raises(Transient) as error:
        check(run(), "")
    assert problems(error) == ["bucket"]


def test_judges_may_come_up_later_but_their_key_may_not(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary0123456789abcdef")
    judge = '{kind = "openai", name = "a", base_url = "%s", model = "m", calls = {api_key_env = "OPENAI_API_KEY"}}'
    parameters = run(f"benchmark.judges=[{judge % NOWHERE}]")
    (warning,) = check(parameters, "").warnings
    assert warning.startswith("judge m: ")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY is not set"):
        check(parameters, "")


def test_a_cluster_that_has_all_of_it(run, on_cluster):
    assert on_cluster(run()).warnings == []


def test_what_a_cluster_lacks_is_named_with_the_rest(run, on_cluster, api):
    api.kinds = {"argoproj.io/v1alpha1": ["Workflow"], "trainer.kubeflow.org/v1alpha1": ["TrainingRuntime"]}
    api.objects.pop(("trainingruntimes", "reasrm-torch"))
    api.refused = {"create trainjobs"}
    api.put("resourcequotas", "team", status={"hard": {"requests.nvidia.com/gpu": "4"}})
    with pytest.raises(InvalidInput) as error:
        on_cluster(run("base_model=/no/such/model"))
    assert sorted(problems(error)) == [
        "TrainingRuntime reasrm-torch", "kind JobSet", "kind TrainJob", "permissions of this pod", "quota",
        "what sft reads",
    ]  # fmt: skip
    assert "apply your overlay (manifests/README.md)" in str(error.value)


def test_without_trainjobs_only_a_quota_that_is_too_small_counts(run, on_cluster, api):
    api.kinds, api.refused = {}, {"create trainjobs"}
    api.forbidden = {"resourcequotas"}
    on_cluster(run(), "gpu")
    api.forbidden = set()
    api.put("resourcequotas", "team", status={"hard": {"requests.nvidia.com/gpu": "4"}})
    with pytest.raises(InvalidInput, match=r"team allows 4 of requests.nvidia.com/gpu"):
        on_cluster(run(), "gpu")


def test_machines_that_cannot_be_are_named(run, on_cluster, profile):
    with pytest.raises(InvalidInput, match=r"grpo\.nodes is 2, but profile 'gpu' trains in one pod"):
        on_cluster(run("grpo.nodes=2", "grpo.processes=1"), "gpu")
    with pytest.raises(InvalidInput, match="gpus is 'many'"):
        check(run() | profile.parameters() | {"gpus": "many"}, json.dumps(profile.constants()))


def test_progress_is_shown_as_that_of_a_stage(run, tmp_path, monkeypatch):
    monkeypatch.setenv("REASRM_STATUS", str(tmp_path / "status"))
    check(run(), "")
    state = json.loads((tmp_path / "status" / "preflight.json").read_text("utf-8"))
    assert (state["status"], state["done"], state["total"]) == ("done", len(STAGES) + 1, len(STAGES) + 1)
    with pytest.raises(InvalidInput):
        check(run("base_model=/no/such/model"), "")
    state = json.loads((tmp_path / "status" / "preflight.json").read_text("utf-8"))
    assert (state["status"], state["error"]) == ("failed", "InvalidInput")


def test_the_day_of_a_schedules_slot():
    assert due_day("", "") == ""
    assert due_day("2026-11-02", "2026-11-16T03:00:00Z") == "2026-11-02"
    assert due_day("schedule", "2026-11-16T03:00:00Z") == "2026-11-16"
    today = {datetime.now(UTC).date().isoformat()}
    found = due_day("schedule", "{{$.pipeline_job_schedule_time_utc}}")  # what KFP 2.16 gives
    assert found in today | {datetime.now(UTC).date().isoformat()}  # midnight may pass in between


@pytest.fixture
def logging_as_before():
    """A KFP task configures the whole process's logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_task_gives_its_outputs_or_ends_with_the_errors_code(run, logging_as_before, capfd):
    parameters = run() | {"scheduled": "", "placement": "", "data_until": "2026-11-02"}
    found = preflight(parameters)
    assert all(len(digest) == 20 for digest in found[:5])
    assert (found.data_until, found.training_job) == ("2026-11-02", "")
    with pytest.raises(SystemExit) as ended:
        preflight(parameters | {"base_model": "/no/such/model"})
    assert ended.value.code == 2
    assert "reasrm preflight: this run cannot work yet; missing (1):\n- what sft reads" in capfd.readouterr().err


def test_the_outputs_are_those_of_the_component():
    from pipeline.component import preflight as component

    outputs = component.component_spec.outputs
    assert list(outputs) == list(module.Found._fields)
    assert preflight.__module__ == "pipeline.preflight"
