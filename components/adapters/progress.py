"""Progress of a stage: a bar where someone watches, and a small status file where another process draws it.

`REASRM_STATUS` names a folder, in which a stage keeps `<stage>.json`; `reasrm run` sets it and paints all stages on
one screen. Without it and on a terminal the stage draws its own bar; otherwise a line goes to the log every
LOG_SECONDS.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STATUS_VARIABLE = "REASRM_STATUS"
WRITE_SECONDS = 0.2
LOG_SECONDS = 30.0


class Progress:
    """Reports how far a stage is; cheap enough to call for every row."""

    def __init__(self, stage: str, status_file: Path | None = None) -> None:
        named = os.environ.get(STATUS_VARIABLE)
        self._file = status_file or (Path(named) / f"{stage}.json" if named else None)
        self._state: dict[str, Any] = {"stage": stage, "status": "running", "started": time.time()}
        self._written = self._logged = 0.0
        self._bar: Any = None
        self._write()

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator["Progress"]:
        """Begin one piece of work of `total` units, of which `done` were finished by an earlier attempt."""
        self._state.update(what=what, total=total, done=done, note="", initial=done)
        self._write()
        if self._file is None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=f"{self._state['stage']}: {what}")
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            self._write()

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """Count finished units; `note` is a few words of live numbers (loss, cost, accuracy)."""
        self._state["done"] = self._state.get("done", 0) + units
        if note is not None:
            self._state["note"] = note
        if self._bar is not None:
            self._bar.set_postfix_str(self._state["note"], refresh=False)
            self._bar.update(units)
        now = time.monotonic()
        if now - self._written > WRITE_SECONDS:
            self._write()
        if self._bar is None and now - self._logged > LOG_SECONDS:
            self._logged = now
            logger.info("%s: %s of %s %s", *(self._state.get(k) for k in ("what", "done", "total", "note")))

    def end(self, status: str, summary: str, **facts: Any) -> None:
        """Say how the stage ended (`done`, `reused`, `failed`) in one line of numbers or one error message."""
        self._state.update(status=status, summary=summary, ended=time.time(), **facts)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(self._file.name + ".tmp")
        temporary.write_text(json.dumps(self._state), encoding="utf-8")
        temporary.replace(self._file)
