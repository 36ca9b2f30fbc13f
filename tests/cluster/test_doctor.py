"""`reasrm doctor` against a real API server: nothing there, everything there, and as an account that may do little."""

import json

import pytest
from click.testing import CliRunner

from components.adapters.kubernetes import SECRETS
from pipeline.commands.doctor import doctor

KEYS = {
    "reasrm-s3": ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
    "reasrm-mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "reasrm-teacher": ("OPENAI_API_KEY",),
}
VALUE = "canary-0123456789abcdef"
STARTS_NOTHING = {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "TrainingRuntime", "LocalQueue", "LimitRange"}


@pytest.fixture(scope="module")
def empty(kinds, new_namespace):
    return new_namespace()


@pytest.fixture(scope="module")
def installed(server, kinds, build, new_namespace):
    """A namespace with the prod overlay and its secrets."""
    name = new_namespace()
    for item in build("overlays/prod", name):
        if item["kind"] in STARTS_NOTHING:
            answer = server.apply(item, name)
            assert answer is not None
            assert answer.taken, answer
    for secret, keys in KEYS.items():
        body = {"metadata": {"name": secret}, "stringData": dict.fromkeys(keys, VALUE)}
        server.cluster.create(SECRETS, body, namespace=name)
    return name


@pytest.fixture
def ask(monkeypatch):
    """Run the command; return what it found, by name."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("REASRM_KFP_HOST", raising=False)

    def run(identity, namespace, *options):
        arguments = ["--kubeconfig", str(identity.kubeconfig), "--namespace", namespace, "--json", *options]
        done = CliRunner().invoke(doctor, ["--profile", "trainjob", *arguments])
        assert VALUE not in done.output
        assert done.stdout.startswith("{"), done.output
        found = json.loads(done.stdout)["findings"]
        return {one["name"]: one for one in found}

    return run


def statuses(found, *names):
    return {name: found[name]["status"] for name in names}


def test_an_empty_namespace_lacks_everything(server, empty, ask):
    found = ask(server, empty)
    wanted = ["service account reasrm", "permissions of reasrm", "TrainingRuntime reasrm-torch"]
    wanted += ["secret reasrm-s3", "secret reasrm-mlflow"]
    assert statuses(found, *wanted) == dict.fromkeys(wanted, "missing")
    assert statuses(found, "kind TrainJob", "kind JobSet") == {"kind TrainJob": "ok", "kind JobSet": "ok"}
    assert "create trainjobs.trainer.kubeflow.org" in found["permissions of reasrm"]["what"]
    assert all(found[name]["remedy"] for name in wanted)


def test_after_the_overlay_nothing_of_ours_is_missing(server, installed, ask):
    found = ask(server, installed)
    wanted = ["service account reasrm", "permissions of reasrm", "TrainingRuntime reasrm-torch", "quota"]
    wanted += ["secret reasrm-s3", "secret reasrm-mlflow"]
    assert {name: found[name] for name in wanted if found[name]["status"] != "ok"} == {}


def test_the_version_is_read(server, installed, ask):
    found = ask(server, installed)["Kubernetes"]
    assert server.cluster.version() in found["what"]
    assert found["status"] == ("ok" if server.version >= (1, 29) else "warning")


def test_a_kind_that_is_not_served_is_named(server, installed, ask):
    served = server.cluster.has_api("argoproj.io/v1alpha1", "Workflow")
    assert ask(server, installed)["kind Workflow"]["status"] == ("ok" if served else "missing")


def test_a_quota_that_is_too_small_is_named(server, new_namespace, ask, until):
    namespace = new_namespace()
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    hard = {"requests.nvidia.com/gpu": "4"}
    answer = server.ask("POST", path, {"metadata": {"name": "small"}, "spec": {"hard": hard}})
    assert answer.taken, answer
    try:
        until(lambda: server.ask("GET", f"{path}/small").body.get("status", {}).get("hard"), "the quota counts", 15)
    except AssertionError:
        pytest.skip("no controller manager works on this API server, so quotas have no status")
    found = ask(server, namespace)["quota"]
    assert found["status"] == "missing"
    assert "small allows 4 of requests.nvidia.com/gpu" in found["what"]


def test_an_account_that_may_do_little_gets_answers_not_errors(account, installed, ask):
    """As a user who may use the namespace only: what cannot be looked at is unknown, never ok and never a crash."""
    found = ask(account(installed, "reasrm"), installed)
    assert found["permissions of reasrm"]["status"] == "unknown"
    assert found["GPUs"]["status"] == "unknown"
    assert found["your permissions"]["status"] == "warning"
    assert found["secret reasrm-mlflow"]["status"] == "unknown"
    wanted = ["secret reasrm-s3", "TrainingRuntime reasrm-torch"]
    assert statuses(found, *wanted) == dict.fromkeys(wanted, "ok")


def test_an_account_without_rights_is_told_which(account, empty, ask):
    found = ask(account(empty, "default"), empty)
    assert found["secret reasrm-s3"]["status"] == "unknown"
    assert "get" in found["secret reasrm-s3"]["what"]
    assert "secrets" in found["secret reasrm-s3"]["what"]
