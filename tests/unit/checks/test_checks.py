import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from components.core.errors import InvalidInput, Transient
from pipeline.checks import (
    endpoints,
    hub,
    images,
    kubeflow,
    machines,
    objects,
    permissions,
    reach,
    secrets,
    store,
    tracker,
)
from pipeline.checks.demand import demand_of_profile
from pipeline.checks.desk import from_here
from pipeline.checks.finding import missing, ok
from pipeline.checks.gather import gather, run
from pipeline.client.endpoint import open_client
from pipeline.profile import load_profile

ROOT = Path(__file__).parents[3]
TEACHER = 'teacher={kind = "openai", base_url = "%s", model = "big", calls = {api_key_env = "OPENAI_API_KEY"}}'


def statuses(findings):
    return [finding.status for finding in findings]


def raising(error):
    def check():
        yield ok("first", "was found before")
        raise error

    return check


# ---- findings and how they are gathered


def test_findings_show_no_secrets(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "canary-value-123")
    found = missing("x", "the key canary-value-123 is wrong", "not canary-value-123 but another")
    assert "canary" not in found.what + found.remedy


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (InvalidInput("change it"), "missing", ""),
        (Transient("away"), "missing", "unreachable"),
        (ModuleNotFoundError("no", name="boto3"), "unknown", ""),
        (KeyError("bug"), "unknown", ""),
    ],
)
def test_what_a_check_raises_is_a_finding_beside_those_before(error, status, cause):
    first, last = run("x", raising(error))
    assert (first.status, last.status, last.cause) == ("ok", status, cause)


