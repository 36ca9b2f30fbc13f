"""The embedded servers: shared by folder, gone with their owner, clear when they cannot start."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from components.adapters.storage import Storage
from components.core.errors import InvalidInput, Transient
from pipeline.services import BUCKET, Services

OWNER = """
import sys, time
from pathlib import Path
from pipeline.services import Services
with Services(Path(sys.argv[1]), mlflow=False) as services:
    print(services.environment()["AWS_ENDPOINT_URL_S3"], flush=True)
    time.sleep(600)
"""


def test_data_outlives_the_server_and_a_second_owner_shares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for attempt in range(2):
        with Services(tmp_path, mlflow=False) as first:
            for name, value in first.environment().items():
                monkeypatch.setenv(name, value)
            storage = Storage.from_env()
            assert storage.write_bytes(f"s3://{BUCKET}/kept", b"x", if_absent=True) == (attempt == 0)
            with Services(tmp_path, mlflow=False) as second:
                assert second.environment() == first.environment()
            assert storage.read_bytes(f"s3://{BUCKET}/kept") == b"x"
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(first.environment()["AWS_ENDPOINT_URL_S3"] + "/status", timeout=2)
    assert (tmp_path / "credentials.json").stat().st_mode & 0o077 == 0


def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout as out:
        url = out.readline().strip() + "/status"
    assert urllib.request.urlopen(url, timeout=5).status == 200
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the server still answers 10 s after its owner was killed")


def test_a_chosen_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {port} for the s3 server is in use"):
            Services(tmp_path, mlflow=False, ports={"s3": port}).start()


def test_too_small_a_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"GB are free in .* GB are needed"):
        Services(tmp_path, min_free_bytes=10**18).start()


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "s3" / "filer.toml").mkdir(parents=True)
    (tmp_path / "s3" / "filerldb2").write_text("a file where the index should be", encoding="utf-8")
    with pytest.raises(Transient, match=r"the s3 server ended with exit code.*end of .*s3\.log"):
        Services(tmp_path, mlflow=False).start()


def test_a_second_owner_that_wants_more_is_told_who_runs_the_servers(tmp_path: Path) -> None:
    with (
        Services(tmp_path, mlflow=False),
        pytest.raises(InvalidInput, match=rf"without mlflow; stop process {os.getpid()}"),
    ):
        Services(tmp_path).start()


def test_credentials_of_the_surrounding_shell_are_no_key_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reasrm")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-folder")
    with Services(tmp_path, mlflow=False) as services:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", services.environment()["AWS_ENDPOINT_URL_S3"])
        with pytest.raises(InvalidInput, match="refuses"):
            Storage.from_env().write_bytes(f"s3://{BUCKET}/x", b"1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", services.environment()["AWS_SECRET_ACCESS_KEY"])
        assert Storage.from_env().write_bytes(f"s3://{BUCKET}/x", b"1")
