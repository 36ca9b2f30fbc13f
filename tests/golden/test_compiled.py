import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components.core.errors import InvalidInput
from pipeline.compiler import compile_pipeline, version_hash
from pipeline.config import SHARED, load_recipe
from pipeline.placement import training_job
from pipeline.profile import load_profile, profile_names

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "pipeline" / "compiled"
TASKS = {
    "preflight", "prepare", "traces-part", "traces", "filter", "sft", "grpo", "benchmark-part", "benchmark", "gate",
    "publish", "publish-2", "report",
}  # fmt: skip
ON_MACHINES = {"exec-sft", "exec-grpo", "exec-benchmark", "exec-benchmark-part"}


def compiled(path: Path, hash_seed: str) -> bytes:
    command = [sys.executable, "-m", "pipeline.cli", "compile", "--recipe", "demo", "--output", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True)
    return path.read_bytes()


def documents_of(recipe, profile):
    spec, platform = yaml.safe_load_all(compile_pipeline(recipe, profile))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec, spec["deploymentSpec"]["executors"], executors


@pytest.fixture(scope="module", params=profile_names())
def golden(request):
    return request.param, list(yaml.safe_load_all((GOLDENS / f"demo-{request.param}.yaml").read_text("utf-8")))


def test_the_committed_pipelines_are_what_the_code_compiles_to(golden):
    profile, _ = golden
    data = compile_pipeline(load_recipe("demo"), load_profile(profile))
    assert data == (GOLDENS / f"demo-{profile}.yaml").read_bytes(), "run: make golden"


def test_the_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    once, again = compiled(tmp_path / "1.yaml", "0"), compiled(tmp_path / "2.yaml", "42")
    assert once == again == (GOLDENS / "demo-gpu.yaml").read_bytes()


def test_each_parses_into_the_pipeline_and_the_platform_spec(golden):
    _, (spec, platform) = golden
    assert json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()).pipeline_info.name == "reasrm"
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{task}" for task in TASKS} == set(spec["deploymentSpec"]["executors"])
    for name, settings in executors.items():
        parsed = json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        assert parsed.security_context.run_as_non_root, name
        assert parsed.active_deadline_seconds > 0, name
        assert parsed.pod_metadata.labels["app.kubernetes.io/part-of"] == "reasrm", name
        assert parsed.empty_dir_mounts[-1].mount_path == "/scratch", name
        assert all(secret.optional for secret in parsed.secret_as_env), name


def test_every_parameter_explains_itself_and_has_a_default(golden):
    _, (spec, _) = golden
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for name, parameter in parameters.items():
        assert parameter["description"], name
        assert "defaultValue" in parameter, name
    assert {f"{stage}_config" for stage in SHARED} < set(parameters)
    assert len(parameters) == 26
    size = sum(len(json.dumps(parameter["defaultValue"])) for parameter in parameters.values())
    assert size < 10_000


def train_image(profile):
    return "reasrm/train-cpu:" if profile == "cpu" else "reasrm/train:"


def test_every_task_runs_one_of_our_images_with_limits_and_installs_nothing(golden):
    _, (spec, _) = golden
    for name, executor in spec["deploymentSpec"]["executors"].items():
        assert executor["container"]["image"].startswith(("reasrm/stage:", train_image(golden[0]))), name
        assert executor["container"]["resources"]["resourceMemoryLimit"], name
        assert "pip install" not in " ".join(executor["container"]["command"]), name


def test_machines_are_asked_for_by_run_parameters_and_only_where_something_trains_or_judges(golden):
    profile, (spec, platform) = golden
    executors = spec["deploymentSpec"]["executors"]
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    expected = ON_MACHINES - ({"exec-sft", "exec-grpo"} if profile == "trainjob" else set())
    selecting = {name for name, one in settings.items() if "nodeSelector" in one and "tolerations" in one}
    assert selecting == expected
    asking = {name: one["container"]["resources"].get("accelerator") for name, one in executors.items()}
    assert {name for name, one in asking.items() if one} == expected
    for name in expected:
        assert executors[name]["container"]["image"].startswith(train_image(profile))
        assert "{{$.inputs.parameters" in executors[name]["container"]["resources"]["resourceMemoryLimit"]
        assert "gpus" in asking[name]["resourceCount"] and "gpu_type" in asking[name]["resourceType"]


