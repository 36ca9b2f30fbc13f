"""What a stage could not tell MLflow before it ended: its spool, kept in S3, as the pod's disk goes with the pod.

    <artifact_root>/tracking/<run id>/<working folder>/<time of the first operation>.tar.gz

The next attempt at the stage takes it up again, so that all is told in order. Otherwise the end of the run tells it
(`components/report`). A copy that is told twice does no harm: what MLflow may have is looked up before it is sent,
and of points with the same time, step and value it keeps one.
"""

import io
import json
import logging
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from components.adapters.spool import SpoolReader, read_state
from components.core.errors import ReasrmError
from components.core.redact import redact

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

TRACKING = "tracking"
"""Folder below the artifact root."""
SUFFIX = ".tar.gz"
KEEP_SECONDS = 10.0
"""A pod that is stopped has 30 seconds, of which waiting for MLflow takes up to 10."""
MAX_BYTES = 64 * 2**20
"""Of a spool as it lies on the disk; one number a step takes 120 bytes."""
_MARK = "kept"


def place_of(artifact_root: str, run_id: str = "") -> str:
    """Return the uri of the folder of what MLflow was not told of a run, or of all runs."""
    folder = f"{artifact_root.rstrip('/')}/{TRACKING}"
    return f"{folder}/{quote(run_id, safe='')}" if run_id else folder


@dataclass(frozen=True)
class Shelf:
    """Where the spool of one stage in one run is kept. Nothing here raises, or waits for long, because of S3."""

    storage: "Storage"
    uri: str
    """Of a folder."""

    @classmethod
    def of(cls, storage: "Storage", artifact_root: str, run_id: str, workdir: Path) -> "Shelf":
        """Return the place for what a stage of a run tells from this working folder."""
        return cls(storage, f"{place_of(artifact_root, run_id)}/{workdir.name}")

    def restore(self, directory: Path) -> None:
        """Put back what an attempt on another machine left, where this one has no spool of its own."""
        if (directory / "ops.jsonl").exists() or (directory / "state.json").exists():
            return
        scratch = directory.with_name(f"{directory.name}.kept")  # a fetch that was given up must not end in `directory`

        def work() -> bool:
            found = [one.uri for one in self.storage.list(f"{self.uri}/") if one.uri.endswith(SUFFIX)]
            return bool(found) and fetch(self.storage, found[0], scratch)

        what = f"what an earlier attempt could not tell MLflow, in {self.uri}, is not taken up"
        try:
            if _within(KEEP_SECONDS, what, work) and scratch.exists():
                shutil.rmtree(directory, ignore_errors=True)
                scratch.rename(directory)
        except OSError as error:
            logger.warning("tracking: %s: %s", what, error)

    def settle(self, directory: Path, told: bool) -> None:
        """Keep what MLflow was not told; once it was, take the copy away."""
        what = f"what waits for MLflow in {directory} is not kept in S3, and lost if this disk is"
        try:
            if told:
                drop(directory, self.storage)
                return
            ops = SpoolReader(directory, read_state(directory).acked).read()
            before, uri = _mark(directory), f"{self.uri}/{ops[0].time}{SUFFIX}" if ops else ""
            if not ops or not _within(KEEP_SECONDS, what, lambda: write(self.storage, uri, directory)):
                return
            (directory / _MARK).write_text(uri)
            logger.warning("tracking: what MLflow was not told is kept at %s; the end of the run tells it", uri)
            if before not in {"", uri}:
                _within(KEEP_SECONDS, f"{before} stays", lambda: self.storage.delete([before]))
        except (OSError, ValueError, TypeError) as error:  # of this disk
            logger.warning("tracking: %s: %s", what, error)


def drop(directory: Path, storage: "Storage") -> None:
    """Delete the copy in S3 of a spool that was told, if there is one."""
    uri = _mark(directory)
    if uri and _within(KEEP_SECONDS, f"{uri} was told and stays", lambda: storage.delete([uri])):
        (directory / _MARK).unlink(missing_ok=True)


def write(storage: "Storage", uri: str, directory: Path) -> None:
    """Write what of a spool is not told yet. Raises ReasrmError if that is too much, and what the storage raises."""
    storage.write_bytes(uri, _pack(directory))


def fetch(storage: "Storage", uri: str, directory: Path) -> bool:
    """Make a kept spool's folder, whole or not at all; False if there is no such object.

    Raises ReasrmError if it is no spool, and what the storage raises.
    """
    data = storage.read_bytes(uri)
    if data is None:
        return False
    scratch = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(scratch, filter="data")
        if not SpoolReader(scratch, read_state(scratch).acked).read():
            raise ValueError("there is nothing in it")
    except (tarfile.TarError, EOFError, OSError, ValueError, TypeError) as error:
        shutil.rmtree(scratch)
        raise ReasrmError(f"{uri} is no spool of this pipeline ({error}); delete it") from error
    (scratch / _MARK).write_text(uri)
    shutil.rmtree(directory, ignore_errors=True)
    scratch.rename(directory)
    return True


def _pack(directory: Path) -> bytes:
    """Return the operations that were not delivered with their files; the largest files are left out if need be."""
    ops = {op.seq: op for op in SpoolReader(directory, read_state(directory).acked).read()}
    lines = {seq: json.dumps(asdict(op)) + "\n" for seq, op in ops.items()}
    folders = {seq: directory / "files" / str(seq) for seq in ops}
    sizes = {seq: sum(path.stat().st_size for path in folder.rglob("*")) for seq, folder in folders.items()}
    size = sum(map(len, lines.values()))
    for seq in sorted((seq for seq in sizes if sizes[seq]), key=lambda seq: sizes[seq]):
        if size + sizes[seq] > MAX_BYTES:
            logger.warning("tracking: %s is too large to be kept for MLflow", ops[seq].data.get("name"))
            del lines[seq]
        else:
            size += sizes[seq]
    if size > MAX_BYTES:
        raise ReasrmError(f"it is {size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as archive:
        # Who delivered there says nothing here, where another process may have its number.
        state = json.dumps(asdict(replace(read_state(directory), deliverer=0, error="")))
        for name, text in (("state.json", state), ("ops.jsonl", "".join(lines.values()))):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        if (directory / "rejected.jsonl").exists():
            archive.add(directory / "rejected.jsonl", "rejected.jsonl")
        for seq in lines:
            if folders[seq].is_dir():
                archive.add(folders[seq], f"files/{seq}")
    return packed.getvalue()


def _mark(directory: Path) -> str:
    path = directory / _MARK
    return path.read_text() if path.exists() else ""


def _within(seconds: float, what: str, work: Callable[[], object]) -> bool:
    """Do something with S3; False, with a warning that begins with `what`, if it failed or took too long.

    It is left alone then: its thread ends with the process, and at the latest when S3 gives up.
    """
    outcome: list[str] = []

    def run() -> None:
        try:
            work()
            outcome.append("")
        except Exception as error:
            outcome.append(redact(f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    reason = outcome[0] if outcome else f"S3 took more than {seconds:.0f} s"
    if reason:
        logger.warning("tracking: %s: %s", what, reason)
    return not reason
