"""A job as Kubernetes objects: a TrainJob (Trainer v2.3) and a ConfigMap with the files that its command reads."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from components.adapters import origin
from components.adapters.kubernetes import CONFIG_MAPS, TRAIN_JOBS, TRAINING_RUNTIMES, Object, quantity
from components.adapters.launch import STOP_VARIABLE, Job, stop_seconds
from components.adapters.torchrun import LOG_VARIABLE
from components.adapters.trainjob.settings import TrainJobSettings
from components.core.errors import InvalidInput

HASH = "reasrm/spec"
"""Annotation: what the TrainJob was made from, without what differs between two runs of the same work."""
MANAGER = "reasrm/launcher"
REPLICATED_JOB = "node"
CONTAINER = "node"
FILES = "/etc/reasrm/job"
SCRATCH = "/scratch/job"
TERMINATION_LOG = "/dev/termination-log"
PODS_LABEL = "jobset.sigs.k8s.io/jobset-name"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RENDEZVOUS_SECONDS = 3600
"""How long the machines that are there wait for the others: pods are not all placed at once."""
GRACE_SECONDS = 60
"""What a pod is given to end beside the time that its processes have for a checkpoint."""
FILES_LIMIT = 2**20 - 2**14
"""Bytes of a ConfigMap (its limit is 1 MiB with all names)."""
PLUGIN = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_WORKSPACE")
"""Variables of KFP's MLflow plugin; what lets one in comes from a secret, and is not among them."""
_NAME_LIMIT = 48
"""Of 63 characters of a pod's name, `-node-0-0-` and five random ones are not ours."""


@dataclass(frozen=True)
class Wanted:
    """The objects of a job."""

    train_job: Object
    files: Object

    @property
    def name(self) -> str:
        """Return the name of both."""
        return str(self.train_job["metadata"]["name"])

    @property
    def digest(self) -> str:
        """Return what two TrainJobs that do the same have in common."""
        return str(self.train_job["metadata"]["annotations"][HASH])


def name_of(job: Job) -> str:
    """Return the name that every attempt at this work comes to."""
    name = f"reasrm-{job.stage}-{job.key[:12]}"
    if not job.key or len(name) > _NAME_LIMIT:
        raise ValueError(f"{name!r} is no name for a TrainJob")
    return name


def processes_of(job: Job, settings: TrainJobSettings) -> int:
    """Return how many processes each machine runs. Raises InvalidInput where the GPUs are too few for them."""
    if job.processes == "auto":
        return max(settings.gpus, 1)
    if 0 < settings.gpus < job.processes:
        raise InvalidInput(
            f"processes is {job.processes}, and the run's gpus gives each machine {settings.gpus}: each process needs "
            'one of its own; lower processes, raise gpus, or take processes = "auto"'
        )
    return job.processes


def build(job: Job, settings: TrainJobSettings, namespace: str, environment: Mapping[str, str]) -> Wanted:
    """Return the objects of a job; `environment` is this process's own.

    Raises InvalidInput where the settings or the files' size cannot be.
    """
    _check(settings)
    files = _files(job, namespace)
    same = _train_job(replace(job, run_arguments=(), environment={}), settings, namespace, {})
    text = json.dumps([same, job.files], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    train_job = _train_job(job, settings, namespace, environment)
    train_job["metadata"]["annotations"] = {HASH: digest}
    return Wanted(train_job, files)


def _check(settings: TrainJobSettings) -> None:
    said = {
        "the run's machine_cpu": settings.cpu,
        "the run's machine_memory": settings.memory,
        "the profile's shared_memory": settings.shared_memory,
        "[work] machine_size of the profile": settings.work_size,
    }
    for name, amount in said.items():
        if quantity(amount) <= 0:
            raise InvalidInput(f"{name} is {amount!r}; give more than nothing")


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "reasrm", "app.kubernetes.io/component": job.stage}


def _files(job: Job, namespace: str) -> Object:
    sizes = {name: len(text.encode()) for name, text in job.files.items()}
    if sum(sizes.values()) > FILES_LIMIT:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidInput(
            f"the files of the job are {sum(sizes.values())} bytes, and a ConfigMap holds {FILES_LIMIT}: {largest} "
            f"alone has {sizes[largest]}; let its artifact have fewer files, or its configuration fewer entries"
        )
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.name,
        "metadata": {"name": name_of(job), "namespace": namespace, "labels": _labels(job)},
        "immutable": True,
        "data": dict(job.files),
    }


