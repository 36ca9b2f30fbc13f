"""What the processes beside the first do: the same work, without a word to the outside and without a result."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.adapters import ranks
from components.adapters.progress import Progress
from components.adapters.stage import COPIES, load_config, name_work
from components.adapters.stage_run import StageRun, Status
from components.core.manifest import Manifest

logger = logging.getLogger(__name__)


class SilentProgress(Progress):
    """Progress that nobody sees: the first process draws it."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Progress]:
        """Begin nothing."""
        yield self

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """Count nothing."""

    def end(self, status: str, summary: str, **facts: Any) -> None:
        """End nothing."""


class SilentRun(StageRun):
    """A run that goes nowhere: the first process tracks."""

    def __init__(self) -> None:
        self.nonfinite = 0
        self.origin = {}

    @property
    def mlflow_run_id(self) -> str | None:
        """None: there is no run."""
        return None

    def finish(self, status: Status) -> bool:
        """Close nothing."""
        return True

    def _append(self, kind: str, data: Mapping[str, Any], files: Mapping[str, bytes | Path] | None = None) -> None:
        pass


def follow_stage(stage: str, config: Mapping[str, Any], inputs: Mapping[str, Manifest], *, artifact_root: str) -> None:
    """Do this process's part of a stage's work, unless it is committed. Raises what `run_stage` does."""
    work = name_work(stage, load_config(stage, config), inputs, artifact_root)
    if work.committed() is not None:
        return
    logger.info("%s: process of rank %s of %s, at %s", stage, ranks.rank(), ranks.world_size(), work.uri)
    directory = work.workdir / "followers" / str(ranks.rank())
    work.run(directory, SilentRun(), SilentProgress())
    shutil.rmtree(directory, ignore_errors=True)
    # Without a group nobody knows whether others still read. Not the output: machines may share this folder, and the
    # first process sends it now.
    if ranks.leave() and ranks.local_rank() == 0:
        work.clear(COPIES)
