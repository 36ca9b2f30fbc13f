"""Answers that go on: logs and watches."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.adapters.kubernetes.errors import Gone, Unavailable
from components.adapters.kubernetes.kinds import Object


class Stream:
    """Lines of an answer that goes on; `close` from any thread ends the iteration."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[str]:
        """Yield lines without their ends. Raises Unavailable when the connection breaks."""
        import urllib3

        rest, whole = b"", False
        try:
            for chunk in self._response.stream(2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace")
            whole = True
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # A response that another thread closes raises whatever it happens to find missing.
            if not self._closed:
                raise Unavailable(f"the connection to the Kubernetes API broke: {error}") from error
            return
        finally:
            if whole:
                self._response.release_conn()
            else:
                self.discard()
        if rest and not self._closed:
            yield rest.decode("utf-8", "replace")

    def discard(self) -> None:
        """Give up the connection, in the thread that reads."""
        self._closed = True
        self._response.close()

    def close(self) -> None:
        """End the answer, also while another thread waits for its next line."""
        self._closed = True
        try:
            self._response.shutdown()
        except (ValueError, OSError, RuntimeError):  # it has ended already
            return


@dataclass
class Watch:
    """Changes of objects, each a pair of its type (ADDED, MODIFIED, DELETED, BOOKMARK) and the object."""

    stream: Stream

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        """Yield changes until the time asked for is over."""
        for line in self.stream:
            try:
                change = json.loads(line)
            except ValueError as error:  # cut off in the middle
                raise Unavailable("the connection to the Kubernetes API broke in the middle of a change") from error
            if change["type"] != "ERROR":
                yield change["type"], change["object"]
                continue
            status = change["object"]
            message = f"the watch ended: {status.get('message', 'no reason given')}"
            raise Gone(message) if status.get("code") == 410 else Unavailable(message)

    def close(self) -> None:
        """End the watch, from any thread."""
        self.stream.close()
