import json
import socket

import pytest
import yaml
from click.testing import CliRunner

from components.core.errors import ReasrmError, Transient
from pipeline.checks.desk import from_here
from pipeline.checks.finding import missing
from pipeline.checks.gather import run
from pipeline.commands.doctor import doctor


@pytest.fixture
def ask(kfp_server, kubeconfig, served):
    """Run the command against the servers of this test; gives its exception, standard output and error."""

    def call(*arguments):
        options = ["--host", kfp_server.url, "--namespace", "team", "--kubeconfig", str(kubeconfig), *arguments]
        done = CliRunner().invoke(doctor, options, terminal_width=200)
        return done.exception, done.stdout

    return call


def test_a_cluster_with_everything_has_nothing_missing(ask):
    error, out = ask("--profile", "trainjob", "--json")
    said = json.loads(out)
    assert said["ok"]
    assert error is None
    assert {one["status"] for one in said["findings"]} <= {"ok", "warning", "unknown"}
    names = {one["name"] for one in said["findings"]}
    assert names >= {
        "Kubeflow Pipelines", "Kubernetes", "kind TrainJob", "TrainingRuntime reasrm-torch", "your permissions",
        "permissions of reasrm", "secret reasrm-s3", "service account reasrm", "bucket", "lifecycle rule", "MLflow",
        "quota", "GPUs", "images",
    }  # fmt: skip


def test_what_is_missing_ends_with_an_error_and_its_remedy(ask, api):
    api.objects.pop(("secrets", "reasrm-s3"))
    error, out = ask("--profile", "trainjob")
    assert isinstance(error, ReasrmError)
    assert error.exit_code == 1
    assert "1 of " in str(error)
    assert any(line.split()[:3] == ["missing", "secret", "reasrm-s3"] for line in out.splitlines())
    assert "kubectl -n team create secret generic" in " ".join(out.split())


def test_a_recipe_adds_its_data_models_and_teachers(ask, s3, tmp_path):
    s3.storage.write_bytes(f"{s3.prefix}/pairs.jsonl", b"{}\n")
    error, out = ask(
        "--json", "--recipe", "smoke", "--profile", "cpu",
        "--set", f'preference_data=["{s3.prefix}/pairs.jsonl"]', "--set", f"base_model={s3.prefix}/model",
        "--set", 'teacher={kind = "openai", base_url = "http://teacher.team.svc/v1", model = "big"}',
    )  # fmt: skip
    found = {one["name"]: one for one in json.loads(out)["findings"]}
    assert found[f"preference_data {s3.prefix}/pairs.jsonl"]["status"] == "ok"
    assert found[f"base_model {s3.prefix}/model"]["status"] == "missing"
    assert found["teacher big"]["status"] == "unknown"
    assert "address of the cluster" in found["teacher big"]["what"]
    assert isinstance(error, ReasrmError)


def test_what_is_on_this_machine_is_not_in_a_pod(ask):
    _, out = ask("--json", "--recipe", "smoke")
    found = {one["name"]: one for one in json.loads(out)["findings"]}
    assert "no pod sees it" in found["preference_data samples/pairs.jsonl.gz"]["what"]
    assert "reasrm upload samples/pairs.jsonl.gz" in found["preference_data samples/pairs.jsonl.gz"]["remedy"]


def test_what_cannot_be_asked_is_unknown_and_no_failure(served, tmp_path, monkeypatch):
    monkeypatch.delenv("REASRM_KFP_HOST", raising=False)
    done = CliRunner().invoke(doctor, ["--json", "--kubeconfig", str(tmp_path / "none")])
    found = {one["name"]: one["status"] for one in json.loads(done.stdout)["findings"]}
    assert done.exception is None
    assert (found["Kubeflow Pipelines"], found["Kubernetes"]) == ("unknown", "unknown")


def test_a_cluster_that_does_not_answer_is_asked_once(served, kfp_server, kubeconfig, tmp_path, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    content = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    content["clusters"][0]["cluster"]["server"] = address
    kubeconfig.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = CliRunner().invoke(
        doctor, ["--json", "--host", kfp_server.url, "-n", "team", "--kubeconfig", str(kubeconfig)]
    )
    found = json.loads(done.stdout)["findings"]
    (kubernetes,) = [one for one in found if address in one["what"]]
    assert (kubernetes["name"], kubernetes["status"]) == ("Kubernetes", "unknown")
    assert "kubectl get namespace" in kubernetes["remedy"]
    assert not any(one["name"].startswith(("kind", "secret", "quota", "permissions")) for one in found)
    assert caplog.records == []


def test_one_namespace_is_asked_everywhere(served, kfp_server, kubeconfig, monkeypatch):
    def told(*more):
        kfp_server.requests.clear()
        CliRunner().invoke(doctor, ["--json", "--host", kfp_server.url, "--kubeconfig", str(kubeconfig), *more])
        return [request.query["namespace"] for request in kfp_server.asked("GET .*runs$")]

    monkeypatch.delenv("REASRM_KFP_NAMESPACE", raising=False)
    assert told() == ["team"]  # of kubeconfig's context
    monkeypatch.setenv("REASRM_KFP_NAMESPACE", "mine")
    assert told() == ["mine"]
    assert told("--namespace", "given") == ["given"]


def test_storage_that_nobody_has_named_here_is_unknown():
    away = missing("bucket", "https://s3.amazonaws.com does not answer", "", "unreachable")
    found = from_here(away, None)
    assert found.status == "unknown" and "AWS_ENDPOINT_URL_S3" in found.remedy
    assert from_here(missing("bucket", "no such bucket", "make it"), None).status == "missing"


def test_what_does_not_answer_has_a_remedy():
    def away():
        raise Transient("http://s3:1 does not answer")

    (found,) = run("bucket", away)
    assert (found.status, found.cause) == ("missing", "unreachable") and found.remedy


def test_a_wrong_profile_is_a_finding(ask):
    error, out = ask("--json", "--recipe", "smoke", "--set", "grpo.nodes=2", "--set", "grpo.processes=1")
    (found,) = json.loads(out)["findings"]
    assert (found["name"], found["status"]) == ("profile", "missing")
    assert isinstance(error, ReasrmError)
