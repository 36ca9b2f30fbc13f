"""Profiles: what a kind of cluster offers, and under which names; `pipeline/profiles/*.toml`."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.core.errors import InvalidInput
from components.core.records import explain

PROFILES = Path(__file__).parent / "profiles"
IMAGES = Path(__file__).parent / "images.toml"
Image = Literal["stage", "train"]
Secret = Literal["store", "tracking", "teacher", "hub"]

KEYS: Mapping[str, tuple[str, ...]] = {
    "store": ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
    "tracking": ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "teacher": ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
    "hub": ("HF_TOKEN",),
}
"""Kind of secret -> its keys, each of which becomes the variable of that name."""
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_RELEASE = re.compile(r".+:v?\d+\.\d+\.\d+([-+.][0-9A-Za-z.-]+)?")


class Strict(BaseModel):
    """A part of a profile: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Strict):
    """A machine that trains or judges; the defaults of run parameters."""

    gpu_type: str = "nvidia.com/gpu"
    """The resource that the device plugin offers."""
    gpus: int = Field(8, ge=0)
    """GPUs of a task, or of each machine of a TrainJob; 0: none are asked for."""
    cpu: str = "32"
    memory: str = "256Gi"
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()

    def parameters(self) -> dict[str, Any]:
        """Return the run parameters that these are."""
        return {
            "gpu_type": self.gpu_type,
            "gpus": str(self.gpus),
            "machine_cpu": self.cpu,
            "machine_memory": self.memory,
            "node_selector": dict(self.node_selector),
            "tolerations": [dict(one) for one in self.tolerations],
        }


class Work(Strict):
    """The scratch volume of each task at /scratch: copies of models, checkpoints on their way to S3."""

    size: str = "50Gi"
    machine_size: str = "500Gi"
    """The same for tasks on a machine for training."""


class TrainJob(Strict):
    """SFT and GRPO as TrainJobs of Kubeflow Trainer."""

    runtime: str = "reasrm-torch"
    queue: str = ""
    """Local queue of Kueue; empty: none."""
    storage_class: str = ""
    """Class of a volume for /scratch that is made for each pod and goes with it; empty: an emptyDir on the node's
    disk. Pods of KFP's own always have that: they get no fsGroup, so they could not write to a new volume."""
    launcher_cpu: str = "1"
    launcher_memory: str = "4Gi"
    """Of the task that starts the TrainJob and waits for it."""


class Secrets(Strict):
    """Names of the Kubernetes secrets; none has to exist, a namespace may inject credentials in another way."""

    store: str = "reasrm-s3"
    tracking: str = "reasrm-mlflow"
    teacher: str = "reasrm-teacher"
    hub: str = "reasrm-hub"


class Profile(Strict):
    """How the pipeline is placed on one kind of cluster; `pipeline/profiles/*.toml`."""

    name: str = ""
    machine: Machine = Machine()
    training: Literal["pod", "trainjob"] = "pod"
    """Whether SFT and GRPO train in their task's own pod, or as a TrainJob on one machine or several."""
    trainjob: TrainJob = TrainJob()
    work: Work = Work()
    shared_memory: str = "64Gi"
    """Size of the shared memory of tasks on a machine for training; what is used of it counts as their memory."""
    secrets: Secrets = Secrets()
    service_account: str = "reasrm"
    image_pull_secrets: tuple[str, ...] = ()
    train_image: Literal["train", "train-cpu"] = "train"
    """Which image of images.toml trains and judges."""
    images: dict[Image, str] = {}
    """Images by name; those that are not given are those of images.toml."""

    def image(self, name: Image) -> str:
        """Return the image of a kind of task."""
        if name in self.images:
            return self.images[name]
        known = tomllib.loads(IMAGES.read_text(encoding="utf-8"))
        entry = self.train_image if name == "train" else name
        if "image" not in known.get(entry, {}):
            raise InvalidInput(f"{IMAGES.name} has no image of {entry}; add it, or give images.{name} in the profile")
        return str(known[entry]["image"])

    def check_images(self) -> None:
        """Raise InvalidInput on an image whose content may change under its name: KFP caches by the name."""
        names: tuple[Image, ...] = ("stage", "train")
        for name in names:
            image = self.image(name)
            if not _DIGEST.fullmatch(image) and not _RELEASE.fullmatch(image):
                raise InvalidInput(
                    f"the image {image} can change under its name, and KFP would take old results for new code: give "
                    f"images.{name} of profile {self.name!r} as name@sha256:..., or with the tag of a release (1.2.3)"
                )

    def parameters(self) -> dict[str, Any]:
        """Return the run parameters that a cluster adds to those of a recipe."""
        return self.machine.parameters() | {"teacher_secret": self.secrets.teacher}

    def constants(self) -> dict[str, Any]:
        """Return what preflight has to know of the cluster and cannot see: it is compiled into its task."""
        return {
            "profile": self.name,
            "training": self.training,
            "image": self.image("train"),
            "secrets": self.secrets.model_dump(),
            "shared_memory": self.shared_memory,
            "work_size": self.work.machine_size,
            "service_account": self.service_account,
            "image_pull_secrets": list(self.image_pull_secrets),
            **self.trainjob.model_dump(include={"runtime", "queue", "storage_class"}),
        }


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the project."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def load_profile(profile: str) -> Profile:
    """Read a profile, given by its name or as a .toml file. Raises InvalidInput naming what is wrong in it."""
    path = PROFILES / f"{profile}.toml" if profile in profile_names() else Path(profile)
    if path.suffix != ".toml" or not path.is_file():
        raise InvalidInput(
            f"there is no profile {profile!r}; there are {', '.join(profile_names())}, or give a .toml file"
        )
    try:
        return Profile.model_validate({"name": path.stem} | tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise InvalidInput(f"profile {profile}: {explain(error)}") from error
