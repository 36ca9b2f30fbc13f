"""Where each task runs on Kubernetes: what tasks need, what clusters offer, and the one place that applies both.

A local run uses none of it: there every task is a process on this machine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import ValidationError

from components.adapters import origin
from components.core.errors import InvalidInput
from components.core.records import explain
from pipeline.profile import KEYS, Image, Profile, Secret

USER_ID = 10_001
WORK = "/scratch"
TRAINING_HOURS = 96
"""Longest attempt at SFT or GRPO."""
TRACKED: tuple[Secret, ...] = ("store", "tracking")


@dataclass(frozen=True)
class Needs:
    """What one task needs, whatever the cluster."""

    image: Image = "stage"
    cpu: str = "1"
    memory: str = "4Gi"
    machine: bool = False
    """Whether it runs on a machine for training: its resources, node selector and tolerations are the run's."""
    retries: int = 2
    timeout_hours: float = 2
    cached: bool = False
    """Whether KFP may take the result of an equal task. Its key holds the inputs and the image, not what lies behind a
    uri; so only tasks that get a digest of it as an input."""
    secrets: tuple[Secret, ...] = TRACKED


TABLE: Mapping[str, Needs] = {
    "preflight": Needs(retries=0, timeout_hours=1, secrets=(*TRACKED, "teacher", "hub")),
    "prepare": Needs(cpu="2", memory="8Gi", cached=True, secrets=(*TRACKED, "hub")),
    "traces_part": Needs(cpu="2", memory="8Gi", retries=4, timeout_hours=72, secrets=(*TRACKED, "teacher", "hub")),
    "traces": Needs(
        cpu="2", memory="8Gi", retries=4, timeout_hours=72, cached=True, secrets=(*TRACKED, "teacher", "hub")
    ),
    "filter": Needs(cpu="2", memory="8Gi", cached=True),
    "sft": Needs(
        "train", machine=True, retries=4, timeout_hours=TRAINING_HOURS, cached=True, secrets=(*TRACKED, "hub")
    ),
    "grpo": Needs(
        "train", machine=True, retries=4, timeout_hours=TRAINING_HOURS, cached=True, secrets=(*TRACKED, "hub")
    ),
    "benchmark_part": Needs("train", machine=True, retries=4, timeout_hours=24, secrets=(*TRACKED, "teacher", "hub")),
    "benchmark": Needs("train", machine=True, retries=4, timeout_hours=24, secrets=(*TRACKED, "teacher", "hub")),
    "gate": Needs(memory="1Gi", retries=0, timeout_hours=0.5, secrets=()),
    "publish": Needs(timeout_hours=2),  # it reads all weights: 64 GB in a quarter of an hour at 75 MB/s
    "report": Needs(memory="1Gi", timeout_hours=0.5),
}
TRAINING = ("sft", "grpo")
TEACHING = ("traces_part", "traces")
PENDING_HOURS = 7 * 24
"""How long all attempts at a task may wait for a machine, together."""
NO_VERSION = "reasrm-000000000000"
"""What stands for the pipeline's version until it is known: the version is a hash of all the rest."""
MAX_PARALLEL = 4
"""Tasks of a loop that run at the same time."""


class Placement(Protocol):
    """Says where the tasks of the DAG run."""

    @property
    def constants(self) -> str:
        """What preflight has to know of the place, as JSON; empty on this machine."""

    @property
    def scheduled(self) -> str:
        """What becomes the time that a schedule started the run for; kfp.local does not know KFP's placeholder."""

    @property
    def run_name(self) -> str:
        """What becomes the name of the run; empty where the environment has it."""

    def place(self, name: str, task: Any, of_run: Mapping[str, Any]) -> Any:
        """Place a task and return it; `of_run` are the run's parameters by name."""


