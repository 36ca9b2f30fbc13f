"""S3: the only file that imports boto3.

Objects move in parallel (multipart up, ranged down) through boto3's transfer manager, every byte is checked against the
sha256 in a manifest, and an artifact is committed by writing its manifest last, only if none is there.
"""

import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

import boto3
from boto3.exceptions import Boto3Error, RetriesExceededError, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import S3DownloadFailedError

from components.core.errors import Damaged, InvalidInput, ReasrmError, Transient
from components.core.manifest import MANIFEST_NAME, FileEntry, Manifest, hash_file

logger = logging.getLogger(__name__)

PART_BYTES = 16 * 2**20
CHUNK_BYTES = 2**20
NUM_FILES_AT_ONCE = 4
OnBytes = Callable[[int], None]

_REFUSED = {
    "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "403",
    "ExpiredToken", "InvalidBucketName", "AuthorizationHeaderMalformed",
}  # fmt: skip


class _GivenUp(Exception):
    """A download that nobody waits for any more."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a listing; `size` in bytes, `modified` is when S3 took it in."""

    uri: str
    size: int
    modified: datetime | None = None


class Storage:
    """Artifacts in S3, addressed by `s3://bucket/key` uris."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8, use_threads=True
        )

    @classmethod
    def from_env(cls) -> "Storage":
        """Connect as the environment says: AWS_ENDPOINT_URL_S3, AWS_* credentials, AWS_DEFAULT_REGION."""
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "adaptive", "total_max_attempts": 5},
            max_pool_connections=32,
            s3={"addressing_style": "path"},
        )
        region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        try:
            return cls(boto3.session.Session().client("s3", config=config, region_name=region))
        except ValueError as error:
            raise InvalidInput(f"{error}; write AWS_ENDPOINT_URL_S3 as http://host:port or https://host") from error

    @property
    def endpoint(self) -> str:
        """The address that requests go to."""
        return str(self.client.meta.endpoint_url)

    # -- single objects ------------------------------------------------------------------------------------------

    def read_bytes(self, uri: str) -> bytes | None:
        """Return an object's content, or None when there is none."""
        bucket, key = split(uri)
        with self._translated(uri):
            try:
                data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
            except ClientError as error:
                if _code(error) in {"NoSuchKey", "404"}:
                    return None
                raise
        return data

    def read_chunks(self, uri: str) -> Iterator[bytes] | None:
        """Return an object's content in blocks of at most CHUNK_BYTES, or None when there is none."""
        bucket, key = split(uri)
        with self._translated(uri):
            try:
                body = self.client.get_object(Bucket=bucket, Key=key)["Body"]
            except ClientError as error:
                if _code(error) in {"NoSuchKey", "404"}:
                    return None
                raise

        def blocks() -> Iterator[bytes]:
            with self._translated(uri), closing(body):
                yield from body.iter_chunks(CHUNK_BYTES)

        return blocks()

    def copy_to(self, uri: str, path: Path) -> bool:
        """Copy an object in parallel ranges, whole or not at all; return False when there is none.

        Raises InvalidInput for too little disk, Transient when the object was replaced meanwhile.
        """
        bucket, key = split(uri)
        head = self._head(uri)
        if head is None:
            return False
        _check_disk(path.parent, head["ContentLength"])
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with self._translated(uri):
                self.client.download_file(bucket, key, str(temporary), Config=self._transfer)
            temporary.replace(path)
        except S3DownloadFailedError as error:
            raise Transient(f"{uri} was replaced while it was copied ({error}); run again") from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write an object; with `if_absent`, return False and leave the object alone when it exists."""
        bucket, key = split(uri)
        extra = {"IfNoneMatch": "*"} if if_absent else {}
        with self._translated(uri):
            try:
                self.client.put_object(Bucket=bucket, Key=key, Body=data, **extra)
            except ClientError as error:
                if if_absent and _code(error) in {"PreconditionFailed", "412", "ConditionalRequestConflict"}:
                    return False
                raise
        return True

    def exists(self, uri: str) -> bool:
        """Say whether there is an object with this very key."""
        return self._head(uri) is not None

    def list(self, prefix_uri: str) -> list[ObjectInfo]:
        """Return all objects below a prefix, sorted by key."""
        bucket, key = split(prefix_uri)
        with self._translated(prefix_uri):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            return [
                ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Size"], item.get("LastModified"))
                for page in pages
                for item in page.get("Contents", [])
            ]

    def folders(self, prefix_uri: str) -> Sequence[str]:
        """Return the uris of the folders right below a prefix, sorted."""
        bucket, key = split(f"{prefix_uri.rstrip('/')}/")
        with self._translated(prefix_uri):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, Delimiter="/")
            found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        return sorted(f"s3://{bucket}/{folder.rstrip('/')}" for folder in found)

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects; ones that are not there are no error."""
        for uri in uris:
            bucket, key = split(uri)
            with self._translated(uri):
                self.client.delete_object(Bucket=bucket, Key=key)

    def ensure_bucket(self, uri: str) -> None:
        """Check that the bucket is there and that we may use it. Raises InvalidInput or Transient otherwise."""
        bucket, _ = split(uri)
        with self._translated(uri):
            self.client.head_bucket(Bucket=bucket)

    def upload(self, path: Path, uri: str, *, sha256: str | None = None, progress: OnBytes | None = None) -> None:
        """Upload a file in parallel parts; its sha256 becomes the object's metadata."""
        bucket, key = split(uri)
        extra = {"Metadata": {"sha256": sha256 or hash_file(path)}}
        with self._translated(uri):
            self.client.upload_file(str(path), bucket, key, ExtraArgs=extra, Callback=progress, Config=self._transfer)

    def download(self, uri: str, path: Path, size: int, sha256: str, progress: OnBytes | None = None) -> None:
        """Download a file in parallel ranges; it appears under its name only once its sha256 is right.

        Raises Damaged when the object is missing, or its bytes are wrong twice in a row, and Transient when it was
        replaced twice meanwhile.
        """
        bucket, key = split(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        replaced: S3DownloadFailedError | None = None
        try:
            for _ in range(2):
                try:
                    with self._translated(uri):
                        self.client.download_file(bucket, key, str(temporary), Callback=progress, Config=self._transfer)
                except S3DownloadFailedError as error:  # another writer replaced the object between two ranges
                    logger.warning("%s changed during its download (%s); downloading it once more", uri, error)
                    replaced = error
                    continue
                replaced = None
                if temporary.stat().st_size == size and hash_file(temporary) == sha256:
                    temporary.replace(path)
                    return
                logger.warning("%s does not match its sha256; downloading it once more", uri)
        finally:
            temporary.unlink(missing_ok=True)
        if replaced is not None:
            raise Transient(f"{uri} was replaced while it was downloaded ({replaced}); run again") from replaced
        raise Damaged(f"{uri} is damaged: its bytes do not have the sha256 {sha256} that its manifest states")

    # -- artifacts -----------------------------------------------------------------------------------------------

    def send(self, uri: str, entries: Sequence[FileEntry], directory: Path, progress: OnBytes | None = None) -> None:
        """Upload files of an artifact in the making; those there already with the same sha256 are not sent again."""

        def send_one(entry: FileEntry) -> None:
            head, path = self._head(f"{uri}/{entry.path}"), directory / entry.path
            if head is None or head["ContentLength"] != entry.size or head["Metadata"].get("sha256") != entry.sha256:
                if not path.is_file():
                    raise ReasrmError(f"{uri}/{entry.path} does not have its bytes, and there is no {path} to send")
                self.upload(path, f"{uri}/{entry.path}", sha256=entry.sha256, progress=progress)

        self._for_each(send_one, entries)

    def commit(self, manifest: Manifest, directory: Path, progress: OnBytes | None = None) -> Manifest:
        """Upload the manifest's files and then the manifest itself; from then on the artifact exists.

        Files that are there already with the same sha256 are not sent again. When another writer was faster, equal
        manifests are success. Raises ReasrmError when they differ.
        """
        # Looking first keeps a slower writer with other bytes from overwriting the files of what is committed.
        there = self.open(manifest.uri)
        if there is None:
            self.send(manifest.uri, manifest.files, directory, progress)
            if self.write_bytes(f"{manifest.uri}/{MANIFEST_NAME}", manifest.to_bytes(), if_absent=True):
                return manifest
            there = self.open(manifest.uri)
        if there is None or there.digest != manifest.digest:
            digest = there.digest if there else "none"
            raise ReasrmError(
                f"{manifest.uri} was committed by another process with other content (manifest {digest}, ours "
                f"{manifest.digest}); the same work must give the same bytes: look for what differs"
            )
        return manifest

    def open(self, uri: str) -> Manifest | None:
        """Return the manifest of the artifact at `uri`, or None when none is committed there; Damaged if it is none."""
        data = self.read_bytes(f"{uri.rstrip('/')}/{MANIFEST_NAME}")
        if data is None:
            return None
        try:
            return Manifest.from_bytes(data)
        except ValueError as error:
            raise Damaged(f"{uri}/{MANIFEST_NAME} is not a manifest of this pipeline: {error}") from error

    def modified(self, uri: str) -> datetime | None:
        """Return when the artifact at `uri` was committed, or None when it is not."""
        head = self._head(f"{uri.rstrip('/')}/{MANIFEST_NAME}")
        return None if head is None else head["LastModified"]

    def fetch(
        self, manifest: Manifest, directory: Path, only: Sequence[str] | None = None, progress: OnBytes | None = None
    ) -> Path:
        """Download an artifact's files (or those named) and return the folder; right files are not fetched again.

        Raises InvalidInput for unsafe paths and for too little disk, Damaged for what is missing or wrong. Downloads
        under way end at once when one fails or this thread is interrupted.
        """
        entries = [entry for entry in manifest.files if only is None or entry.path in only]
        for name in only or ():
            manifest.entry(name)
        for entry in entries:
            _check_path(entry.path, manifest.uri)
        missing = [entry for entry in entries if not _is_there(directory / entry.path, entry)]
        _check_disk(directory, sum(entry.size for entry in missing))

        ended = Event()

        def count(num_bytes: int) -> None:
            if ended.is_set():
                raise _GivenUp
            if progress is not None:
                progress(num_bytes)

        def get(entry: FileEntry) -> None:
            self.download(f"{manifest.uri}/{entry.path}", directory / entry.path, entry.size, entry.sha256, count)

        self._for_each(get, missing, ended)
        return directory

    def verify(self, manifest: Manifest, progress: OnBytes | None = None) -> Sequence[str]:
        """Read every object of an artifact and say in words what does not agree with its manifest.

        `progress` is called from several threads. Raises Transient or InvalidInput when the storage does not let us
        look, which says nothing of the bytes.
        """

        def check(entry: FileEntry) -> str:
            bucket, key = split(f"{manifest.uri}/{entry.path}")
            digest, size = hashlib.sha256(), 0
            try:
                with self._translated(manifest.uri):
                    for chunk in self.client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(CHUNK_BYTES):
                        digest.update(chunk)
                        size += len(chunk)
                        if progress is not None:
                            progress(len(chunk))
            except Damaged as error:
                return f"{entry.path}: {error}"
            if size != entry.size:
                return f"{entry.path}: {size} bytes, the manifest says {entry.size}"
            if digest.hexdigest() != entry.sha256:
                return f"{entry.path}: sha256 {digest.hexdigest()}, the manifest says {entry.sha256}"
            return ""

        with ThreadPoolExecutor(max_workers=NUM_FILES_AT_ONCE) as pool:
            return [problem for problem in pool.map(check, manifest.files) if problem]

    def _head(self, uri: str) -> Any | None:
        bucket, key = split(uri)
        with self._translated(uri):
            try:
                return self.client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _code(error) in {"404", "NoSuchKey", "NotFound"}:
                    return None
                raise

    def _for_each(
        self, work: Callable[[FileEntry], None], entries: Sequence[FileEntry], ended: Event | None = None
    ) -> None:
        """Work on several files at once; the first failure keeps the ones not yet begun from starting.

        `ended` is set when no more is to be done, so that what is under way can end early.
        """
        with ThreadPoolExecutor(max_workers=NUM_FILES_AT_ONCE) as pool:
            futures = [pool.submit(work, entry) for entry in entries]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:
                if ended is not None:
                    ended.set()
                for future in futures:
                    future.cancel()

    @contextmanager
    def _translated(self, uri: str) -> Iterator[None]:
        """Turn what boto3 raises into the three errors, at one place."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InvalidInput(
                f"no S3 credentials for {uri}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except ParamValidationError as error:
            raise InvalidInput(f"{uri} is not a valid S3 uri: {error}") from error
        except ClientError as error:
            raise self._from_answer(uri, error) from error
        except (S3UploadFailedError, RetriesExceededError) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, ClientError):
                raise self._from_answer(uri, cause) from error
            raise Transient(f"S3 at {self.endpoint} failed for {uri}: {error}; run again to resume") from error
        except (HTTPClientError, BotoCoreError, Boto3Error) as error:
            raise Transient(
                f"S3 at {self.endpoint} does not answer for {uri} ({error}); check AWS_ENDPOINT_URL_S3 and that the "
                "server is up, then run again"
            ) from error

    def _from_answer(self, uri: str, error: ClientError) -> ReasrmError:
        code = _code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in {"NoSuchBucket"} or (code == "404" and error.operation_name == "HeadBucket"):
            return InvalidInput(f"there is no bucket for {uri} at {self.endpoint}; create it or change artifact_root")
        if code in _REFUSED or status in {401, 403}:
            return InvalidInput(
                f"S3 at {self.endpoint} refuses {uri} ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the "
                "bucket's policy"
            )
        if status >= 500 or status == 429 or code in {"SlowDown", "RequestTimeout"}:
            return Transient(f"S3 at {self.endpoint} is failing for {uri} ({code}, {status}); run again to resume")
        if code in {"NoSuchKey", "404"}:
            return Damaged(f"{uri} is missing: its manifest names it, but the object is gone")
        return ReasrmError(f"S3 at {self.endpoint} answered {code} ({status}) for {uri}: {error}")


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// uri. Raises InvalidInput when it is not one."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise InvalidInput(f"{uri!r} is not an S3 uri; write s3://bucket/prefix")
    return bucket, key


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_there(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and hash_file(path) == entry.sha256


def _check_path(path: str, uri: str) -> None:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or "\\" in path or "\x00" in path or ".." in parts or not parts or "%2e" in path.lower():
        raise InvalidInput(f"the manifest of {uri} names the unsafe path {path!r}; it was not made by this pipeline")


def _check_disk(directory: Path, needed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed * 1.02:
        raise InvalidInput(
            f"{needed / 1e9:.2f} GB are needed in {directory} and {free / 1e9:.2f} GB are free; free some space, or "
            "point REASRM_WORKDIR to a larger disk"
        )
