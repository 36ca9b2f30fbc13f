"""The custom kinds that we use, as a real API server reads them."""

import pytest

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs"


def test_every_kind_is_served(kinds):
    assert kinds
    assert {kind: why for kind, why in kinds.items() if why.startswith("refused")} == {}


def job(name, **spec):
    runtime = {"name": "reasrm-torch", "kind": "TrainingRuntime", "apiGroup": "trainer.kubeflow.org"}
    metadata = {"name": name}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {"runtimeRef": runtime, **spec},
    }


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"trainer": {"numNodes": "four"}}, "numNodes"),
        ({"runtimeRef": {}}, "runtimeRef"),
        ({"runtimePatches": [{"time": "2026-01-01T00:00:00Z"}]}, "manager"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
    ],
)
def test_a_wrong_train_job_is_refused_by_field(server, kinds, spec, word):
    answer = server.ask("POST", JOBS, job("wrong", **spec), dryRun="All")
    assert answer.status == 422, answer
    assert word in str(answer)


def test_a_right_train_job_is_taken(server, kinds):
    answer = server.ask("POST", JOBS, job("right", trainer={"numNodes": 4}), dryRun="All")
    assert answer.status == 201, answer


def test_a_field_that_is_no_field_is_refused_where_the_server_can(server, kinds):
    wrong = job("wrong", podTemplateOverrides=[])
    answer = server.ask("POST", JOBS, wrong, dryRun="All", fieldValidation="Strict")
    if answer.taken and server.version < (1, 25):
        pytest.skip(f"strict reading came with Kubernetes 1.25, this is {server.cluster.version()}")
    assert answer.status == 400, answer
    assert "podTemplateOverrides" in str(answer)


def test_the_rules_of_a_definition_hold_where_it_has_some(server, kinds):
    """In CEL: Trainer's own definition has this one, and so do no old servers."""
    answer = server.ask("POST", JOBS, job("right", managedBy="somebody.else/controller"), dryRun="All")
    if answer.taken and (server.version < (1, 25) or kinds["TrainJob"] == "tests/schemas"):
        pytest.skip("no rules are looked at here")
    assert answer.status == 422, answer
    assert "managedBy" in str(answer)