@dataclass(frozen=True)
class OnKubernetes:
    """Applies the table and a profile to the tasks of the DAG."""

    profile: Profile
    teacher_is_here: bool = False
    """Whether a teacher generates in its task, which then needs a machine for training."""
    redo: bool = False
    """Whether KFP's cache is off."""
    recipe: str = ""
    """What the run is shown to come from."""

    @property
    def constants(self) -> str:
        """What preflight has to know of the cluster, as JSON."""
        return json.dumps(self.profile.constants(), sort_keys=True)

    @property
    def scheduled(self) -> str:
        """KFP's placeholder; KFP 2.16 leaves it as it is."""
        from kfp import dsl

        return str(dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER)

    @property
    def run_name(self) -> str:
        """KFP's placeholder."""
        from kfp import dsl

        return str(dsl.PIPELINE_JOB_NAME_PLACEHOLDER)

    def place(self, name: str, task: Any, of_run: Mapping[str, Any]) -> Any:
        """Apply a row of the table to a task and return the task; `of_run` are the run's parameters by name."""
        from kfp import kubernetes

        needs, profile = TABLE[name], self.profile
        if self.teacher_is_here and name in TEACHING:
            needs = replace(needs, image="train", machine=True)
        launches = name in TRAINING and profile.training == "trainjob"
        on_machine = needs.machine and not launches
        image = profile.image("stage" if launches else needs.image)
        task.set_container_image(image)
        for variable, value in (
            (origin.IMAGE, image),
            (origin.RECIPE, self.recipe),
            (origin.PIPELINE_VERSION, NO_VERSION),
        ):
            task.set_env_variable(variable, value)  # none of them is in the key of KFP's cache
        if on_machine:
            self._on_machine(task, of_run)
        else:
            cpu = profile.trainjob.launcher_cpu if launches else needs.cpu
            memory = profile.trainjob.launcher_memory if launches else needs.memory
            task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
        # A TrainJob may wait for its machines, and its task is to see how it ends.
        hours = needs.timeout_hours + (PENDING_HOURS if launches else 0)
        kubernetes.set_timeout(task, seconds=round(hours * 3600))
        task.set_caching_options(enable_caching=needs.cached and not self.redo)
        if needs.retries:
            # Argo's maxDuration bounds all attempts together, from the start of the first: beyond it nothing is tried
            # again, and what runs is killed.
            longest = (needs.retries + 1) * hours + PENDING_HOURS
            task.set_retry(
                num_retries=needs.retries,
                backoff_duration="60s",
                backoff_factor=2,
                backoff_max_duration=f"{round(longest * 3600)}s",
            )
        kubernetes.set_security_context(task, run_as_user=USER_ID, run_as_group=0, run_as_non_root=True)
        kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "reasrm")
        kubernetes.add_pod_label(task, "app.kubernetes.io/component", name.replace("_", "-"))
        # Not an input, which would be in the key of KFP's cache.
        kubernetes.use_field_path_as_env(task, env_name="REASRM_RUN_ID", field_path="metadata.labels['pipeline/runid']")
        size = profile.work.machine_size if on_machine else profile.work.size
        kubernetes.empty_dir_mount(task, volume_name="work", mount_path=WORK, size_limit=size)
        for kind in needs.secrets:
            secret = of_run["teacher_secret"] if kind == "teacher" else getattr(profile.secrets, kind)
            kubernetes.use_secret_as_env(
                task, secret_name=secret, secret_key_to_env={key: key for key in KEYS[kind]}, optional=True
            )
        if profile.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(profile.image_pull_secrets))
        return task

    def _on_machine(self, task: Any, of_run: Mapping[str, Any]) -> None:
        """Give a task what the run's parameters say of machines."""
        from kfp import kubernetes

        task.set_cpu_request(of_run["machine_cpu"])
        task.set_memory_request(of_run["machine_memory"]).set_memory_limit(of_run["machine_memory"])
        task.set_accelerator_type(of_run["gpu_type"]).set_accelerator_limit(of_run["gpus"])
        kubernetes.add_node_selector_json(task, of_run["node_selector"])
        kubernetes.add_toleration_json(task, of_run["tolerations"])
        kubernetes.empty_dir_mount(
            task,
            volume_name="shm",
            mount_path="/dev/shm",  # noqa: S108
            medium="Memory",
            size_limit=self.profile.shared_memory,
        )


@dataclass(frozen=True)
class Here:
    """Places nothing: the local run."""

    constants = ""
    scheduled = ""
    run_name = ""

    def place(self, name: str, task: Any, of_run: Mapping[str, Any]) -> Any:
        """Leave a task where it is; nothing is cached, a stage knows its finished work itself."""
        return task.set_caching_options(enable_caching=False)


def training_job(constants: str, of_run: Mapping[str, Any]) -> str:
    """Return the JSON of the TrainJob in which SFT and GRPO train, or "" where they train in their task's own pod.

    `constants` is what was compiled in, `of_run` the run's parameters. Raises InvalidInput naming what is wrong.
    """
    fixed: dict[str, Any] = json.loads(constants) if constants else {"training": "pod"}
    if fixed["training"] == "pod":
        return ""
    from components.adapters.trainjob import TrainJobSettings

    secrets: dict[str, tuple[str, ...]] = {}
    for kind in TABLE["sft"].secrets:
        name = fixed["secrets"][kind]
        secrets[name] = (*secrets.get(name, ()), *KEYS[kind])  # one secret may hold all keys
    try:
        settings = TrainJobSettings(
            image=fixed["image"],
            runtime=fixed["runtime"],
            queue=fixed["queue"],
            service_account=fixed["service_account"],
            image_pull_secrets=tuple(fixed["image_pull_secrets"]),
            shared_memory=fixed["shared_memory"],
            work_size=fixed["work_size"],
            storage_class=fixed["storage_class"],
            gpu_type=of_run["gpu_type"],
            gpus=of_run["gpus"],
            cpu=of_run["machine_cpu"],
            memory=of_run["machine_memory"],
            node_selector=of_run["node_selector"],
            tolerations=tuple(of_run["tolerations"]),
            secrets=secrets,
            timeout_hours=TRAINING_HOURS,
        )
    except ValidationError as error:
        raise InvalidInput(f"the machines of the TrainJob: {explain(error)}") from error
    return settings.model_dump_json()
