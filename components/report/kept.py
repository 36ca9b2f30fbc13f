"""What MLflow could not be told while the stages ran: it is told at the end of the run, and then taken away."""

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from components.adapters.part import PART
from components.adapters.spool import read_state
from components.adapters.stage import WORKDIR, WORKDIR_VARIABLE
from components.adapters.stage_run import replay
from components.adapters.untold import SUFFIX, drop, fetch, place_of, write
from components.core.errors import ReasrmError

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

AT_ONCE_SECONDS = 60.0
PATIENCE_SECONDS = 30.0
"""How long the rest is tried once one was not taken: MLflow is away, or only that one is at fault."""


def tell_here(storage: "Storage | None", deadline: float) -> set[str]:
    """Tell MLflow what lies in the working folders of this machine; return the stages of which something waits.

    On one machine these are those of all its runs; a pod has none.
    """
    waiting: set[str] = set()
    for folder in sorted(Path(os.environ.get(WORKDIR_VARIABLE, WORKDIR)).glob("*/tracking")):
        if not _tell(folder, deadline):
            waiting.add(_stage_of(folder.parent.name))
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
        elif storage:
            drop(folder, storage)
    return waiting


def tell_kept(storage: "Storage", artifact_root: str, run_id: str, deadline: float) -> set[str]:
    """Tell MLflow what stages of a run left in S3, whose disks are gone; return those of which something waits.

    Raises what the storage raises where it does not let us look.
    """
    waiting: set[str] = set()
    objects = storage.list(f"{place_of(artifact_root, run_id)}/")
    uris = [one.uri for one in objects if one.uri.endswith(SUFFIX)]
    for uri in sorted(uris, key=lambda uri: uri.rpartition("/")[2]):  # in the order in which they began
        try:
            told = _tell_one(storage, uri, deadline)
        except (ReasrmError, OSError) as error:
            logger.warning("what a stage could not tell MLflow stays at %s: %s", uri, error)
            told = False
        if not told:
            waiting.add(_stage_of(uri.rpartition("/")[0].rpartition("/")[2]))
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
    return waiting


def _tell_one(storage: "Storage", uri: str, deadline: float) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "tracking"
        if not fetch(storage, uri, directory):
            return True
        before = read_state(directory).acked
        told = _tell(directory, deadline)
        if told:
            storage.delete([uri])
            logger.info("told MLflow what was kept at %s", uri)
        elif read_state(directory).acked > before:
            write(storage, uri, directory)  # so that the next one goes on from here
        return told


def _tell(directory: Path, deadline: float) -> bool:
    """Deliver a spool as long as that gets on; True if nothing is left."""
    left, acked = replay(directory.parent, 0.0), -1
    while left and acked < read_state(directory).acked and (seconds := deadline - time.monotonic()) > 0:
        acked = read_state(directory).acked
        left = replay(directory.parent, min(seconds, AT_ONCE_SECONDS))
    return not left


def _stage_of(folder: str) -> str:
    """Return the stage whose working folder has this name; of a part, which makes no artifact, the name itself."""
    return folder if PART in folder else folder.partition("-")[0]
