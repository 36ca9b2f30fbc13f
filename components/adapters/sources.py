"""Files that the pipeline reads but did not make: on this machine or on S3, plain or compressed."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from components.core.errors import InvalidInput
from components.core.manifest import hash_file

if TYPE_CHECKING:
    from components.adapters.storage import Storage

LONGEST_LINE_BYTES = 64 * 2**20


def digest(uri: str, storage: "Storage") -> str:
    """Return the sha256 of a file's content in hex. Raises InvalidInput when there is no such file."""
    if uri.startswith("s3://"):
        return hashlib.sha256(_object(uri, storage)).hexdigest()
    return hash_file(_existing(uri))


def local_copy(uri: str, storage: "Storage", directory: Path) -> Path:
    """Return a path at which the file can be read; one on S3 is copied into `directory`.

    Raises:
        InvalidInput: there is no such file.
    """
    if not uri.startswith("s3://"):
        return _existing(uri)
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    path = directory / f"{name}-{uri.rpartition('/')[2]}"
    directory.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(_object(uri, storage))
    temporary.replace(path)
    return path


def _existing(uri: str) -> Path:
    path = Path(uri)
    if not path.is_file():
        raise InvalidInput(f"there is no file {uri} (looked in {Path.cwd()}); give an existing path or an s3:// uri")
    return path


def _object(uri: str, storage: "Storage") -> bytes:
    data = storage.read_bytes(uri)
    if data is None:
        raise InvalidInput(f"there is no object {uri} at {storage.endpoint}; give an existing one or a local path")
    return data


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
