"""What the run's parameter `training_job` says: the machines of a TrainJob, and how it gets them."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.core.errors import InvalidInput
from components.core.records import explain


class TrainJobSettings(BaseModel):
    """The machines of a TrainJob; amounts are those of one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1, description="Image of the training: reasrm/train, by digest or immutable tag.")
    runtime: str = Field("reasrm-torch", description="TrainingRuntime of the namespace.")
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
    image_pull_secrets: tuple[str, ...] = Field((), description="Secrets of the registry, by name.")
    queue: str = Field("", description="Kueue's LocalQueue; empty: without Kueue.")
    service_account: str = Field("reasrm", description="Service account of the pods.")
    timeout_hours: float = Field(
        96,
        gt=0,
        description="Hours after which the TrainJob is ended, from its creation; with a queue from its last admission.",
    )
    work_size: str = Field("500Gi", description="Disk for /scratch: base model, checkpoints, caches.")
    storage_class: str = Field("", description="Class of a volume for /scratch; empty: the node's own disk.")

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
