"""A stage's output without S3 and MLflow behind it, for programs that measure the work alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.adapters.progress import Progress
from components.adapters.stage import Output


class Storage:
    """Keeps the few decisions that a stage writes down, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def read_bytes(self, uri: str) -> bytes | None:
        """Return what was written."""
        return self.kept.get(uri)

    def write_bytes(self, uri: str, data: bytes, **how: Any) -> None:
        """Keep it; the first writer wins."""
        self.kept.setdefault(uri, data)


class Tracking:
    """Keeps the metrics that a stage would send to MLflow."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a step."""
        self.steps.setdefault(step, {}).update(numbers)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class NoCheckpoints:
    """Stands where a stage keeps its checkpoints: saving is not what is measured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def newest(self) -> None:
        """There is none."""

    def best(self) -> None:
        """There is none."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def make_output(directory: Path) -> Output:
    """Return the output of a stage that has neither S3 nor MLflow behind it."""
    nowhere: Any = Storage()
    tracking: Any = Tracking()
    for name in ("output", "work"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    uri = "s3://benchmark/gpu-training"
    return Output(uri, directory / "output", directory / "work", nowhere, tracking, Progress("benchmark"), "benchmark")
