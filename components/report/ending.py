"""How runs ended whose end MLflow could not be told: that is kept in S3, and a later run's exit handler tells it.

<artifact_root>/tracking/<run id>/ending.json    beside the spools of the run's stages
<artifact_root>/tracking/<run id>/taken-<n>      somebody is at it; counts for an hour
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from components.adapters.origin import OF_STAGE
from components.adapters.untold import place_of
from components.core.errors import ReasrmError
from components.core.schema import Record

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

NAME = "ending.json"
TAKEN = "taken-"
TAKEN_FOR = timedelta(hours=1)
"""More than the task of an exit handler may take."""


class Ending(Record):
    """What the exit handler was told of a run; `at` is when, in milliseconds since 1970, `origin` its variables."""

    run_id: str
    experiment: str
    state: str
    error: str
    settings: dict[str, str | int]
    origin: dict[str, str]
    at: int

    @classmethod
    def now(
        cls, run_id: str, experiment: str, state: str, error: str | None, settings: Mapping[str, str | int]
    ) -> "Ending":
        """Return the ending of a run of which this is the exit handler."""
        origin = {name: os.environ[name] for name in OF_STAGE if name in os.environ}
        return cls(
            run_id=run_id,
            experiment=experiment,
            state=state,
            error=error or "",
            settings=dict(settings),
            origin=origin,
            at=time.time_ns() // 1_000_000,
        )


def keep(ending: Ending, storage: "Storage", artifact_root: str) -> None:
    """Keep an ending for a later run. Best effort."""
    uri = f"{place_of(artifact_root, ending.run_id)}/{NAME}"
    try:
        storage.write_bytes(uri, ending.model_dump_json().encode())
        logger.warning("what MLflow was not told of run %s is told at the end of the next run", ending.run_id)
    except ReasrmError as error:
        logger.warning("what MLflow was not told of run %s is lost, but for its manifests: %s", ending.run_id, error)


def forget(run_id: str, storage: "Storage", artifact_root: str) -> None:
    """Delete the ending of a run that MLflow was told all of. Best effort."""
    place = place_of(artifact_root, run_id)
    try:
        names = {one.uri: one.uri.removeprefix(f"{place}/") for one in storage.list(f"{place}/")}
        storage.delete(uri for uri, name in names.items() if name == NAME or name.startswith(TAKEN))
    except ReasrmError as error:
        logger.warning("%s/%s stays: %s", place, NAME, error)


def kept(storage: "Storage", artifact_root: str, but: str) -> Iterator[Ending]:
    """Yield the endings of other runs than `but` that MLflow was not told, the oldest first.

    Each is for the caller alone. Raises what the storage raises.
    """
    own = f"{place_of(artifact_root, but)}/{NAME}"
    objects = storage.list(f"{place_of(artifact_root)}/")
    found = [one for one in objects if one.uri.endswith(f"/{NAME}") and one.uri != own]
    for one in sorted(found, key=lambda one: (one.modified or datetime.now(UTC), one.uri)):
        if _take(storage, one.uri.removesuffix(f"/{NAME}")):
            yield from _read(storage, one.uri)


def _take(storage: "Storage", place: str) -> bool:
    """Take a run for this process; False if another one has it. Who takes the next number is alone."""
    taken = storage.list(f"{place}/{TAKEN}")
    if any(datetime.now(UTC) - (one.modified or datetime.now(UTC)) < TAKEN_FOR for one in taken):
        return False
    return storage.write_bytes(f"{place}/{TAKEN}{len(taken)}", b"", if_absent=True)


def _read(storage: "Storage", uri: str) -> Iterator[Ending]:
    try:
        yield Ending.model_validate_json(storage.read_bytes(uri) or b"")
    except ValidationError as error:
        logger.warning("%s is no ending of a run, delete it: %s", uri, error)


@contextmanager
def in_place_of(ending: Ending) -> Iterator[None]:
    """Let what is told meanwhile come from where that run came from."""
    before = {name: os.environ.pop(name) for name in OF_STAGE if name in os.environ}
    os.environ.update(ending.origin)
    try:
        yield
    finally:
        for name in OF_STAGE:
            os.environ.pop(name, None)
        os.environ.update(before)
