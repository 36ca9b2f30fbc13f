"""One checkpoint from several machines: each sends the files that it owns and lists them in a small object.

The list, `<checkpoint>/parts/<machine>.json`, is written after the files. Rank 0 waits for all lists and makes one
manifest of them. A list carries the attempt it belongs to, so that one left by a killed attempt is not taken for new.
"""

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from components.adapters import ranks
from components.core.errors import Transient
from components.core.manifest import MANIFEST_NAME, FileEntry, Manifest, hash_file
from components.core.schema import Record

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

PARTS_SECONDS = 1800.0
"""How long rank 0 waits for the other machines once its own files are sent."""
CLOSING_SECONDS = 30.0
"""How long it waits when training has ended: torchrun gives processes 30 s to end (LaunchConfig's default)."""
LONGEST_PAUSE_SECONDS = 5.0
NUM_HASHED_AT_ONCE = 4

# Files that only the process of that rank reads: DeepSpeed's shards and the state of its random numbers.
_OF_RANK = re.compile(r"(?:zero_pp_rank_|rng_state_)(\d+)(?:_mp_rank_\d+_\w+\.pt|\.pth)$")
# The model's weights, whole or in numbered files with their index, or its adapters, and the small settings.
_OF_MODEL = re.compile(r"(?:model[^/]*|adapter_model)\.safetensors|[^/]+\.json")


class Part(Record):
    """What one machine has sent, or why it could not."""

    attempt: str
    files: tuple[FileEntry, ...] = ()
    error: str = ""


def part_uri(checkpoint: str, node: int) -> str:
    """Return where a machine lists its files."""
    return f"{checkpoint}/parts/{node}.json"


def names(folder: Path) -> list[str]:
    """Return the relative paths of all files of a checkpoint's folder, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST_NAME)


def owners(machines: Iterable[tuple[int, Sequence[str]]]) -> dict[int, list[str]]:
    """Return the files that each machine sends: of equal names the first machine's counts, which has rank 0."""
    owned: dict[int, list[str]] = {}
    taken: set[str] = set()
    for node, found in machines:
        owned[node] = [name for name in found if name not in taken]
        taken.update(found)
    return owned


def hashed(folder: Path, paths: Sequence[str]) -> tuple[FileEntry, ...]:
    """Return the entries of files, hashed in parallel."""

    def entry(name: str) -> FileEntry:
        path = folder / name
        return FileEntry(path=name, size=path.stat().st_size, sha256=hash_file(path))

    with ThreadPoolExecutor(max_workers=NUM_HASHED_AT_ONCE) as pool:
        return tuple(pool.map(entry, paths))


def collect(storage: "Storage", checkpoint: str, nodes: Iterable[int], attempt: str, closing: Event) -> dict[int, Part]:
    """Wait for the lists of other machines. Raises Transient when one failed or does not come in time."""
    waited, start, pause = set(nodes), time.monotonic(), 0.1
    ended: float | None = None
    found: dict[int, Part] = {}
    while waited:
        for node in sorted(waited):
            part = _read(storage, part_uri(checkpoint, node), attempt)
            if part is not None and part.error:
                raise Transient(f"machine {node} could not send its files: {part.error}")
            if part is not None:
                found[node] = part
                waited.discard(node)
        now = time.monotonic()
        if closing.is_set() and ended is None:
            ended = now
        if waited and (now - start > PARTS_SECONDS or (ended is not None and now - ended > CLOSING_SECONDS)):
            raise Transient(f"after {now - start:.0f} s machines {sorted(waited)} have not sent all of their files")
        if waited and ended is None:
            closing.wait(pause)
        elif waited:
            time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return found


def merged(own: Sequence[FileEntry], parts: Mapping[int, Part]) -> tuple[FileEntry, ...]:
    """Return the entries of all machines, sorted by path."""
    entries = [*own, *(entry for part in parts.values() for entry in part.files)]
    return tuple(sorted(entries, key=lambda entry: entry.path))


def read_here(manifest: Manifest) -> list[str]:
    """Return the files that this machine's processes read: all but those that belong to ranks of other machines."""
    first, count = ranks.rank() - ranks.local_rank(), ranks.world_size() // ranks.num_nodes()
    return [
        entry.path
        for entry in manifest.files
        if (match := _OF_RANK.search(entry.path)) is None or first <= int(match[1]) < first + count
    ]


def weights(paths: Iterable[str]) -> list[str]:
    """Return the files of the model itself, without the trainer's state."""
    return [path for path in paths if _OF_MODEL.fullmatch(path)]


def _read(storage: "Storage", uri: str, attempt: str) -> Part | None:
    try:
        data = storage.read_bytes(uri)
    except Transient as error:  # the limit above ends this
        logger.warning("cannot ask for %s yet: %s", uri, error)
        return None
    part = Part.model_validate_json(data) if data else None
    return part if part is not None and part.attempt == attempt else None
