"""Checkpoints in S3 while training goes on; a checkpoint exists exactly if its manifest does.

The trainer writes a folder on the local disk; here it is hashed and uploaded by a background thread, the manifest last.
The newest checkpoint whose manifest and bytes agree is the one that a restarted run continues from.
"""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from components.adapters.stage import Output
from components.core.errors import ReasrmError, Transient
from components.core.manifest import MANIFEST_NAME, Manifest, describe

logger = logging.getLogger(__name__)

QUARANTINED_NAME = f"quarantined-{MANIFEST_NAME}"


class Checkpoints:
    """The checkpoints of one training run, below `<output>/partial/checkpoints/`."""

    def __init__(self, output: Output, stage: str, code_version: str, config: Mapping[str, Any], keep: int) -> None:
        self.directory = output.workdir / "checkpoints"
        self._output = output
        self._stage = stage
        self._code_version = code_version
        self._config = dict(config)
        self._keep = keep
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-upload")
        self._pending: list[Future[None]] = []

    def commit(self, folder: Path, step: int) -> None:
        """Upload the folder in the background and log it as a model of this step; the manifest comes last.

        An upload that has not begun yet is given up for the newer one, so that saving faster than the network carries
        does not pile up. Raises the error of an earlier upload that a retry cannot mend: better now than after days
        without checkpoints.
        """
        for future in list(self._pending):
            if future.cancel():
                self._pending.remove(future)
            elif future.done():
                self._pending.remove(future)
                future.result()
        self._pending.append(self._pool.submit(self._commit, folder, step))

    def _commit(self, folder: Path, step: int) -> None:
        manifest = Manifest(
            kind="checkpoint",
            stage=self._stage,
            uri=self._uri(step),
            run_key=self._output.run_key,
            code_version=self._code_version,
            config=self._config,
            files=describe(folder),
            statistics={"step": step},
        )
        try:
            self._output.storage.commit(manifest, folder)
            self._prune(step)
        except Transient as error:
            logger.warning("checkpoint of step %s is not in S3 (%s); the next one takes its place", step, error)
            return
        self._output.tracking.log_model(f"{self._stage}-step-{step}", manifest.uri, manifest.digest, step=step)

    def wait(self) -> None:
        """Block until everything is uploaded; the finished model does not depend on it, so errors are only logged."""
        pending, self._pending = self._pending, []
        for future in pending:
            error = future.exception()
            if error is not None:
                logger.error("a checkpoint was not uploaded: %s", error)

    def close(self) -> None:
        """Stop accepting work; an upload under way is finished, those that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def newest(self) -> Path | None:
        """Return a local folder with the newest checkpoint that is whole, or None when there is none.

        A checkpoint whose bytes do not match its manifest is set aside (its manifest is renamed), and the one before
        it is used; a later whole one makes up for it. Raises ReasrmError when there are checkpoints and all of them
        are broken: starting from zero without a word would throw away work.
        """
        for step in reversed(self._steps_with(MANIFEST_NAME)):
            folder = self.directory / f"checkpoint-{step}"
            try:
                manifest = self._output.storage.open(self._uri(step))
                if manifest is not None:
                    self._output.storage.fetch(manifest, folder)
                    return folder
            except ReasrmError as error:
                if type(error) is not ReasrmError:
                    raise  # unreachable storage or a full disk says nothing about the checkpoint
                self._quarantine(step)
                logger.warning("checkpoint of step %s is damaged (%s); trying the one before it", step, error)
        damaged = self._steps_with(QUARANTINED_NAME)
        if damaged:
            raise ReasrmError(
                f"all checkpoints of {self._stage} (steps {damaged}) are damaged; look at the bucket, or delete "
                f"{self._output.partial_uri('checkpoints/')} to start this stage from zero"
            )
        return None

    def _quarantine(self, step: int) -> None:
        """Keep the manifest under another name, and delete the bytes: a later upload must not take them for its own."""
        storage, uri = self._output.storage, self._uri(step)
        storage.write_bytes(f"{uri}/{QUARANTINED_NAME}", storage.read_bytes(f"{uri}/{MANIFEST_NAME}") or b"")
        storage.delete([f"{uri}/{MANIFEST_NAME}"])
        storage.delete([info.uri for info in storage.list(f"{uri}/") if not info.uri.endswith(QUARANTINED_NAME)])

    def _steps_with(self, name: str) -> list[int]:
        prefix = self._output.partial_uri("checkpoints/")
        found = [info.uri.removeprefix(prefix).split("/") for info in self._output.storage.list(prefix)]
        return sorted(int(parts[0]) for parts in found if parts[1:] == [name])

    def _prune(self, newest: int) -> None:
        storage = self._output.storage
        for step in [step for step in self._steps_with(MANIFEST_NAME) if step < newest][: -self._keep + 1 or None]:
            storage.delete([f"{self._uri(step)}/{MANIFEST_NAME}"])  # first, so that no manifest lacks its files
            storage.delete([info.uri for info in storage.list(f"{self._uri(step)}/")])
        for folder in self.directory.glob("checkpoint-*"):
            if int(folder.name.rpartition("-")[2]) < newest:
                shutil.rmtree(folder, ignore_errors=True)

    def _uri(self, step: int) -> str:
        return self._output.partial_uri(f"checkpoints/{step:08d}")
