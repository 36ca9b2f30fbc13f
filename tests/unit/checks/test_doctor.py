import json

import pytest
from click.testing import CliRunner

from components.core.errors import ReasrmError
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


def test_a_wrong_profile_is_a_finding(ask):
    error, out = ask("--json", "--recipe", "smoke", "--set", "grpo.nodes=2", "--set", "grpo.processes=1")
    (found,) = json.loads(out)["findings"]
    assert (found["name"], found["status"]) == ("profile", "missing")
    assert isinstance(error, ReasrmError)
