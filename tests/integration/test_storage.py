"""The storage adapter against a real S3 server over HTTP."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from components.adapters.storage import Storage
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import FileEntry, Manifest, describe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small files and one that needs three parts."""
    source = tmp_path / "source"
    (source / "model").mkdir(parents=True)
    (source / "a.jsonl").write_bytes(b"{}\n")
    (source / "model" / "empty").write_bytes(b"")
    (source / "model" / "weights").write_bytes(os.urandom(40 * 2**20))
    return source


def made(s3: Any, folder: Path, **change: Any) -> Manifest:
    fields = {
        "kind": "test", "stage": "test", "uri": f"{s3.prefix}/artifact", "run_key": "k", "code_version": "1",
        "config": {}, "files": describe(folder),
    }  # fmt: skip
    return Manifest(**{**fields, **change})


def test_objects_are_written_read_listed_and_deleted(s3: Any) -> None:
    uri = f"{s3.prefix}/dir/ä b"
    assert s3.storage.read_bytes(uri) is None
    assert not s3.storage.exists(uri)
    assert s3.storage.write_bytes(uri, b"one")
    assert not s3.storage.write_bytes(uri, b"two", if_absent=True)
    assert s3.storage.read_bytes(uri) == b"one"
    assert s3.storage.write_bytes(uri, b"three")
    assert [(info.uri, info.size) for info in s3.storage.list(f"{s3.prefix}/dir/")] == [(uri, 5)]
    s3.storage.delete([uri, f"{s3.prefix}/never-there"])
    assert s3.storage.read_bytes(uri) is None
    assert s3.storage.list(f"{s3.prefix}/dir/") == []


def test_a_long_listing_is_whole(s3: Any) -> None:
    names = [f"{s3.prefix}/many/{index:04d}" for index in range(1010)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: s3.storage.write_bytes(uri, b""), names))
    assert [info.uri for info in s3.storage.list(f"{s3.prefix}/many/")] == names


def test_an_artifact_comes_back_as_it_was(s3: Any, folder: Path, tmp_path: Path) -> None:
    manifest = made(s3, folder)
    assert s3.storage.open(manifest.uri) is None
    s3.storage.commit(manifest, folder)
    assert s3.storage.open(manifest.uri) == manifest
    assert s3.storage.verify(manifest) == []
    fetched = s3.storage.fetch(manifest, tmp_path / "fetched")
    assert describe(fetched) == manifest.files
    some = s3.storage.fetch(manifest, tmp_path / "some", only=["a.jsonl"])
    assert [path.name for path in some.rglob("*") if path.is_file()] == ["a.jsonl"]
    with pytest.raises(KeyError, match="no-such"):
        s3.storage.fetch(manifest, tmp_path / "some", only=["no-such"])


def test_only_what_is_missing_moves_again(s3: Any, folder: Path, tmp_path: Path) -> None:
    manifest = made(s3, folder)
    moved: list[int] = []
    s3.storage.commit(manifest, folder, progress=moved.append)
    assert sum(moved) == sum(entry.size for entry in manifest.files)
    moved.clear()
    s3.storage.delete([f"{manifest.uri}/manifest.json"])  # as if the writer had been killed before the marker
    s3.storage.commit(manifest, folder, progress=moved.append)
    assert moved == []
    fetched = s3.storage.fetch(manifest, tmp_path / "fetched")
    (fetched / "a.jsonl").write_bytes(b"{]\n")
    moved.clear()
    s3.storage.fetch(manifest, fetched, progress=moved.append)
    assert sum(moved) == 3


def test_equal_commits_agree_and_different_ones_do_not(s3: Any, folder: Path) -> None:
    manifest = made(s3, folder)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: s3.storage.commit(manifest, folder), range(4)))
    assert results == [manifest] * 4
    other = made(s3, folder, config={"other": True})
    with pytest.raises(ReasrmError, match=other.digest) as refused:
        s3.storage.commit(other, folder)
    assert manifest.digest in str(refused.value)
    assert s3.storage.open(manifest.uri) == manifest


