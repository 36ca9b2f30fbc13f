"""What SFT reads beside its input: the model that it starts from."""

from typing import Any

from components.adapters.models import fingerprint, starting_model
from components.adapters.storage import Storage
from components.sft.config import Config


def sources(config: Config, storage: Storage) -> list[dict[str, Any]]:
    """Return the fingerprint of the model that it starts from."""
    return fingerprint(starting_model(config.base_model, config.warm_start, storage), storage)
