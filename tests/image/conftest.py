"""A container engine and our images on it: `make image-test`, or `pytest -m image tests/image`.

The engine is the one that `docker` (or REASRM_DOCKER) reaches; without one all of it skips. REASRM_DOCKERD=FOLDER
starts an engine for the tests alone, with its data in FOLDER, and ends it after them. The base image has to be in the
engine's reach: from a registry, from REASRM_IMAGE_BASE, or made with `python -m images.base`.
"""

import contextlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from images.build import build, engine

DOCKERD_VARIABLE = "REASRM_DOCKERD"
START_SECONDS = 30.0
HARDENED: Sequence[str] = (
    "--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--tmpfs", "/scratch:exec,mode=1777", "--tmpfs", "/tmp:exec,mode=1777",
)  # fmt: skip
"""As restricted as a pod of a namespace with Pod Security `restricted` and a read-only root."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.image)


@dataclass(frozen=True)
class Image:
    """An image that was built from the working tree."""

    tag: str

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, folder: Path | None = None, code: int = 0
    ) -> str:
        """Run a command in a new container as a user that the image does not know; return all that it wrote.

        `folder` is there for the container under the same path.
        """
        given = [part for name, value in (environment or {}).items() for part in ("--env", f"{name}={value}")]
        mounted = ["--volume", f"{folder}:{folder}"] if folder else []
        full = [engine(), "run", "--rm", *HARDENED, "--user", any_user(), *given, *mounted, self.tag, *command]
        done = subprocess.run(full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def inspect(self) -> dict[str, Any]:
        """Return what the engine knows of the image."""
        found = subprocess.run([engine(), "image", "inspect", self.tag], capture_output=True, check=True)
        (one,) = json.loads(found.stdout)
        return dict(one)


def any_user() -> str:
    """A user id that no image knows, in the group 0, as OpenShift gives them."""
    return f"{50_000 + secrets.randbelow(10_000)}:0"


@pytest.fixture(scope="session")
def container_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = os.environ.get(DOCKERD_VARIABLE)
    with _dockerd(Path(folder)) if folder else contextlib.nullcontext():
        if problem := _unreachable():
            pytest.skip(f"no container engine answers: {problem}")
        yield


@pytest.fixture(scope="session")
def stage_image(container_engine: None) -> Image:
    return Image(build("stage"))


@pytest.fixture(scope="session")
def train_image(container_engine: None) -> Image:
    return Image(build("train-cpu"))


@pytest.fixture(params=["stage_image", "train_image"])
def image(request: pytest.FixtureRequest) -> Image:
    """Each image in turn."""
    found: Image = request.getfixturevalue(request.param)
    return found


def _unreachable() -> str:
    try:
        command = [engine(), "version", "--format", "{{.Server.Version}}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@contextlib.contextmanager
def _dockerd(folder: Path) -> Iterator[None]:
    """An engine for the tests, which `docker` and kfp find by DOCKER_HOST."""
    folder.mkdir(parents=True, exist_ok=True)
    host = f"unix://{folder.absolute()}/docker.sock"
    places = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "docker.pid"}
    options = [part for name, path in places.items() for part in (name, str(folder.absolute() / path))]
    before = os.environ.get("DOCKER_HOST")
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(["dockerd", "--host", host, *options], stdout=log, stderr=log)
    os.environ["DOCKER_HOST"] = host
    try:
        deadline = time.monotonic() + START_SECONDS
        while _unreachable() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before
