"""What the benchmark reads beside its inputs: the base model."""

from typing import Any

from components.adapters.models import fingerprint
from components.adapters.storage import Storage
from components.benchmark.config import Config


def sources(config: Config, storage: Storage) -> list[dict[str, Any]]:
    """Return the base model's fingerprint."""
    return fingerprint(config.base_model, storage)
