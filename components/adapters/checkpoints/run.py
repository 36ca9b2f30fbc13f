"""Checkpoints in S3 while training goes on; a checkpoint exists exactly if its manifest does.

The processes of a machine write one folder on its disk. The first of them hashes and uploads it in a background
thread; rank 0 writes the manifest over all machines' files last. The threads of different machines speak through S3
only: collective calls belong to the main threads, which make them at the same points.
The newest checkpoint whose manifest and bytes agree is the one that a restarted run continues from.
"""

import logging
import math
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import TypeVar, cast

from components.adapters import ranks
from components.adapters.checkpoints import parts
from components.adapters.checkpoints.catalogue import Catalogue, best_of
from components.adapters.checkpoints.fingerprint import Fingerprint
from components.adapters.stage import Output
from components.adapters.together import portable, raise_first, together
from components.core.config import StageConfig
from components.core.errors import Damaged, InvalidInput, ReasrmError, Transient
from components.core.manifest import MANIFEST_NAME, Manifest, Parent

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Upload:
    step: int
    score: float | None
    future: "Future[None]"


@dataclass(frozen=True)
class _Told:
    """What each process tells the others at a commit."""

    node: int
    names: Sequence[str]
    given_up: Sequence[int]
    attempt: str
    failure: Exception | None


