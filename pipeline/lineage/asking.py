"""What only MLflow knows, asked for once for a whole tree. The chain of manifests stands without it."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from components.adapters import model_versions, tracking
from components.core.errors import ReasrmError

logger = logging.getLogger(__name__)
T = TypeVar("T")
FindRuns = Callable[[Collection[str]], Mapping[str, str]]
"""From digests of manifests to the ids of the MLflow runs that made them."""
FindVersions = Callable[[Collection[str]], Sequence[model_versions.VersionInfo]]
"""From digests of models' manifests to their registered versions."""


def run_finder() -> FindRuns:
    """Return a function from digests to MLflow runs; it knows none, and says so in the log, where MLflow is away."""
    return _best_effort(tracking.find_runs, {})


def version_finder() -> FindVersions:
    """Return a function from digests of models to versions, as `run_finder` does."""
    return _best_effort(model_versions.list_versions, ())


def _best_effort(ask: Callable[[Collection[str]], T], otherwise: T) -> Callable[[Collection[str]], T]:
    def answer(digests: Collection[str]) -> T:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            return otherwise
        try:
            return ask(digests)
        except ReasrmError as error:
            logger.warning("lineage: what only MLflow knows is left out: %s", error)
            return otherwise

    return answer