def test_loops_are_bounded_and_the_stage_waits_for_its_parts(golden):
    _, (spec, _) = golden
    loops, waiting = {}, {}
    for component in spec["components"].values():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "parameterIterator" in task:
                loops[task["parameterIterator"]["items"]["inputParameter"]] = task["iteratorPolicy"]
            if name in ("traces", "benchmark"):
                waiting[name] = task["dependentTasks"]
    assert loops == {
        f"pipelinechannel--{name}": {"parallelismLimit": 4} for name in ("traces_parts", "benchmark_parts")
    }
    assert all(any(upstream.startswith("for-loop") for upstream in names) for names in waiting.values())


def test_kfp_may_cache_a_task_only_if_a_digest_of_what_it_reads_is_an_input(golden):
    _, (spec, _) = golden
    tasks = {
        name: task
        for component in (*spec["components"].values(), spec["root"])
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }
    assert {f"exec-{name}" for name in tasks} == set(spec["deploymentSpec"]["executors"])
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"prepare", "traces", "filter", "sft", "grpo"}
    for name in cached:
        content = tasks[name]["inputs"]["parameters"]["content"]
        found = content.get("taskOutputParameter") or content
        assert json.dumps(found).count(name), name


def test_publishing_happens_in_both_branches():
    spec, _, _ = documents_of(load_recipe("demo"), load_profile("gpu"))
    branches = [c["dag"]["tasks"] for c in spec["components"].values() if "dag" in c and len(c["dag"]["tasks"]) == 1]
    publishing = [task for tasks in branches for name, task in tasks.items() if name.startswith("publish")]
    promote = sorted(task["inputs"]["parameters"]["promote"]["runtimeValue"]["constant"] for task in publishing)
    assert promote == [False, True]


def test_the_teachers_secret_is_a_run_parameter_and_the_others_are_the_profiles():
    profile = load_profile("gpu").model_copy(
        update={"secrets": load_profile("gpu").secrets.model_copy(update={"hub": "mine"})}
    )
    spec, _, settings = documents_of(load_recipe("demo"), profile)
    named = [json.dumps(secret["secretNameParameter"]) for secret in settings["exec-traces"]["secretAsEnv"]]
    assert sum("teacher_secret" in name for name in named) == 1
    assert any('"mine"' in json.dumps(secret) for secret in settings["exec-sft"]["secretAsEnv"])
    assert spec["root"]["inputDefinitions"]["parameters"]["teacher_secret"]["defaultValue"] == "reasrm-teacher"
    assert "secretAsEnv" not in settings["exec-gate"]


def test_retries_are_allowed_for_as_long_as_all_attempts_can_take(golden):
    _, (spec, platform) = golden
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tasks = [t for c in spec["components"].values() for t in c.get("dag", {}).get("tasks", {}).items()]
    for name, task in tasks:
        policy = task.get("retryPolicy")
        if policy:
            # Argo kills what runs, and tries nothing again, when this is over.
            seconds = float(policy["backoffMaxDuration"].removesuffix("s"))
            attempts = policy["maxRetryCount"] + 1
            assert seconds > attempts * int(settings[f"exec-{name}"]["activeDeadlineSeconds"]), name
    retried = {name for name, task in tasks if task.get("retryPolicy")}
    assert {f"exec-{name}" for name in retried} == set(settings) - {"exec-preflight", "exec-gate", "exec-report"}


