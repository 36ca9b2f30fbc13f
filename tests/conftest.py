"""Real servers for tests that need them: SeaweedFS and MLflow, started once per session on free ports."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.adapters.storage import Storage
from pipeline.services import BUCKET, Services


@dataclass(frozen=True)
class Bucket:
    """A connection to the embedded S3 server and a prefix that no other test uses."""

    storage: Storage
    prefix: str


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with Services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture
def served(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The servers, with this process's environment pointing at them."""
    for name, value in services.environment().items():
        monkeypatch.setenv(name, value)
    return services


@pytest.fixture
def s3(served: Services) -> Bucket:
    return Bucket(Storage.from_env(), f"s3://{BUCKET}/test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a real tokenizer and chat template."""
    from pipeline.models import make_tiny_random

    directory = tmp_path_factory.mktemp("models") / "tiny-random"
    make_tiny_random(directory)
    return directory


os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
