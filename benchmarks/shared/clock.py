"""Seconds of a trainer's steps, and of named calls within them: the same ruler for our trainers and for TRL's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback


def wait_for_gpu() -> None:
    """Wait for all that was asked of the GPU, so that the clock is read at the right time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Seconds of each step and of named calls within it; the same ruler for our trainers and for TRL's."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._open: list[str] = []
        self._now: dict[str, float] = {}
        self._began = self._mark = time.perf_counter()

    def callback(self) -> Any:
        """Return a trainer's callback that closes a step at its end."""
        clock = self

        class Steps(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                wait_for_gpu()
                clock._began = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                wait_for_gpu()
                now = time.perf_counter()
                clock.steps.append({**clock._now, "step": now - clock._began})
                clock._now, clock._began = {}, now

        return Steps()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count a method's calls to `name`, but for the watched calls within them."""
        found = getattr(owner, method, None)
        if found is None:
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._measure(name):
                return found(*args, **kwargs)

        setattr(owner, method, call)

    @contextmanager
    def _measure(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        """Give the time since the last switch to the innermost open call."""
        wait_for_gpu()
        now = time.perf_counter()
        if self._open:
            self._now[self._open[-1]] = self._now.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now

    def mean(self, num_warm: int) -> dict[str, float]:
        """Return the mean seconds by name, after the first steps; `train` is what no watched call took."""
        kept = self.steps[num_warm:]
        names = sorted({name for step in kept for name in step})
        found = {name: sum(step.get(name, 0.0) for step in kept) / len(kept) for name in names}
        return found | {"train": found["step"] - sum(seconds for name, seconds in found.items() if name != "step")}
