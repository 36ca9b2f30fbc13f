"""The first machine's log, line by line in ours, and the last lines of the one that failed."""

import json
import logging
import threading

from components.adapters.kubernetes import Cluster, Object, Stream
from components.adapters.trainjob.spec import CONTAINER
from components.adapters.trainjob.state import index
from components.core.errors import InvalidInput, ReasrmError, Transient

logger = logging.getLogger(__name__)

TAIL = 40
"""Lines of the pod that failed."""
_SILENT_SECONDS = 600.0
"""A log that says nothing for so long is asked for again: its connection may be dead."""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class LogFollower(threading.Thread):
    """Follows the log of one pod until its container has ended, over any number of connections."""

    def __init__(self, cluster: Cluster, pod: Object, *, pause: float = 2.0) -> None:
        super().__init__(name=f"log of {pod['metadata']['name']}", daemon=True)
        self.uid = pod["metadata"]["uid"]
        self._cluster, self._name, self._index, self._pause = cluster, pod["metadata"]["name"], index(pod), pause
        self._ended = threading.Event()
        self._finishing = threading.Event()
        self._stream: Stream | None = None
        self._last = ("", "")
        """When the last line was written: for the API, and to compare."""

    def run(self) -> None:
        """Go on until `stop`, or until the log ends after `finish`."""
        while not self._ended.is_set():
            finishing = self._finishing.is_set()
            try:
                there = self._read()
            except InvalidInput as error:  # the container has not started yet, or its node is gone
                logger.debug("%s: %s", self.name, error)
                there = True
            except (Transient, ReasrmError) as error:
                logger.debug("%s: %s", self.name, error)
                there, finishing = True, False
            if not there or finishing:
                return
            self._ended.wait(self._pause)

    def _read(self) -> bool:
        """Read one connection to its end; say whether the pod is still there."""
        stream = self._cluster.logs(
            self._name,
            container=CONTAINER,
            follow=True,
            since=self._last[0],
            timestamps=True,
            seconds=_SILENT_SECONDS,
        )
        if stream is None:
            return False
        self._stream = stream
        if self._ended.is_set():
            stream.close()
        for line in stream:
            time, _, text = line.partition(" ")
            key = _comparable(time)
            if key > self._last[1]:  # a new connection begins at the last whole second
                self._last = (time, key)
                say(text, self._index)
        return True

    def finish(self, seconds: float) -> None:
        """Let it read what is left of the log of a container that has ended, and stop."""
        self._finishing.set()
        if self.is_alive():
            self.join(seconds)
        self.stop()

    def stop(self) -> None:
        """End the thread soon."""
        self._ended.set()
        if self._stream is not None:
            self._stream.close()


def say(text: str, machine: int) -> None:
    """Say a line of a pod in our own log, at its own level."""
    text = text.rpartition("\r")[2].rstrip()  # of a bar that is drawn over and over its last state
    if not text:
        return
    level, message = logging.INFO, text
    if text.startswith("{"):
        try:
            record = json.loads(text)
            message = str(record["message"])
            if record.get("level") in _LEVELS:
                level = logging.getLevelNamesMapping()[record["level"]]
            if "rank" in record:
                message = f"rank {record['rank']}: {message}"
            if record.get("traceback"):
                message = f"{message}\n{record['traceback']}"
        except (ValueError, TypeError, KeyError):
            message = text
    logger.log(level, "[machine %s] %s", machine, message)


def show_tail(cluster: Cluster, pod: Object) -> None:
    """Say the last lines of a pod that failed."""
    name = pod["metadata"]["name"]
    try:
        stream = cluster.logs(name, container=CONTAINER, tail=TAIL)
        lines = [] if stream is None else list(stream)
    except (InvalidInput, Transient) as error:
        logger.warning("the log of pod %s cannot be read: %s", name, error)
        return
    if not lines:
        logger.warning("the log of pod %s is gone with it; the cluster's log store may still have it", name)
        return
    logger.info("the last %s lines of pod %s:", len(lines), name)
    for line in lines:
        say(line, index(pod))


def _comparable(time: str) -> str:
    """Return an RFC 3339 time in UTC so that later ones sort later: the zeros at its end are left out by the API."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<9}"
