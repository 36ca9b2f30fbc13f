"""What the run's parameter `training_job` says: the machines of a TrainJob, and how it gets them."""

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from components.core.errors import InvalidInput
from components.core.records import explain
from components.core.redact import MASK, redact

RESERVED = frozenset({"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"})
"""Variables that Trainer sets itself and refuses from others."""
_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD|CREDENTIALS?)$|^(TOKEN|SECRET)$", re.IGNORECASE)


class TrainJobSettings(BaseModel):
    """The machines of a TrainJob; amounts are those of one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1, description="Image of the training: reasrm/train, by digest or immutable tag.")
    runtime: str = Field("reasrm-torch", description="TrainingRuntime of the namespace.")
    namespace: str = Field("", description="Where the TrainJob is made; empty: the namespace of this pod.")
    gpu_type: str = Field("nvidia.com/gpu", description="Name of the GPUs among a node's resources.")
    gpus: int = Field(8, ge=0, description="GPUs of each machine.")
    cpu: str = Field("8", description="Cores that are asked for.")
    memory: str = Field("96Gi", description="Memory that is asked for, and its limit.")
    shared_memory: str = Field("16Gi", description="Size of /dev/shm; it counts as memory.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that may be taken.")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="Taints that are accepted, as in a pod.")
    secrets: dict[str, tuple[str, ...]] = Field(
        {}, description="Secrets by name with their keys; each key becomes a variable of its name, if it is there."
    )
    env: dict[str, str] = Field({}, description="Plain variables; nothing secret.")
    labels: dict[str, str] = Field({}, description="Labels of the TrainJob and its pods.")
    annotations: dict[str, str] = Field({}, description="Annotations of the TrainJob's pods.")
    queue: str = Field("", description="Kueue's LocalQueue; empty: without Kueue.")
    service_account: str = Field("reasrm", description="Service account of the pods.")
    timeout_hours: float = Field(96, gt=0, description="After this time of work the TrainJob is ended.")
    work_size: str = Field("500Gi", description="Disk for /work: base model, checkpoints, caches.")
    storage_class: str = Field("", description="Class of a volume for /work; empty: the node's own disk.")
    keep: bool = Field(False, description="Leave the TrainJob in place after it has ended well.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the parameter. Raises InvalidInput naming each field that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidInput(
                f"the parameter training_job is not valid: {explain(error)}; give JSON as in "
                '{"image": "reasrm/train@sha256:...", "gpus": 8}, or leave it empty to train in the task\'s own pod'
            ) from error

    @field_validator("env")
    @classmethod
    def _plain(cls, env: dict[str, str]) -> dict[str, str]:
        reserved = sorted(RESERVED & env.keys())
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: Trainer sets it itself; leave it out")
        for name, value in env.items():
            if value and (_SECRET_NAME.search(name) or MASK in redact(value)):
                raise ValueError(f"{name} looks like a secret; put it into a Secret and name that in secrets")
        return env
