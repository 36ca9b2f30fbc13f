"""The schemas that manifests and training jobs are checked with refuse what an API server refuses."""

import copy

import pytest

TRAIN_JOB = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "a"},
    "spec": {
        "runtimeRef": {"name": "reasrm-torch", "kind": "TrainingRuntime", "apiGroup": "trainer.kubeflow.org"},
        "trainer": {"image": "i:1", "numNodes": 2, "env": [{"name": "A", "value": "1"}]},
        "runtimePatches": [
            {
                "manager": "reasrm",
                "trainingRuntimeSpec": {
                    "template": {
                        "spec": {
                            "replicatedJobs": [
                                {
                                    "name": "node",
                                    "template": {
                                        "spec": {"template": {"spec": {"tolerations": [{"key": "gpu"}]}}},
                                    },
                                }
                            ]
                        }
                    }
                },
            }
        ],
        "activeDeadlineSeconds": 60,
    },
}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}}
POD = "runtimePatches.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.template.spec.template.spec"


def changed(item, path, value):
    item = copy.deepcopy(item)
    inner = item
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        inner = inner[step]
    inner[last] = value
    return item


def test_objects_without_fault_pass(schema_errors):
    assert schema_errors(TRAIN_JOB) == []
    assert schema_errors(CONFIG_MAP) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.podSpecOverrides", [], "podSpecOverrides"),
        ("spec.trainer.numNodes", "2", "not of type 'integer'"),
        ("spec.activeDeadlineSeconds", 0, "minimum"),
        ("spec.managedBy", "me", "not one of"),
        ("spec.runtimeRef", {"kind": "TrainingRuntime"}, "'name' is a required property"),
        (
            "spec.trainer.env",
            [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}],
            "'key' is a required property",
        ),
        ("spec.runtimePatches", [{"manager": "a"}, {"manager": "a"}], "two items with the same manager"),
        (f"spec.{POD}.tolerations", [{"keys": "gpu"}], "keys"),
        (f"spec.{POD}.hostNetwork", True, "hostNetwork"),
        (f"spec.{POD}.volumes", [{"name": "a", "emptyDirectory": {}}], "emptyDirectory"),
        ("metadata", {}, "metadata.name"),
        ("apiVersion", "trainer.kubeflow.org/v1", "no schema"),
    ],
)
def test_a_fault_in_a_training_job_is_named(path, value, said, schema_errors):
    found = schema_errors(changed(TRAIN_JOB, path, value))
    assert len(found) == 1
    assert said in found[0]


def test_a_fault_in_a_core_object_is_named(schema_errors):
    assert "dta" in schema_errors(CONFIG_MAP | {"dta": {}})[0]
    assert (
        "integer" in schema_errors(changed(CONFIG_MAP, "data.a", 1))[0]
        or "string" in schema_errors(changed(CONFIG_MAP, "data.a", 1))[0]
    )
    twice = {"name": "a", "image": "b"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [twice, twice]}}
    assert schema_errors(pod) == ["$.spec.containers: two items with the same name: ('a',)"]
    assert schema_errors("nothing") == ["not an object with apiVersion and kind"]


def test_every_custom_kind_becomes_a_definition_that_an_api_server_takes(schemas):
    kinds = [kind for _, kind in schemas.custom_kinds()]
    assert {
        "TrainJob",
        "TrainingRuntime",
        "JobSet",
        "LeaderWorkerSet",
        "LocalQueue",
        "InferenceService",
        "PipelineVersion",
    } <= set(kinds)
    for kind in kinds:
        assert schemas.errors(schemas.crd(kind)) == []