def test_checks_run_together_and_those_that_hang_are_given_up():
    both, never = threading.Barrier(2), threading.Event()

    def meet():
        both.wait(180)
        return [ok("met", "the other one")]

    begun = time.monotonic()
    found = gather({"hangs": lambda: never.wait(60), "one": meet, "two": meet}, seconds=0.3)
    assert time.monotonic() - begun < 30
    assert list(found) == ["hangs", "one", "two"]
    assert [statuses(found[name]) for name in found] == [["missing"], ["ok"], ["ok"]]
    assert found["hangs"][0].cause == "unreachable"
    assert "0.3 seconds" in found["hangs"][0].what


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("http://mlflow:5000", True),
        ("http://s3.team.svc:8333", True),
        ("http://s3.team.svc.cluster.local", True),
        ("https://s3.example.com", False),
        ("http://127.0.0.1:80", False),
        ("http://localhost:80", False),
        ("http://[::1]:80", False),
        ("", False),
    ],
)
def test_addresses_of_a_cluster_are_known(url, inside, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert reach.is_inside(url) == inside
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert not reach.is_inside(url)


def test_at_a_desk_what_only_pods_see_is_unknown():
    away = missing("x", "does not answer", "", "unreachable")
    assert from_here(away, "http://s3.team.svc").status == "unknown"
    assert from_here(away, "https://s3.example.com").status == "missing"
    assert from_here(missing("x", "not set", "", "unset"), "").status == "unknown"
    assert from_here(missing("x", "wrong", ""), "http://s3.team.svc").status == "missing"


# ---- the bucket


def test_a_bucket_is_written_and_left_as_it_was(s3):
    assert statuses(store.check_bucket(s3.prefix, "reasrm-s3")) == ["ok", "ok"]
    assert s3.storage.list(s3.prefix) == []


def test_a_bucket_that_is_not_there(s3):
    (found,) = store.check_bucket("s3://no-such-bucket-here/x", "reasrm-s3")
    assert (found.status, found.cause) == ("missing", "")
    assert "no bucket for s3://no-such-bucket-here" in found.what
    assert "the secret reasrm-s3" in found.remedy


def test_no_credentials_say_nothing_of_other_processes(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    (found,) = store.check_bucket(s3.prefix, "reasrm-s3")
    assert (found.status, found.cause) == ("missing", "unset")


def test_a_store_that_does_not_answer_is_said_at_once(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    begun = time.monotonic()
    (found,) = run("bucket", lambda: store.check_bucket(s3.prefix, "reasrm-s3"))
    assert (found.status, found.cause) == ("missing", "unreachable")
    assert time.monotonic() - begun < 20  # boto3's own patience is minutes


class ForgetfulStore:
    """S3 as far as one check uses it, which has never heard of If-None-Match, or refuses it."""

    def __init__(self, refuses=False):
        self.refuses, self.objects = refuses, {}

    def __call__(self, handler):
        path = handler.path.split("?")[0]
        if handler.command == "PUT":
            if self.refuses and handler.headers.get("If-None-Match"):
                return 501, {"Content-Type": "application/xml"}, b"<Error><Code>NotImplemented</Code></Error>"
            self.objects[path] = handler.body
            return 200, {}, b""
        if handler.command == "DELETE":
            self.objects.pop(path, None)
            return 204, {}, b""
        if path.count("/") > 1 and path not in self.objects:
            return 404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchKey</Code></Error>"
        return 200, {}, self.objects.get(path, b"")


@pytest.mark.parametrize("refuses", [False, True])
def test_a_store_without_conditional_writes_is_not_safe(refuses, http_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    with http_server(ForgetfulStore(refuses)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        first, *_ = store.check_bucket("s3://bucket/artifacts", "reasrm-s3")
    assert first.status == "missing"
    assert "If-None-Match" in first.what
    assert "conditional writes" in first.remedy


def test_the_rule_for_incomplete_uploads_is_found(s3):
    bucket = s3.prefix.split("/")[2]
    (before,) = store.check_lifecycle(s3.prefix)
    assert before.status == "warning"
    assert f"--bucket {bucket}" in before.remedy
    rules = json.loads((ROOT / "manifests/base/storage/lifecycle.json").read_text("utf-8"))
    s3.storage.client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    try:
        assert statuses(store.check_lifecycle(s3.prefix)) == ["ok"]
    finally:
        s3.storage.client.delete_bucket_lifecycle(Bucket=bucket)


# ---- MLflow


def test_a_real_mlflow_is_recognised(served):
    version, experiment = tracker.check_mlflow("Default", "reasrm-mlflow")
    assert statuses([version, experiment]) == ["ok", "ok"]
    assert "is MLflow 3." in version.what
    _, absent = tracker.check_mlflow("not there & never was", "reasrm-mlflow")
    assert (absent.status, "no experiment not there & never was yet" in absent.what) == ("unknown", True)


BY_NAME = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=mine"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"/version": (200, {}, b"2.22.0")}, "no logged models"),
        ({"/version": (200, {}, b"3.17.2"), BY_NAME: (401, {}, b"")}, "HTTP 401"),
        (
            {"/version": (200, {}, b"3.17.2"), BY_NAME: (200, {}, {"experiment": {"lifecycle_stage": "deleted"}})},
            "is deleted",
        ),
    ],
)
def test_an_mlflow_that_cannot_be_used(answers, expected, said, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", said.url)
    said.table.update(answers)
    found = run("MLflow", lambda: tracker.check_mlflow("mine", "reasrm-mlflow"))
    assert any(finding.status == "missing" and expected in finding.what for finding in found)


def test_a_page_that_is_not_mlflows_counts_as_no_answer(said, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", said.url)
    found = run("MLflow", lambda: tracker.check_mlflow("mine", "reasrm-mlflow"))
    assert found[-1].cause == "unreachable"


def test_mlflows_password_is_sent_and_not_shown(said, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", said.url.replace("//", "//ada:canary-word-1@"))
    said.table["/version"] = (200, {}, b"3.17.2")
    said.table[BY_NAME] = (403, {}, b"")
    found = run("MLflow", lambda: tracker.check_mlflow("mine", "reasrm-mlflow"))
    assert said.asked[-1][1]["Authorization"] == "Basic YWRhOmNhbmFyeS13b3JkLTE="
    assert "canary" not in str(found)


# ---- teachers


def ask(said, smoke, answer, monkeypatch, key="sk-canary0123456789abcdef"):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said.table["/v1/models"] = answer
    (address,) = endpoints.addresses(smoke(TEACHER % f"{said.url}/v1"))
    (found,) = endpoints.check_address(address, "reasrm-teacher")
    return found


@pytest.mark.parametrize(
    ("answer", "status", "cause", "words"),
    [
        ((200, {}, {"data": [{"id": "big"}]}), "ok", "", "has big"),
        ((200, {}, {"data": [{"id": "small"}]}), "warning", "", "it has small"),
        ((200, {}, b"hello"), "unknown", "", "no list of models"),
        ((404, {}, b""), "unknown", "", "so it is there"),
        ((403, {}, b""), "unknown", "", "may not ask that"),
        ((401, {}, {"error": "wrong key"}), "missing", "", "HTTP 401"),
        ((302, {"Location": "http://elsewhere/"}, b""), "missing", "", "redirects"),
        ((503, {}, b"loading"), "missing", "unreachable", "HTTP 503"),
    ],
)
def test_what_a_teachers_answer_means(answer, status, cause, words, said, smoke, monkeypatch):
    found = ask(said, smoke, answer, monkeypatch)
    assert (found.status, found.cause) == (status, cause), found
    assert words in found.what
    assert "canary" not in str(found)
    assert [(path, headers["Authorization"]) for path, headers in said.asked] == [
        ("/v1/models", "Bearer sk-canary0123456789abcdef")
    ]


def test_a_key_that_is_not_set_names_the_secret(said, smoke, monkeypatch):
    found = ask(said, smoke, (200, {}, b""), monkeypatch, key="")
    assert (found.status, found.cause, said.asked) == ("missing", "unset", [])
    assert "OPENAI_API_KEY into the secret reasrm-teacher" in found.remedy


def test_every_address_of_a_recipe_is_known_once(smoke):
    judges = [
        '{kind = "openai", name = "a", base_url = "http://a/v1", model = "m"}',
        '{kind = "openai", name = "b", base_url = "http://a/v1", model = "m", grammar = "think"}',
        '{kind = "scalar-http", name = "c", base_url = "http://c", model = "r", protocol = "vllm"}',
    ]
    config = smoke(
        TEACHER % "http://t/v1",
        f"benchmark.judges=[{', '.join(judges)}]",
        "grpo.rollouts.engine=vllm",
        "grpo.rollouts.mode=server",
        "grpo.rollouts.server_url=http://r:8000",
    )
    assert [(one.role, one.asked) for one in endpoints.addresses(config)] == [
        ("teacher", "http://t/v1/models"),
        ("judge", "http://a/v1/models"),
        ("judge", "http://c/health"),
        ("rollout server", "http://r:8000/health"),
    ]


# ---- the hub


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        ({}, "missing", "or it is private"),
        ({"info": (200, {}, {"id": "org/data", "gated": False})}, "ok", "may be read"),
        (
            {
                "info": (200, {}, {"id": "org/data", "gated": "manual"}),
                "auth": (403, {"X-Error-Code": "GatedRepo"}, {"error": "gated"}),
            },
            "missing",
            "is gated",
        ),
        ({"info": (404, {"X-Error-Code": "RevisionNotFound"}, {"error": "x"})}, "missing", "no revision"),
        ({"info": (500, {}, {"error": "x"})}, "unknown", "does not answer"),
    ],
)
def test_datasets_of_the_hub(answers, status, words, said, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", said.url)
    paths = {"info": f"/api/datasets/org/data/revision/{REVISION}", "auth": "/api/datasets/org/data/auth-check"}
    said.table.update({paths[name]: answer for name, answer in answers.items()})
    if not answers:
        said.table[paths["info"]] = (404, {"X-Error-Code": "RepoNotFound"}, {"error": "x"})
    found = hub.check_hub("x", "org/data", "dataset", REVISION, "reasrm-hub")
    assert (found.status, words in found.what) == (status, True), found


# ---- the cluster


@pytest.fixture
def demand(profile, smoke):
    return demand_of_profile(smoke(), profile)


def test_a_cluster_with_everything(cluster, demand, smoke):
    found = [
        *objects.check_version(cluster),
        *objects.check_kinds(cluster, demand),
        *objects.check_account(cluster, demand),
        *permissions.check_user(cluster),
        *permissions.check_account(cluster, demand),
        *permissions.check_pod(cluster, demand),
        *secrets.check_secrets(cluster, demand, smoke()),
        *machines.check_quota(cluster, demand),
        *machines.check_gpus(cluster, demand),
    ]
    assert {finding.status for finding in found} == {"ok"}, found


def test_what_is_not_installed_is_named_with_its_remedy(cluster, api, demand):
    api.kinds = {"trainer.kubeflow.org/v1alpha1": ["TrainingRuntime"]}
    api.objects.clear()
    api.version = "v1.20.2"
    queued = replace(demand, queue="reasrm")
    found = [*objects.check_kinds(cluster, queued), *objects.check_account(cluster, queued)]
    assert {finding.name: finding.status for finding in found} == {
        "kind Workflow": "missing",
        "kind TrainJob": "missing",
        "kind JobSet": "missing",
        "TrainingRuntime reasrm-torch": "missing",
        "LocalQueue reasrm": "missing",
        "service account reasrm": "missing",
    }
    assert all(finding.remedy for finding in found)
    assert "component training" in found[3].remedy
    assert "apply your overlay (manifests/README.md)" in found[3].remedy
    assert statuses(objects.check_version(cluster)) == ["warning"]


def test_a_profile_without_trainjobs_needs_no_trainer(cluster, api, demand):
    api.kinds = {"argoproj.io/v1alpha1": ["Workflow"]}
    assert statuses(objects.check_kinds(cluster, replace(demand, trainjob=False))) == ["ok"]


def test_a_queue_that_is_not_active(cluster, api, demand):
    api.kinds["kueue.x-k8s.io/v1beta2"] = ["LocalQueue"]
    stopped = {"type": "Active", "status": "False", "message": "no ClusterQueue"}
    api.put("localqueues", "reasrm", status={"conditions": [stopped]})
    *_, queue = objects.check_kinds(cluster, replace(demand, queue="reasrm"))
    assert (queue.status, "no ClusterQueue" in queue.what) == ("warning", True)


def test_refused_permissions_are_listed(cluster, api, demand):
    api.refused = {"create trainjobs", "get pods/log"}
    (found,) = permissions.check_pod(cluster, demand)
    assert found.status == "missing"
    assert found.what == "not allowed: create trainjobs.trainer.kubeflow.org, get pods/log"
    assert statuses(permissions.check_pod(cluster, replace(demand, trainjob=False))) == ["ok"]


def test_the_service_account_is_asked_for_by_its_whole_name(cluster, api, demand):
    api.refused = {"create trainjobs"}
    assert statuses(permissions.check_account(cluster, demand)) == ["missing"]
    assert api.reviews[0]["user"] == "system:serviceaccount:team:reasrm"
    api.forbidden = {"subjectaccessreviews"}
    (found,) = permissions.check_account(cluster, demand)
    assert (found.status, "preflight asks" in found.what) == ("unknown", True)


def test_the_role_that_we_ship_allows_what_is_asked_for(demand):
    files = [ROOT / "manifests" / name / "role.yaml" for name in ("base", "components/training")]
    documents = [one for file in files for one in yaml.safe_load_all(file.read_text("utf-8"))]
    rules = [rule for one in documents if one["kind"] == "Role" for rule in one["rules"]]
    granted = {
        (verb, resource, group)
        for rule in rules
        if "resourceNames" not in rule
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }
    for permission in permissions.of_pods(demand):
        resource = "/".join(part for part in (permission.resource, permission.subresource) if part)
        assert (permission.verb, resource, permission.group) in granted


def test_secrets_are_known_by_their_keys(cluster, api, demand, smoke):
    config = smoke(TEACHER % "http://t/v1")
    api.put("secrets", "reasrm-s3", data={"AWS_ACCESS_KEY_ID": "c2VjcmV0LWNhbmFyeQ=="})
    del api.objects["secrets", "reasrm-mlflow"]
    api.put("secrets", "reasrm-teacher", data={"OPENAI_API_KEY": "c2VjcmV0LWNhbmFyeQ=="})
    found = {finding.name: finding for finding in secrets.check_secrets(cluster, demand, config)}
    assert {name: finding.status for name, finding in found.items()} == {
        "secret reasrm-s3": "missing",
        "secret reasrm-mlflow": "missing",
        "secret reasrm-teacher": "ok",
    }
    assert found["secret reasrm-s3"].what == "has no key AWS_SECRET_ACCESS_KEY"
    assert "create secret generic reasrm-mlflow --from-env-file" in found["secret reasrm-mlflow"].remedy
    assert "canary" not in str(found)
    assert "c2Vjc" not in str(found)
    api.objects["serviceaccounts", "reasrm"]["metadata"]["annotations"] = {"eks.amazonaws.com/role-arn": "arn:x"}
    assert next(iter(secrets.check_secrets(cluster, demand, config))).status == "ok"
    api.forbidden = {"secrets"}
    assert set(statuses(secrets.check_secrets(cluster, demand, config))) == {"unknown"}


def test_a_key_that_pods_never_get(smoke):
    config = smoke((TEACHER % "http://t/v1").replace("OPENAI_API_KEY", "TOGETHER_API_KEY"))
    (found,) = secrets.check_keys(config)
    assert (found.status, "pods get only OPENAI_API_KEY" in found.what) == ("missing", True)
    assert list(secrets.check_keys(smoke(TEACHER % "http://t/v1"))) == []


@pytest.mark.parametrize(
    ("hard", "used", "expected"),
    [
        ({"requests.nvidia.com/gpu": "8"}, {}, "missing"),
        ({"requests.nvidia.com/gpu": "32"}, {"requests.nvidia.com/gpu": "20"}, "warning"),
        ({"requests.nvidia.com/gpu": "32"}, {"requests.nvidia.com/gpu": "16"}, "ok"),
        ({"limits.memory": "900Gi"}, {}, "missing"),
        ({"limits.cpu": "1k"}, {}, "warning"),
        ({"pods": "200"}, {"pods": "200"}, "ok"),
    ],
)
def test_quotas_against_two_machines_of_eight_gpus(hard, used, expected, cluster, api, demand):
    api.put("resourcequotas", "team", status={"hard": hard, "used": used})
    assert statuses(machines.check_quota(cluster, replace(demand, machines=2))) == [expected]


def test_nodes_against_machines(cluster, api, demand):
    assert statuses(machines.check_gpus(cluster, replace(demand, machines=2))) == ["ok"]
    (found,) = machines.check_gpus(cluster, replace(demand, machines=3))
    assert (found.status, "2 nodes have 8 nvidia.com/gpu" in found.what) == ("warning", True)
    assert statuses(machines.check_gpus(cluster, replace(demand, gpus=0))) == ["ok"]
    api.forbidden = {"nodes"}
    assert statuses(machines.check_gpus(cluster, demand)) == ["unknown"]


def test_several_machines_want_a_profile_that_has_them(smoke):
    config = smoke("grpo.nodes=4", "grpo.processes=1")
    with pytest.raises(InvalidInput, match=r"grpo\.nodes is 4, but profile 'gpu' trains in one pod"):
        demand_of_profile(config, load_profile("gpu"))
    assert demand_of_profile(config, load_profile("trainjob")).machines == 4


def test_images_that_can_change_under_their_name(profile):
    here = {"stage": "registry.example/stage:1.2.3", "train": "localhost/train@sha256:" + 64 * "0"}
    assert statuses(images.check_images(profile.model_copy(update={"images": here}))) == ["ok"]
    (found,) = images.check_images(profile.model_copy(update={"images": here | {"stage": "reasrm/stage:1.2.3"}}))
    assert (found.status, found.what.split(":")[0]) == ("warning", "reasrm/stage")
    assert "docker.io" in found.what
    (found,) = images.check_images(profile.model_copy(update={"images": {"train": "reasrm/train:latest"}}))
    assert (found.status, "reasrm/train:latest" in found.what) == ("missing", True)


# ---- Kubeflow Pipelines


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.17.0", "ok"), ("2.18.1", "ok"), ("2.16.0", "missing"), ("2.5.0", "missing"), ("unknown", "unknown")],
)
def test_versions_of_kfp(version, expected, kfp_server):
    kfp_server.version = version
    assert statuses(kubeflow.check_kfp(open_client(kfp_server.url, namespace="team"))) == [expected, "ok"]


@pytest.mark.parametrize(
    ("namespace", "expected"), [("", ["ok", "ok"]), ("kubeflow", ["ok", "ok"]), ("team", ["ok", "missing", "ok"])]
)
def test_kfp_for_one_user_runs_all_in_its_own_namespace(namespace, expected, kfp_server):
    kfp_server.multi_user = False
    found = list(kubeflow.check_kfp(open_client(kfp_server.url, namespace=namespace)))
    assert statuses(found) == expected
    assert all("dev-single-user" in one.remedy for one in found if one.status == "missing")
    assert kubeflow._is_own("http://ml-pipeline.team.svc:8888", "team")  # where its service says that it is installed


def test_kfp_for_several_users_wants_a_namespace_and_a_token(kfp_server):
    assert statuses(kubeflow.check_kfp(open_client(kfp_server.url))) == ["ok", "missing"]
    kfp_server.token = "right"
    found = run("KFP", lambda: kubeflow.check_kfp(open_client(kfp_server.url, namespace="team", token="wrong")))
    assert statuses(found) == ["missing"]