def test_only_one_of_many_writers_is_first(s3: Any) -> None:
    uri = f"{s3.prefix}/race"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda index: s3.storage.write_bytes(uri, b"%d" % index, if_absent=True), range(8)))
    assert sum(won) == 1
    assert s3.storage.read_bytes(uri) == b"%d" % won.index(True)


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a\0", "%2e%2e/x"])
def test_unsafe_paths_are_refused_before_a_byte_is_written(s3: Any, tmp_path: Path, path: str) -> None:
    entry = FileEntry(path=path, size=1, sha256="0" * 64)
    manifest = Manifest(
        kind="x", stage="x", uri=f"{s3.prefix}/x", run_key="k", code_version="1", config={}, files=(entry,)
    )
    with pytest.raises(InvalidInput, match="unsafe path"):
        s3.storage.fetch(manifest, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_damaged_object_is_an_error_and_leaves_nothing_behind(s3: Any, folder: Path, tmp_path: Path) -> None:
    manifest = s3.storage.commit(made(s3, folder), folder)
    s3.storage.write_bytes(f"{manifest.uri}/a.jsonl", b"{]\n")
    s3.storage.delete([f"{manifest.uri}/model/empty"])
    with pytest.raises(ReasrmError, match=r"a\.jsonl is damaged"):
        s3.storage.fetch(manifest, tmp_path / "target", only=["a.jsonl"])
    assert list((tmp_path / "target").iterdir()) == []
    problems = s3.storage.verify(manifest)
    assert [problem.split(":")[0] for problem in problems] == ["a.jsonl", "model/empty"]
    with pytest.raises(ReasrmError, match="is missing"):
        s3.storage.fetch(manifest, tmp_path / "target", only=["model/empty"])


def test_objects_that_no_manifest_names_are_ignored(s3: Any, folder: Path, tmp_path: Path) -> None:
    manifest = s3.storage.commit(made(s3, folder), folder)
    s3.storage.write_bytes(f"{manifest.uri}/extra", b"x")
    assert describe(s3.storage.fetch(manifest, tmp_path / "target")) == manifest.files


@pytest.mark.parametrize("status", [503, 500, 429])
def test_answers_that_pass_are_tried_again(s3: Any, status: int, retry_at_once: None) -> None:
    storage, calls = failing(times=2, status=status)
    assert storage.write_bytes(f"{s3.prefix}/x", b"1")
    assert len(calls) == 3


def test_answers_that_do_not_pass_end_as_transient(s3: Any, retry_at_once: None) -> None:
    storage, calls = failing(times=100, status=503)
    with pytest.raises(Transient, match="run again"):
        storage.write_bytes(f"{s3.prefix}/x", b"1")
    assert len(calls) == 5


@pytest.fixture
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let botocore's retries wait no time."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0)


def failing(times: int, status: int, method: str = "", code: str = "SlowDown") -> tuple[Storage, list[int]]:
    """Return a storage whose first answers are errors, and the list of its calls."""
    from botocore.awsrequest import AWSResponse

    storage, calls = Storage.from_env(), []

    class Raw:
        def stream(self, **_: object) -> list[bytes]:
            return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]

    def answer(request: Any, **_: object) -> AWSResponse | None:
        if method and request.method != method:
            return None
        calls.append(1)
        time.sleep(0.02 if method else 0)
        return AWSResponse(request.url, status, {}, Raw()) if len(calls) <= times else None

    storage.client.meta.events.register("before-send.s3", answer)
    return storage, calls


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, Transient, "does not answer"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, InvalidInput, "refuses"),
    ],
)
def test_a_wrong_set_up_is_said_in_words(
    s3: Any, monkeypatch: pytest.MonkeyPatch, retry_at_once: None, change: dict[str, str], kind: type, words: str
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=words):
        Storage.from_env().ensure_bucket(s3.prefix)


def test_no_bucket_and_no_uri_are_said_in_words(s3: Any) -> None:
    with pytest.raises(InvalidInput, match="no bucket"):
        s3.storage.ensure_bucket("s3://not-there/x")
    for call in (s3.storage.read_bytes, s3.storage.list):
        with pytest.raises(InvalidInput, match="not an S3 uri"):
            call("/local/path")


def test_too_small_a_disk_is_said_before_the_download(
    s3: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = s3.storage.commit(made(s3, folder), folder)
    usage: Callable[[object], Any] = lambda path: type("Usage", (), {"free": 10**6})()  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(InvalidInput, match=r"0\.04 GB are needed"):
        s3.storage.fetch(manifest, tmp_path / "target")


def test_a_late_writer_does_not_damage_what_is_committed(s3: Any, folder: Path) -> None:
    manifest = s3.storage.commit(made(s3, folder), folder)
    (folder / "a.jsonl").write_bytes(b"[]\n")
    with pytest.raises(ReasrmError, match="other content"):
        s3.storage.commit(made(s3, folder), folder)
    assert s3.storage.verify(manifest) == []


def test_a_wrong_file_does_not_outlive_a_failed_fetch(s3: Any, folder: Path, tmp_path: Path) -> None:
    manifest = s3.storage.commit(made(s3, folder), folder)
    s3.storage.write_bytes(f"{manifest.uri}/a.jsonl", b"{]\n")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.jsonl").write_bytes(b"old")
    with pytest.raises(ReasrmError, match=r"a\.jsonl is damaged"):
        s3.storage.fetch(manifest, tmp_path / "target", only=["a.jsonl"])
    assert list((tmp_path / "target").iterdir()) == []


def test_an_object_replaced_during_its_download_is_fetched_again(s3: Any, folder: Path, tmp_path: Path) -> None:
    source, uri, gets = folder / "model" / "weights", f"{s3.prefix}/weights", []
    s3.storage.upload(source, uri)

    def replace(**_: object) -> None:
        gets.append(1)
        if len(gets) == 2:
            s3.storage.write_bytes(uri, bytes(40 * 2**20))
        if len(gets) == 3:
            s3.storage.upload(source, uri)

    storage = Storage.from_env()
    storage.client.meta.events.register("before-parameter-build.s3.GetObject", replace)
    (entry,) = (entry for entry in describe(folder) if entry.path == "model/weights")
    storage.download(uri, tmp_path / "weights", entry.size, entry.sha256)
    assert (tmp_path / "weights").read_bytes() == source.read_bytes()


def test_the_first_failure_stops_the_other_uploads(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for index in range(40):
        (tmp_path / "source" / f"{index:02d}").write_bytes(b"x")
    storage, calls = failing(times=1000, status=403, method="PUT", code="AccessDenied")
    with pytest.raises(InvalidInput, match="refuses"):
        storage.commit(made(s3, tmp_path / "source"), tmp_path / "source")
    assert len(calls) < 20


def test_a_mistyped_bucket_is_not_made(s3: Any) -> None:
    with pytest.raises(InvalidInput, match="no bucket"):
        s3.storage.write_bytes("s3://mistyped/x", b"1")


def test_an_endpoint_without_a_scheme_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1:9000")
    with pytest.raises(InvalidInput, match="http://host:port"):
        Storage.from_env()