def _train_job(job: Job, settings: TrainJobSettings, namespace: str, environment: Mapping[str, str]) -> Object:
    labels = _labels(job)
    queue = {QUEUE_LABEL: settings.queue} if settings.queue else {}
    spec: Object = {
        "runtimeRef": {
            "apiGroup": TRAINING_RUNTIMES.group,
            "kind": TRAINING_RUNTIMES.name,
            "name": settings.runtime,
        },
        "trainer": {
            "image": settings.image,
            "command": [
                "python", "-m", "components.adapters.torchrun", f"--rdzv-conf=timeout={RENDEZVOUS_SECONDS}",
                *job.command(FILES, SCRATCH),
            ],
            "env": _environment(job, settings, environment),
            "numNodes": job.nodes,
            "numProcPerNode": processes_of(job, settings),
            "resourcesPerNode": _resources(settings),
        },
        "runtimePatches": [
            {
                "manager": MANAGER,
                "trainingRuntimeSpec": {
                    "template": {
                        "spec": {
                            "replicatedJobs": [
                                {
                                    "name": REPLICATED_JOB,
                                    "template": {"spec": {"template": _pod(labels, settings, name_of(job))}},
                                }
                            ]
                        }
                    }
                },
            }
        ],
        "activeDeadlineSeconds": math.ceil(settings.timeout_hours * 3600),
    }  # fmt: skip
    if settings.queue:
        spec["suspend"] = True  # Kueue lets it go
    return {
        "apiVersion": TRAIN_JOBS.api_version,
        "kind": TRAIN_JOBS.name,
        "metadata": {"name": name_of(job), "namespace": namespace, "labels": {**labels, **queue}},
        "spec": spec,
    }


def _resources(settings: TrainJobSettings) -> Object:
    gpus = {settings.gpu_type: str(settings.gpus)} if settings.gpus else {}
    return {
        "requests": {"cpu": settings.cpu, "memory": settings.memory, **gpus},
        "limits": {"memory": settings.memory, **gpus},
    }


def _environment(job: Job, settings: TrainJobSettings, environment: Mapping[str, str]) -> list[Object]:
    """Return the variables of the processes; of two that have one name the plain one wins."""
    stop = stop_seconds()
    plain = {
        "REASRM_WORKDIR": "/scratch",
        STOP_VARIABLE: str(stop),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(stop),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, int(quantity(settings.cpu)) // processes_of(job, settings))),
        **_plugin(environment),
        **{name: environment[name] for name in origin.ASKED if environment.get(name)},
        origin.IMAGE: settings.image,
        **job.environment,
        LOG_VARIABLE: TERMINATION_LOG,
    }
    variables: dict[str, Object] = {}
    for secret, keys in settings.secrets.items():
        for key in keys:
            reference = {"name": secret, "key": key, "optional": True}
            variables[key] = {"name": key, "valueFrom": {"secretKeyRef": reference}}
    variables |= {name: {"name": name, "value": value} for name, value in plain.items()}
    return list(variables.values())


def _plugin(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the run that KFP's MLflow plugin made for this task, so that the processes log to it too."""
    if "MLFLOW_RUN_ID" not in environment:
        return {}
    found = {name: environment[name] for name in PLUGIN if environment.get(name)}
    if "@" in found.get("MLFLOW_TRACKING_URI", ""):  # with a password, which the secret brings
        del found["MLFLOW_TRACKING_URI"]
    return found


def _pod(labels: Mapping[str, str], settings: TrainJobSettings, name: str) -> Object:
    """Return the patch of the pods. Volumes bear names of ours, so that none of the runtime's is half replaced."""
    spec: Object = {
        "serviceAccountName": settings.service_account,
        "terminationGracePeriodSeconds": stop_seconds() + GRACE_SECONDS,
        "volumes": [
            {"name": "reasrm-job", "configMap": {"name": name}},
            {"name": "reasrm-work", **_work(settings)},
            {"name": "reasrm-shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        ],
        "containers": [
            {
                "name": CONTAINER,
                "volumeMounts": [
                    {"name": "reasrm-job", "mountPath": FILES, "readOnly": True},
                    {"name": "reasrm-work", "mountPath": "/scratch"},
                    {"name": "reasrm-shm", "mountPath": "/dev/shm"},  # noqa: S108
                ],
            }
        ],
    }
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def _work(settings: TrainJobSettings) -> Object:
    if not settings.storage_class:
        return {"emptyDir": {"sizeLimit": settings.work_size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": settings.storage_class,
        "resources": {"requests": {"storage": settings.work_size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
