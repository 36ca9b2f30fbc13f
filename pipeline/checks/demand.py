"""What a run asks of a cluster, from its profile and its parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.core.errors import InvalidInput
from pipeline.config import RunConfig
from pipeline.profile import Profile


@dataclass(frozen=True)
class Demand:
    """Machines, secrets and objects that a run wants to find. Sizes are quantities of Kubernetes, as in 96Gi."""

    profile: str
    trainjob: bool
    """Whether SFT and GRPO train as TrainJobs."""
    runtime: str
    queue: str
    service_account: str
    secrets: Mapping[str, str]
    """Kind (store, tracking, teacher, hub) -> name."""
    gpu_type: str
    gpus: int
    """GPUs of each machine."""
    cpu: str
    memory: str
    machines: int
    """Most machines that one piece of training needs at the same time."""


def demand_of(config: RunConfig | None, constants: Mapping[str, Any], of_run: Mapping[str, Any]) -> Demand:
    """Return what a run asks for; `constants` are a profile's, `of_run` the run's parameters.

    Raises InvalidInput where a number is none, or where several machines are wanted of a profile that gives one.
    """
    nodes = {"sft": config.sft.nodes if config.sft.epochs else 1, "grpo": config.grpo.nodes} if config else {"grpo": 1}
    trainjob = constants["training"] == "trainjob"
    for stage, count in nodes.items():
        if count > 1 and not trainjob:
            raise InvalidInput(
                f"{stage}.nodes is {count}, but profile {constants['profile']!r} trains in one pod; compile with "
                "--profile trainjob, or set nodes to 1"
            )
    gpus = str(of_run["gpus"])
    if not gpus.isdecimal():
        raise InvalidInput(f"gpus is {gpus!r}; give a whole number, 0 for none")
    return Demand(
        profile=constants["profile"],
        trainjob=trainjob,
        runtime=constants["runtime"],
        queue=constants["queue"],
        service_account=constants["service_account"],
        secrets={**constants["secrets"], "teacher": of_run["teacher_secret"]},
        gpu_type=of_run["gpu_type"],
        gpus=int(gpus),
        cpu=of_run["machine_cpu"],
        memory=of_run["machine_memory"],
        machines=max(nodes.values()),
    )


def demand_of_profile(config: RunConfig | None, profile: Profile) -> Demand:
    """Return what a run of a recipe (or any) asks for by default on clusters of a profile. Raises as `demand_of`."""
    return demand_of(config, profile.constants(), profile.parameters())


def demand_of_run(config: RunConfig, placement: str, of_run: Mapping[str, Any]) -> Demand | None:
    """Return what a run asks for, or None where it runs on this machine; `placement` is compiled into the pipeline."""
    return demand_of(config, json.loads(placement), of_run) if placement else None
