"""What a run's pods may do: enough for the launcher and for Pipelines' own parts, and no more."""

import pytest

from components.adapters.kubernetes import CONFIG_MAPS, JOBS, PODS, SECRETS, TRAIN_JOBS, Forbidden

TRAINER, ARGO = "trainer.kubeflow.org", "argoproj.io"
ALLOWED = [
    *((verb, TRAINER, "trainjobs") for verb in ("create", "get", "list", "watch", "patch", "delete")),
    *((verb, "", "pods") for verb in ("get", "list", "watch")),
    *((verb, ARGO, "workflowtaskresults") for verb in ("create", "patch")),
    ("get", ARGO, "workflows"),
    ("get", TRAINER, "trainingruntimes"),
    ("list", "", "resourcequotas"),
    ("list", "", "events"),
    ("get", "", "configmaps"),
    ("get", "", "pods/log"),
    ("get", "", "secrets:reasrm-s3"),
]
REFUSED = [
    *((verb, "", "secrets") for verb in ("get", "list", "watch", "create", "delete")),
    *((verb, "", "pods") for verb in ("create", "delete", "patch")),
    *((verb, "rbac.authorization.k8s.io", "rolebindings") for verb in ("create", "bind", "escalate")),
    *(("get", "", f"secrets:reasrm-{name}") for name in ("db", "s3-server", "mlflow", "teacher", "hub")),
    ("get", "", "secrets:reasrm-mlflow-server"),
    ("create", "", "pods/exec"),
    ("create", "", "serviceaccounts/token"),
    ("impersonate", "", "users"),
    ("delete", TRAINER, "trainingruntimes"),
    ("patch", TRAINER, "trainingruntimes"),
    ("create", "batch", "jobs"),
    ("create", ARGO, "workflows"),
    ("update", "", "resourcequotas"),
    ("list", "", "nodes"),
    ("list", "", "limitranges"),
    ("list", "", "configmaps"),
    ("list", ARGO, "workflows"),
    ("get", "jobset.x-k8s.io", "jobsets"),
    ("*", "*", "*"),
]


@pytest.fixture(scope="module")
def namespace(server, kinds, build, new_namespace):
    """A namespace with everything of the prod overlay that starts nothing."""
    name = new_namespace()
    wanted = {"ServiceAccount", "Role", "RoleBinding", "TrainingRuntime", "ResourceQuota", "LimitRange", "LocalQueue"}
    for item in build("overlays/prod", name):
        if item["kind"] in wanted:
            answer = server.apply(item, name)
            assert answer is not None
            assert answer.taken, answer
    return name


@pytest.fixture(scope="module")
def pods(account, namespace):
    """The API as a run's pods see it."""
    return account(namespace, "reasrm").cluster


def may(cluster, verb, group, resource, namespace=""):
    resource, _, name = resource.partition(":")
    resource, _, subresource = resource.partition("/")
    return bool(cluster.can_i(verb, group, resource, subresource=subresource, name=name, namespace=namespace))


def test_a_run_s_pods_may_do_what_they_do(pods):
    assert [asked for asked in ALLOWED if not may(pods, *asked)] == []


def test_and_nothing_else(pods):
    assert [asked for asked in REFUSED if may(pods, *asked)] == []


def test_in_no_other_namespace(pods, new_namespace):
    other = new_namespace()
    assert [asked for asked in ALLOWED if may(pods, *asked, namespace=other)] == []


def test_the_namespace_s_default_account_gets_nothing(account, namespace):
    default = account(namespace, "default").cluster
    assert [asked for asked in ALLOWED if may(default, *asked)] == []


def test_a_refusal_names_the_permission(pods, server, namespace):
    with pytest.raises(Forbidden, match=r"list.*secrets"):
        pods.list(SECRETS)
    with pytest.raises(Forbidden, match=r"create.*jobs\.batch"):
        pods.create(JOBS, {"metadata": {"name": "any"}, "spec": {}})
    assert pods.secret_keys("reasrm-s3") is None
    server.cluster.create(SECRETS, {"metadata": {"name": "other"}, "stringData": {"KEY": "value"}}, namespace=namespace)
    with pytest.raises(Forbidden, match=r"get.*secrets"):
        pods.secret_keys("other")


def test_a_job_s_whole_life_as_the_service_account(pods, server, namespace):
    """The calls themselves, beside what the server says that it would allow."""
    spec = {"runtimeRef": {"name": "reasrm-torch", "kind": "TrainingRuntime"}, "suspend": True}
    listed = pods.list(TRAIN_JOBS)
    made = pods.create(
        TRAIN_JOBS,
        {"apiVersion": TRAIN_JOBS.api_version, "kind": "TrainJob", "metadata": {"name": "one"}, "spec": spec},
    )
    with pods.watch(TRAIN_JOBS, listed.version, fields="metadata.name=one", seconds=10) as watch:
        kind, seen = next(iter(watch))
    assert (kind, seen["metadata"]["uid"]) == ("ADDED", made["metadata"]["uid"])
    changed = pods.patch(TRAIN_JOBS, "one", {"metadata": {"annotations": {"reasrm/seen": "yes"}}})
    assert changed["metadata"]["annotations"]["reasrm/seen"] == "yes"
    assert pods.list(PODS).items == []
    assert pods.events("one") == []
    assert pods.get(CONFIG_MAPS, "none") is None
    assert pods.delete(TRAIN_JOBS, "one", uid=made["metadata"]["uid"])
    assert not pods.delete(TRAIN_JOBS, "one")