class Checkpoints:
    """The checkpoints of one training run, below `<output>/partial/checkpoints/`.

    All methods but `close` are collective: every process calls them at the same points, once torch.distributed is
    initialised (one process alone needs none). What they raise, they raise in every process.
    """

    def __init__(
        self,
        output: Output,
        stage: str,
        code_version: str,
        config: StageConfig,
        keep: int,
        *,
        parents: Mapping[str, Parent],
        sharding: str,
        resume_from: str | None = None,
        scored_on: str = "pairs",
    ) -> None:
        """Make nothing yet; `scored_on` names the parent whose held-out part the scores are measured on."""
        self.directory = output.workdir / "checkpoints"
        self._output = output
        self._storage = output.storage
        self._made_with = Fingerprint(stage, code_version, config, parents, output.sources, sharding)
        self._catalogue = Catalogue(output.storage, output.partial_uri("checkpoints/"), keep)
        self._resume_from = resume_from.rstrip("/") if resume_from else None
        self._scored_on = parents.get(scored_on)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-upload")
        self._closing = Event()
        self._uploads: list[_Upload] = []
        self._last_step: int | None = None

    # -- saving --------------------------------------------------------------------------------------------------

    def commit(self, folder: Path, step: int, score: float | None = None) -> None:
        """Upload the folder in the background and log it as a model of this step; the manifest comes last.

        Every process calls it when it has written its own files. An upload that has not begun yet is given up for
        the newer one, unless it has the best score of all, so that saving faster than the network carries does not
        pile up. Raises the error of an earlier upload that a retry cannot mend: better now than after days without
        checkpoints.
        """
        leads = ranks.local_rank() == 0
        score = score if score is not None and math.isfinite(score) else None
        failure, given_up = self._take_failure(), self._give_up(step, score)
        ranks.barrier()  # now every machine's folder is complete
        found = parts.names(folder) if leads else ()
        told = ranks.gather(_Told(ranks.node(), found, given_up, uuid.uuid4().hex, failure))
        raise_first(each.failure for each in told)
        self._last_step = step
        owned = parts.owners((each.node, each.names) for each in told if each.names)
        own, attempt = owned.pop(ranks.node(), []), told[0].attempt
        if leads:
            self._forget_given_up([old for old in told[0].given_up if old != step])
        if ranks.is_main():
            others = [node for node, files in owned.items() if files]
            future = self._pool.submit(self._commit, folder, step, score, own, others, attempt)
            self._uploads.append(_Upload(step, score, future))
        elif own:
            future = self._pool.submit(self._send, folder, step, own, attempt)
            self._uploads.append(_Upload(step, score, future))

    def wait(self, *, required: bool = False) -> None:
        """Block until everything is uploaded. Errors are only logged: a finished model does not depend on it.

        With `required`, raises when the last commit's manifest is not in S3: Transient, or what a retry cannot mend.
        """
        uploads, self._uploads = self._uploads, []

        def settle() -> None:
            last: BaseException | None = None
            for upload in uploads:
                last = None if upload.future.cancelled() else upload.future.exception()
                if last is not None:
                    logger.error("checkpoint of step %s was not uploaded: %s", upload.step, last)
            step = self._last_step
            if required and ranks.is_main() and step is not None and not self._is_there(step):
                if last is not None and not isinstance(last, Transient):
                    raise last
                raise Transient(f"the checkpoint of step {step} did not reach S3 ({last}); run again to resume")

        together(settle)

    def close(self) -> None:
        """Stop accepting work; an upload under way is finished, those that have not begun are dropped."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _is_there(self, step: int) -> bool:
        return self._storage.open(self._catalogue.uri(step)) is not None

    def _take_failure(self) -> Exception | None:
        """Forget uploads that are done; return the first error of theirs that training should end for."""
        done = [upload for upload in self._uploads if upload.future.done()]
        self._uploads = [upload for upload in self._uploads if upload not in done]
        errors = [error for upload in done if (error := upload.future.exception()) is not None]
        return next((portable(error) for error in errors if not isinstance(error, Transient)), None)

    def _give_up(self, step: int, score: float | None) -> list[int]:
        """Drop waiting uploads, which rank 0 decides for all machines; return their steps."""
        if not ranks.is_main():
            return []
        pending = {upload.step: upload.score for upload in self._uploads} | {step: score}
        best = best_of(self._catalogue.scores | {step: value for step, value in pending.items() if value is not None})
        given_up = [upload.step for upload in self._uploads if upload.step != best and upload.future.cancel()]
        self._uploads = [upload for upload in self._uploads if upload.step not in given_up]
        return given_up

    def _forget_given_up(self, given_up: Sequence[int]) -> None:
        """Drop this machine's uploads of these steps and delete their local folders, but for one under way."""
        kept = [upload for upload in self._uploads if upload.step not in given_up or not upload.future.cancel()]
        self._uploads, running = kept, {upload.step for upload in kept if not upload.future.done()}
        for step in given_up:
            if step not in running:
                shutil.rmtree(self._folder(step), ignore_errors=True)

    def _commit(
        self, folder: Path, step: int, score: float | None, own: Sequence[str], others: Sequence[int], attempt: str
    ) -> None:
        """Rank 0's upload. Raises Transient after a warning: the next checkpoint makes up for it."""
        uri = self._catalogue.uri(step)
        try:
            files = parts.hashed(folder, own)
            if others:
                self._storage.send(uri, files, folder)
                files = parts.merged(files, parts.collect(self._storage, uri, others, attempt, self._closing))
            manifest = self._made_with.manifest(uri, self._output.run_key, files, step=step, score=score)
            self._storage.commit(manifest, folder)
        except Transient as error:
            logger.warning("checkpoint of step %s is not in S3 (%s); the next one takes its place", step, error)
            raise
        finally:
            self._forget_older(step)
        self._log(manifest, step, score)
        try:
            self._storage.delete([parts.part_uri(uri, node) for node in others])
            self._catalogue.prune(step)
        except Transient as error:
            logger.warning("older checkpoints are not deleted yet: %s", error)

    def _send(self, folder: Path, step: int, own: Sequence[str], attempt: str) -> None:
        """Upload the files of a machine that is not rank 0's, then their list, or the reason why there is none."""
        uri, list_uri = self._catalogue.uri(step), parts.part_uri(self._catalogue.uri(step), ranks.node())
        try:
            files = parts.hashed(folder, own)
            self._storage.send(uri, files, folder)
            self._storage.write_bytes(list_uri, parts.Part(attempt=attempt, files=files).model_dump_json().encode())
        except Exception as error:
            logger.warning("this machine's files of checkpoint %s are not in S3: %s", step, error)
            with suppress(ReasrmError):
                part = parts.Part(attempt=attempt, error=str(error) or type(error).__name__)
                self._storage.write_bytes(list_uri, part.model_dump_json().encode())
            raise
        finally:
            self._forget_older(step)

    def _log(self, manifest: Manifest, step: int, score: float | None) -> None:
        tracking = self._output.tracking
        found = {name: manifest.statistics[name] for name in ("step", "score", "world_size", "sharding")}
        params = {name: value for name, value in found.items() if value is not None}
        name = f"{manifest.stage}-step-{step}"
        model = tracking.log_model(name, manifest.uri, manifest.digest, step=step, params=params)
        if score is not None:
            self._log_score(model, score)

    def _log_score(self, model: str, score: float) -> None:
        if self._scored_on is not None:
            dataset = ("held-out", self._scored_on.uri, self._scored_on.digest)
            self._output.tracking.log_scores(model, {"score": score}, dataset)

    # -- resuming ------------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """Return a local folder with the newest checkpoint that is whole, or None when there is none.

        A checkpoint whose bytes do not match its manifest is set aside (its manifest is renamed), and the one before
        it is used; a later whole one makes up for it. Without a checkpoint of its own the run goes on from
        `resume_from`. What else lies in the local folders is deleted.

        Raises:
            InvalidInput: the checkpoint was made with other settings or data, or by a number of processes that its
                shards do not fit; or there is none at `resume_from`; or the processes do not do the same work.
            ReasrmError: there are checkpoints and all of them are broken: starting from zero without a word would
                throw away work.
        """
        _check_same_work(self._output.run_key)
        while True:
            chosen = _on_main(self._choose)
            together(partial(self._clear, chosen))
            if chosen is None:
                return None
            try:
                return self._fetch(chosen)
            except Damaged as error:
                if chosen.uri == self._resume_from:
                    raise ReasrmError(f"resume_from is damaged: {error}; give another checkpoint") from error
                _on_main(partial(self._catalogue.quarantine, _step(chosen), error))

    def best(self) -> tuple[int, float] | None:
        """Return step and score of the best checkpoint in S3, the earliest of equals; None when none has a score."""

        def find() -> tuple[int, float] | None:
            self._catalogue.whole()
            step = best_of(self._catalogue.scores)
            return None if step is None else (step, self._catalogue.scores[step])

        return _on_main(find)

    def committed(self) -> int | None:
        """Return the step of the newest checkpoint whose manifest is in S3 now; None when there is none."""
        return _on_main(lambda: max(self._catalogue.whole(), default=None))

    def rescore(self, step: int, score: float) -> bool:
        """Give a committed checkpoint the score that it lacks: SIGTERM may come between a step and its evaluation.

        Returns False when the checkpoint is not in S3.
        """

        def write() -> bool:
            uri = self._catalogue.uri(step)
            manifest = self._storage.open(uri)
            if manifest is None:
                return False
            scored = manifest.model_copy(update={"statistics": {**manifest.statistics, "score": score}})
            self._storage.write_bytes(f"{uri}/{MANIFEST_NAME}", scored.to_bytes())
            self._catalogue.scores[step] = score
            self._log_score(manifest.digest, score)  # the digest by which MLflow knows it
            return True

        return _on_main(write)

    def fetch(self, step: int, *, weights_only: bool = True) -> Path:
        """Return a local folder with the checkpoint of a step, or with what export needs: its weights and JSON files.

        Raises ReasrmError when it is missing or damaged.
        """

        def find() -> Manifest:
            uri = self._catalogue.uri(step)
            manifest = self._storage.open(uri)
            if manifest is None:
                raise ReasrmError(f"there is no checkpoint of step {step}: {uri} has no {MANIFEST_NAME}")
            return manifest

        return self._fetch(_on_main(find), weights_only)

    def _choose(self) -> Manifest | None:
        way_out = f"or delete {self._catalogue.prefix} to start this stage from zero"
        for step in reversed(self._catalogue.whole()):
            manifest = self._catalogue.open(step)
            if manifest is not None:
                self._made_with.check(manifest, self._storage, way_out)
                return manifest
        damaged = self._catalogue.quarantined()
        if damaged:
            raise ReasrmError(
                f"all checkpoints of {self._made_with.stage} (steps {damaged}) are damaged; look at the bucket, "
                f"{way_out}"
            )
        return self._of_earlier_code(self._resume_from) if self._resume_from else None

    def _of_earlier_code(self, uri: str) -> Manifest:
        try:
            manifest = self._storage.open(uri)
        except Damaged as error:
            raise ReasrmError(f"resume_from is damaged: {error}; give another checkpoint") from error
        if manifest is None:
            raise InvalidInput(
                f"there is no checkpoint at resume_from {uri}: it has no {MANIFEST_NAME}; give the uri of one "
                "checkpoint, which ends with partial/checkpoints/<step>, or leave resume_from out"
            )
        manifest = manifest.model_copy(update={"uri": uri})  # its files lie beside it, wherever it was copied to
        self._made_with.check(manifest, self._storage, "or leave resume_from out")
        return manifest

    def _fetch(self, manifest: Manifest, weights_only: bool = False) -> Path:
        folder, names = self._folder(_step(manifest)), parts.read_here(manifest)
        if weights_only:
            names = parts.weights(names)

        def get() -> None:
            if ranks.local_rank() == 0:
                self._storage.fetch(manifest, folder, only=names)

        together(get)
        return folder

    # -- this machine's disk -------------------------------------------------------------------------------------

    def _forget_older(self, step: int) -> None:
        """Delete local folders older than an upload that is over: they are in S3, or were given up."""
        for folder in self.directory.glob("checkpoint-*"):
            if int(folder.name.rpartition("-")[2]) < step:
                shutil.rmtree(folder, ignore_errors=True)

    def _clear(self, chosen: Manifest | None) -> None:
        """Delete what earlier attempts left, but for the chosen checkpoint's files; machines may share this folder."""
        if ranks.local_rank() != 0:
            return
        wanted = {} if chosen is None else {self._folder(_step(chosen)): {entry.path for entry in chosen.files}}
        for folder in self.directory.glob("checkpoint-*"):
            if folder not in wanted:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(FileNotFoundError):
                for name in parts.names(folder):
                    if name not in wanted[folder]:
                        (folder / name).unlink(missing_ok=True)

    def _folder(self, step: int) -> Path:
        return self.directory / f"checkpoint-{step}"


def _on_main(work: Callable[[], T]) -> T:
    """Return, in every process, what the work gives on rank 0, which alone does it."""
    result = together(lambda: work() if ranks.is_main() else None)[0]
    return cast(T, result)


def _check_same_work(run_key: str) -> None:
    """Raise InvalidInput where processes that should train together do different work."""
    for rank, (first, other) in enumerate(pairwise(ranks.gather(run_key)), 1):
        if first != other:
            raise InvalidInput(
                f"processes {rank - 1} and {rank} do not do the same work (run keys {first[:12]} and {other[:12]}): "
                "their machines have other code, settings, inputs or base folders; see that all have the same"
            )


def _step(manifest: Manifest) -> int:
    return int(str(manifest.statistics["step"]))
