"""Data that the pipeline reads but did not make: files, folders and S3 objects, plain or compressed.

The Hugging Face hub, the third place that data comes from, is `components.adapters.hub`.
"""

import gzip
import hashlib
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from components.core.errors import InvalidInput
from components.core.manifest import hash_file

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

LONGEST_LINE_BYTES = 64 * 2**20
_DAY = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)")
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its uri (or path), and its name below the folder or prefix it was found in."""

    uri: str
    name: str


def list_files(uri: str, storage: "Storage", until: str = "") -> list[SourceFile]:
    """Return the data files of a source in the order in which they are read.

    A file is itself; of a folder, and of an S3 prefix (its uri ends with /), it is every file below with one of
    DATA_SUFFIXES, sorted by name. Other files, and those below a name with a dot in front, are left alone; so are those
    whose name tells a day after `until` (YYYY-MM-DD).

    Raises:
        InvalidInput: there is nothing there, or no data in it.
    """
    if uri.startswith("s3://"):
        if not uri.endswith("/"):
            return [SourceFile(uri, uri.rpartition("/")[2])]
        found = [(item.uri, item.uri.removeprefix(uri)) for item in storage.list(uri)]
    elif Path(uri).is_dir():
        root = Path(uri)
        found = [(str(path), path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file()]
    else:
        return [SourceFile(uri, _existing(uri).name)]
    data = [SourceFile(place, name) for place, name in found if _is_data(name)]
    if not data:
        where = f"at {storage.endpoint}" if uri.startswith("s3://") else f"(looked in {Path.cwd()})"
        raise InvalidInput(f"no {', '.join(DATA_SUFFIXES)} below {uri} {where}; {len(found)} other files are there")
    if len(data) < len(found):
        logger.info("%s: reading %s files, leaving %s of other kinds alone", uri, len(data), len(found) - len(data))
    due = [file for file in data if not until or max(_DAY.findall(file.name), default="") <= until]
    if not due:
        raise InvalidInput(f"all {len(data)} data files below {uri} are of days after {until}; give a later day")
    if len(due) < len(data):
        logger.info("%s: leaving %s files of days after %s alone", uri, len(data) - len(due), until)
    return sorted(due, key=lambda file: file.name)


def _is_data(name: str) -> bool:
    return name.endswith(DATA_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))


def digest(uri: str, storage: "Storage", until: str = "") -> str:
    """Return the sha256 of a source's content in hex; of a folder or prefix, that of the names and their sha256.

    The bytes are hashed as they come; what an object's metadata says of them is not believed.

    Raises:
        InvalidInput: there is no such file, or no data in it.
    """
    files = list_files(uri, storage, until)
    if len(files) == 1 and files[0].uri == uri:
        return _file_digest(uri, storage)
    return tree_digest((file.name, _file_digest(file.uri, storage)) for file in files)


def tree_digest(entries: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 in hex of (name, sha256) pairs, whatever their order."""
    lines = (f"{sha256}  {name}\n" for name, sha256 in sorted(entries))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_digest(uri: str, storage: "Storage") -> str:
    if not uri.startswith("s3://"):
        return hash_file(_existing(uri))
    chunks = storage.read_chunks(uri)
    if chunks is None:
        raise _no_object(uri, storage)
    result = hashlib.sha256()
    for chunk in chunks:
        result.update(chunk)
    return result.hexdigest()


def local_copy(uri: str, storage: "Storage", directory: Path) -> Path:
    """Return a path at which a file can be read; one on S3 is copied into `directory`, once.

    Raises:
        InvalidInput: there is no such file, or too little disk for a copy of it.
    """
    if not uri.startswith("s3://"):
        return _existing(uri)
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    path = directory / f"{name}-{uri.rpartition('/')[2]}"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        if not storage.copy_to(uri, path):
            raise _no_object(uri, storage)
    return path


def _existing(uri: str) -> Path:
    path = Path(uri)
    if not path.is_file():
        raise InvalidInput(
            f"there is no file {uri} (looked in {Path.cwd()}); give an existing path, an s3:// uri, or hf://org/name"
        )
    return path


def _no_object(uri: str, storage: "Storage") -> InvalidInput:
    return InvalidInput(
        f"there is no object {uri} at {storage.endpoint}; give an existing one, a local path, or for all objects of a "
        "prefix a uri that ends with /"
    )


def open_lines(path: Path, name: str) -> Iterator[bytes]:
    """Yield the lines of a file whose `name` says whether it is compressed; only b"\\n" ends a line.

    Raises:
        InvalidInput: the file is broken, or a line is so long that it is no file of rows.
    """
    count = 0
    with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
        try:
            for line in _bounded(file, name):
                count += 1
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidInput(f"{name} is a broken gzip file after {count} lines ({error}); copy it again") from error


def _bounded(file: BinaryIO | gzip.GzipFile, name: str) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE_BYTES):
        if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            raise InvalidInput(f"{name} has a line of over {LONGEST_LINE_BYTES} bytes; it is not a file of JSON lines")
        yield line
