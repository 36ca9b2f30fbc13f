"""List and watch, for ever, in a thread: what changes goes into a queue, and a broken connection is no news."""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from components.adapters.kubernetes import Cluster, Gone, Kind, Object, Watch
from components.core.errors import InvalidInput, Transient

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """All objects there are; what is not among them is gone."""

    kind: Kind
    items: Sequence[Object]


@dataclass(frozen=True)
class Changed:
    """An object that is new or another, or with `deleted` gone."""

    kind: Kind
    item: Object
    deleted: bool


@dataclass(frozen=True)
class Broken:
    """There will be no more news."""

    error: Exception


News = Listed | Changed | Broken


@dataclass(frozen=True)
class Pace:
    """Seconds of an informer."""

    watch: float = 240.0
    """Length of one watch."""
    first: float = 0.5
    longest: float = 30.0
    """Pauses after a failure, doubled from the first to the longest."""
    lost: float = 1800.0
    """How long the API may be away before that is an error."""
    refused: float = 60.0
    """How long it may refuse what it once allowed: an API server that starts knows no roles yet."""


class Informer(threading.Thread):
    """Follows the objects of a kind that the selectors leave."""

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        news: "queue.SimpleQueue[News]",
        *,
        labels: str = "",
        fields: str = "",
        pace: Pace | None = None,
    ) -> None:
        super().__init__(name=f"informer of {kind}", daemon=True)
        self._cluster, self._kind, self._news = cluster, kind, news
        self._selectors = {"labels": labels, "fields": fields}
        self._pace = pace or Pace()
        self._ended = threading.Event()
        self._watch: Watch | None = None
        self._version = ""
        self._worked = False
        """Whether the API has answered once."""

    def run(self) -> None:
        """Go on until `stop`."""
        pause, failing = self._pace.first, 0.0
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._go_on()
                pause, failing = self._pace.first, 0.0
            except Gone:
                self._version = ""
            except (InvalidInput, Transient) as error:
                failing = failing or began
                patience = self._pace.refused if isinstance(error, InvalidInput) else self._pace.lost
                if not self._worked and isinstance(error, InvalidInput):
                    patience = 0.0
                if time.monotonic() - failing >= patience:
                    self._news.put(Broken(error))
                    return
                logger.debug("%s: %s", self.name, error)
            except Exception as error:  # a thread that dies silently would leave the launcher waiting for ever
                self._news.put(Broken(error))
                return
            if failing or time.monotonic() - began < self._pace.first:  # nor does one ask without pause
                self._ended.wait(pause)
                pause = min(2 * pause, self._pace.longest)

    def _go_on(self) -> None:
        """List where no version is known, then watch once."""
        if not self._version:
            listing = self._cluster.list(self._kind, **self._selectors)
            self._version, self._worked = listing.version, True
            self._news.put(Listed(self._kind, listing.items))
        with self._cluster.watch(self._kind, self._version, seconds=self._pace.watch, **self._selectors) as watch:
            self._watch = watch
            if self._ended.is_set():
                return
            for change, item in watch:
                self._version = item["metadata"]["resourceVersion"]
                if change != "BOOKMARK":
                    self._news.put(Changed(self._kind, item, deleted=change == "DELETED"))

    def stop(self) -> None:
        """End the thread soon, from any other."""
        self._ended.set()
        if self._watch is not None:
            self._watch.close()
