"""The objects that are made of a job, against the schemas of Trainer and of Kubernetes."""

import json

import pytest

from components.adapters import launch
from components.adapters.kubernetes import quantity
from components.adapters.trainjob import TrainJobSettings, launcher_from
from components.adapters.trainjob.launcher import TrainJobLauncher
from components.adapters.trainjob.spec import HASH, build, name_of
from components.core.errors import InvalidInput
from components.core.training import TrainingConfig

FULL = {
    "image": "reasrm/train:0.1.0",
    "gpus": 8,
    "node_selector": {"gpu": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "secrets": {"reasrm-s3": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "reasrm-mlflow": ["MLFLOW_TRACKING_URI"]},
    "image_pull_secrets": ["registry"],
    "queue": "gpus",
    "storage_class": "fast",
}
PLUGIN = {"MLFLOW_RUN_ID": "r", "MLFLOW_TRACKING_URI": "http://mlflow", "MLFLOW_TRACKING_TOKEN": "t", "HOME": "/root"}


def job(**values):
    config = {"base_model": "m", "nodes": 4, **values}
    settings = TrainingConfig.model_validate({"nodes": config["nodes"], "processes": config.get("processes", "auto")})
    launcher = TrainJobLauncher(TrainJobSettings.model_validate(FULL))
    return launch.plan(
        "sft",
        config,
        settings,
        {},
        "s3://b/root",
        "e",
        config.pop("run_id", "r 1"),
        "name",
        key="f" * 64,
        launcher=launcher,
    )


def made(work=None, environment=None, **values):
    return build(work or job(), TrainJobSettings.model_validate(FULL | values), "team", environment or {})


def variables(wanted):
    return {one["name"]: one for one in wanted.train_job["spec"]["trainer"]["env"]}


def pod_of(wanted):
    [patch] = wanted.train_job["spec"]["runtimePatches"]
    [replicated] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    return replicated["template"]["spec"]["template"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"queue": "", "storage_class": "", "gpus": 0, "node_selector": {}, "tolerations": [], "image_pull_secrets": []},
    ],
)
def test_the_objects_are_what_the_api_takes(schema_errors, values):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    wanted = made(environment=PLUGIN, **values)
    assert schema_errors(wanted.train_job) == []
    assert schema_errors(wanted.files) == []
    read = models.TrainerV1alpha1TrainJob.from_dict(wanted.train_job)
    assert json.loads(json.dumps(read.to_dict(), default=str)) == wanted.train_job  # nothing is unknown to Trainer


def test_the_schema_would_tell(schema_errors):
    wanted = made()
    pod_of(wanted)["spec"]["tolerations"] = [{"keys": "x"}]
    assert "keys" in " ".join(schema_errors(wanted.train_job))
    wanted.train_job["spec"]["podTemplateOverrides"] = []
    assert "podTemplateOverrides" in " ".join(schema_errors(wanted.train_job))


def test_every_machine_runs_the_stage(monkeypatch):
    monkeypatch.setenv("REASRM_STOP_SECONDS", "200")
    wanted = made()
    trainer = wanted.train_job["spec"]["trainer"]
    command = trainer["command"]
    assert command[:3] == ["python", "-m", "components.adapters.torchrun"]
    assert command[4:6] == ["-m", "components.sft"]
    assert "/etc/reasrm/job/config.json" in command
    assert command[command.index("--output") + 1] == "/scratch/job/output.json"  # the files' folder cannot be written
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "96Gi", "nvidia.com/gpu": "8"}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod_of(wanted)["spec"]["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(wanted)["spec"]["volumes"]}
    assert volumes[mounts["/etc/reasrm/job"]]["configMap"]["name"] == wanted.name == wanted.files["metadata"]["name"]
    claim = volumes[mounts["/scratch"]]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"]["storage"] == "500Gi"
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    found = variables(wanted)
    assert found["REASRM_WORKDIR"]["value"] == "/scratch"
    assert found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]["value"] == found["REASRM_STOP_SECONDS"]["value"] == "200"
    assert pod_of(wanted)["spec"]["terminationGracePeriodSeconds"] > 200
    assert found["REASRM_TERMINATION_LOG"]["value"] == "/dev/termination-log"
    assert found["REASRM_RUN_NAME"]["value"] == "name"
    assert pod_of(wanted)["spec"]["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize(("cpu", "processes", "threads"), [("36", "auto", "4"), ("8", 1, "8"), ("500m", 2, "1")])
def test_processes_share_the_cores(cpu, processes, threads):
    found = variables(made(job(processes=processes), cpu=cpu))
    assert found["OMP_NUM_THREADS"]["value"] == threads


def test_kueue_lets_it_go():
    queued = made().train_job
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in made(queue="").train_job["spec"]


def test_secrets_are_references_only():
    found = variables(made(environment=PLUGIN))
    reference = {"name": "reasrm-s3", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
    assert found["AWS_SECRET_ACCESS_KEY"] == {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": reference},
    }
    assert "MLFLOW_TRACKING_TOKEN" not in found


def test_the_run_of_the_mlflow_plugin_is_handed_on():
    assert variables(made(environment=PLUGIN))["MLFLOW_TRACKING_URI"] == {
        "name": "MLFLOW_TRACKING_URI",
        "value": "http://mlflow",
    }
    without = variables(made(environment={"MLFLOW_TRACKING_URI": "http://mlflow"}))
    assert "secretKeyRef" in without["MLFLOW_TRACKING_URI"]["valueFrom"]
    with_password = variables(made(environment=PLUGIN | {"MLFLOW_TRACKING_URI": "http://u:password@mlflow"}))
    assert "secretKeyRef" in with_password["MLFLOW_TRACKING_URI"]["valueFrom"]


def test_the_name_is_that_of_the_work():
    assert name_of(job()) == "reasrm-sft-ffffffffffff"
    assert made(job(run_id="r 2")).digest == made(job()).digest == made(environment=PLUGIN).digest
    assert made(job(nodes=2)).digest != made(job()).digest  # nodes are no part of the key
    assert made(memory="1Gi").digest != made().digest
    assert made().train_job["metadata"]["annotations"] == {HASH: made().digest}


def test_processes_need_gpus():
    assert made(job(processes=2)).train_job["spec"]["trainer"]["numProcPerNode"] == 2
    assert made(job(processes=2), gpus=0).train_job["spec"]["trainer"]["numProcPerNode"] == 2
    with pytest.raises(InvalidInput, match="processes is 9, and the run's gpus gives each machine 8"):
        made(job(processes=9))


def test_files_have_a_limit():
    with pytest.raises(InvalidInput, match=r"a ConfigMap holds 1032192: config\.json alone has"):
        made(job(prompt="x" * 2**20))


@pytest.mark.parametrize("amount", ["lots", "0", "-1Gi"])
def test_amounts_are_looked_at(amount):
    with pytest.raises(InvalidInput, match=f"{amount}' is no quantity|machine_memory is '{amount}'"):
        made(memory=amount)
    assert quantity("1500m") == 1.5
    assert quantity("2Gi") == 2**31


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "training_job is not valid"),
        ("{}", "image"),
        ('{"image": "i", "gpu": 8}', "gpu"),
        ('{"image": "i", "gpus": -1}', "gpus"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        launcher_from(text)


def test_the_parameter_makes_the_launcher():
    assert launcher_from("") is None
    launcher = launcher_from(json.dumps(FULL))
    assert isinstance(launcher, TrainJobLauncher)
    assert launcher.settings.secrets["reasrm-s3"] == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
