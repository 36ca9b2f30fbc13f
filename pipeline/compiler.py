"""The pipeline as Kubeflow's YAML; equal recipes give equal bytes."""

import tempfile
from pathlib import Path

from components.core.errors import InvalidInput, ReasrmError
from pipeline.config import RunConfig


def compile_pipeline(config: RunConfig) -> bytes:
    """Return the compiled pipeline with the run's settings as the parameters' defaults."""
    from kfp import compiler

    from pipeline.dag import build

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(build(), str(path), pipeline_parameters=config.arguments())
        return path.read_bytes()


def write_compiled(config: RunConfig, path: Path) -> int:
    """Write the compiled pipeline and return its size in bytes. Raises InvalidInput if it cannot be written."""
    data = compile_pipeline(config)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from error
    return len(data)


def check_compiled(config: RunConfig, path: Path, recipe: str) -> None:
    """Compare a file with what the code compiles to now. Raises ReasrmError if they differ."""
    try:
        committed = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    if committed != compile_pipeline(config):
        raise ReasrmError(
            f"{path} is not what the code compiles to; run: reasrm compile --recipe {recipe} --output {path}"
        )
