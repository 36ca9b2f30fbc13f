"""Runs the service until SIGTERM or Ctrl-C: no new connections then, what is under way is finished, exit code 0."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from components.core.errors import InvalidInput, ReasrmError
from pipeline.serving.app import create_app
from pipeline.serving.service import Service
from pipeline.serving.settings import ServiceSettings

WATCH_SECONDS = 0.2
KEEP_SECONDS = 75
"""How long an idle connection is kept: longer than proxies do (nginx 60 s), which would send into one just closed."""


def listen(settings: ServiceSettings) -> socket.socket:
    """Return the socket to serve on. Raises InvalidInput when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {settings.host}:{settings.port} ({error}); take another --host or --port"
        ) from error


def serve(service: Service, sock: socket.socket, stop: threading.Event | None = None) -> None:
    """Load the judge and answer requests until a signal, or `stop`.

    Raises whatever the judge failed with, at its start or later: the process is then to be started anew.
    """
    import uvicorn

    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    server = uvicorn.Server(config)

    def failed() -> BaseException | None:
        opened = service.batcher.opened
        return service.batcher.broken or (opened.exception() if opened.done() else None)

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if failed() or (stop is not None and stop.is_set()):
                server.should_exit = True

    watcher = threading.Thread(target=watch, daemon=True)
    service.batcher.start()
    watcher.start()
    try:
        with _signals_end_quietly():
            server.run(sockets=[sock])
    finally:
        ended.set()
        watcher.join()
        error = failed()
        service.batcher.close()
        sock.close()
    if error is not None:
        raise error if isinstance(error, ReasrmError) else ReasrmError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Keep uvicorn, which stops at a signal, from raising it once more when it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    quiet: Callable[..., None] = lambda number, frame: None  # noqa: E731 - a handler that does nothing
    before = {number: signal.signal(number, quiet) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