def test_a_trainjob_ends_before_the_task_that_waits_for_it(golden):
    profile, (_, platform) = golden
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    job = training_job(json.dumps(load_profile(profile).constants()), load_profile(profile).parameters())
    assert bool(job) == (profile == "trainjob")
    if job:
        seconds = json.loads(job)["timeout_hours"] * 3600
        assert all(seconds < int(settings[f"exec-{stage}"]["activeDeadlineSeconds"]) for stage in ("sft", "grpo"))


def test_without_the_cache_no_task_is_cached():
    spec = next(yaml.safe_load_all(compile_pipeline(load_recipe("demo"), load_profile("gpu"), redo=True)))
    tasks = [t for c in spec["components"].values() for t in c.get("dag", {}).get("tasks", {}).values()]
    own = [t for t in tasks if "executorLabel" in spec["components"][t["componentRef"]["name"]]]
    assert own
    assert not any(task["cachingOptions"].get("enableCache") for task in own)


def test_a_teacher_that_generates_here_gets_a_machine():
    config = load_recipe("demo", ['teacher={kind = "vllm", model = "s3://models/r1"}'])
    _, executors, _ = documents_of(config, load_profile("gpu"))
    for task in ("exec-traces", "exec-traces-part"):
        assert executors[task]["container"]["image"].startswith("reasrm/train:")
        assert "accelerator" in executors[task]["container"]["resources"]


@pytest.mark.parametrize(
    "image", ["reasrm/train", "reasrm/train:latest", "host:5000/reasrm/train", "reasrm/train:main"]
)
def test_an_image_that_can_change_under_its_name_is_refused(image):
    profile = load_profile("gpu").model_copy(update={"images": {"train": image}})
    with pytest.raises(InvalidInput, match=rf"the image {image} can change under its name"):
        compile_pipeline(load_recipe("demo"), profile)


@pytest.mark.parametrize(
    "image", ["host:5000/reasrm/train@sha256:" + "a" * 64, "reasrm/train:1.2.3", "r/t:v0.1.0-rc.1"]
)
def test_a_pinned_image_is_used(image):
    profile = load_profile("gpu").model_copy(update={"images": {"train": image}})
    _, executors, _ = documents_of(load_recipe("demo"), profile)
    assert executors["exec-sft"]["container"]["image"] == image


def test_training_on_several_machines_needs_a_profile_for_it():
    config = load_recipe("demo", ["grpo.nodes=2"])
    with pytest.raises(InvalidInput, match=r"grpo\.nodes is 2, but the profile 'gpu' trains in one pod"):
        compile_pipeline(config, load_profile("gpu"))
    assert compile_pipeline(config, load_profile("trainjob"))


def test_a_profile_that_is_not_there_or_is_wrong_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="there is no profile 'tpu'; there are cpu, gpu, trainjob"):
        load_profile("tpu")
    path = tmp_path / "mine.toml"
    path.write_text("[machine]\ngpu = 4\n", "utf-8")
    with pytest.raises(InvalidInput, match=r"machine\.gpu"):
        load_profile(str(path))


def test_version_is_a_hash_of_all_the_rest():
    config = load_recipe("demo")
    data = compile_pipeline(config, load_profile("cpu"))
    version = f"reasrm-{version_hash(data)}"
    spec, _ = yaml.safe_load_all(data)
    executors = spec["deploymentSpec"]["executors"]
    told = {
        name: {one["name"]: one["value"] for one in executor["container"]["env"]}
        for name, executor in executors.items()
    }
    assert {env["REASRM_PIPELINE_VERSION"] for env in told.values()} == {version}
    assert {env["REASRM_RECIPE"] for env in told.values()} == {"demo"}
    assert all(env["REASRM_IMAGE"] == executors[name]["container"]["image"] for name, env in told.items())
    changed = compile_pipeline(load_recipe("demo", ["seed=8"]), load_profile("cpu"))
    assert version_hash(changed) != version_hash(data)
    assert version_hash(data.replace(version.encode(), b"reasrm-ffffffffffff")) == version_hash(data)
