"""The pipeline as Kubeflow's YAML; equal recipes and profiles give equal bytes."""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.core.errors import InvalidInput, ReasrmError
from components.core.teachers import OfflineTeacher, RecordedTeacher
from pipeline.config import RunConfig
from pipeline.placement import NO_VERSION, OnKubernetes
from pipeline.profile import Profile

HASH_CHARS = 12
# kfp repeats the defaults in a comment, those of lists and objects in an order that changes from run to run.
_VERSION = re.compile(rb"(name: REASRM_PIPELINE_VERSION\n +value: )reasrm-[0-9a-f]{12}\b")
_OBJECT = re.compile(rb"^(#    \w+: (?:list|dict)) \[Default: .*\]$", re.MULTILINE)


def pipeline_for(config: RunConfig, profile: Profile, *, redo: bool = False) -> Any:
    """Return the pipeline as it is placed on a cluster of this profile; with `redo` KFP's cache is off.

    Raises InvalidInput where an image is not pinned, or the recipe trains on machines that the profile does not give.
    """
    from pipeline.dag import build

    profile.check_images()
    many = [stage for stage in ("sft", "grpo") if getattr(config, stage).nodes > 1]
    if many and profile.training == "pod":
        raise InvalidInput(
            f"{many[0]}.nodes is {getattr(config, many[0]).nodes}, but the profile {profile.name!r} trains in one pod; "
            "compile with --profile trainjob, or set nodes = 1"
        )
    teacher_is_here = any(isinstance(one, OfflineTeacher) for one in config.teacher)
    return build(OnKubernetes(profile, teacher_is_here, redo, config.recipe))


def arguments_for(config: RunConfig, profile: Profile) -> dict[str, Any]:
    """Return all parameters of the pipeline: the recipe's and the cluster's."""
    return config.arguments() | profile.parameters()


def compile_pipeline(config: RunConfig, profile: Profile, *, redo: bool = False) -> bytes:
    """Return the compiled pipeline with the run's settings as the parameters' defaults. Raises as `pipeline_for`."""
    from kfp import compiler

    pipeline = pipeline_for(config, profile, redo=redo)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=arguments_for(config, profile))
        data = _OBJECT.sub(rb"\1", path.read_bytes())
    known = NO_VERSION[:-HASH_CHARS] + version_hash(data)
    return data.replace(NO_VERSION.encode(), known.encode())


def version_hash(data: bytes) -> str:
    """Return the hash that names the version of this content, of 12 hex digits; its own place in there counts as 0."""
    return hashlib.sha256(_VERSION.sub(rb"\g<1>" + NO_VERSION.encode(), data)).hexdigest()[:HASH_CHARS]


def write(data: bytes, path: Path) -> None:
    """Write what was compiled. Raises InvalidInput if it cannot be written."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from error


def check_compiled(config: RunConfig, profile: Profile, path: Path, command: str) -> None:
    """Compare a file with what the code compiles to now; `command` writes it. Raises ReasrmError if they differ."""
    try:
        committed = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    if committed != compile_pipeline(config, profile):
        raise ReasrmError(f"{path} is not what the code compiles to; run: {command}")


def local_paths(config: RunConfig) -> Iterator[str]:
    """Yield the settings that name a place on this machine, which pods do not see, as `name = value`."""
    named = [("base_model", config.base_model)]
    named += [("preference_data", source.uri) for source in config.preference_data]
    named += [("benchmarks", benchmark.uri) for benchmark in config.benchmarks]
    named += [("teacher", teacher.uri) for teacher in config.teacher if isinstance(teacher, RecordedTeacher)]
    for name, place in named:
        if not place.startswith(("s3://", "hf://")) and not (name == "base_model" and "@" in place):
            yield f"{name} = {place}"
