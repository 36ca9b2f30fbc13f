"""SIGTERM while training: a flag, a checkpoint where the step ends, and an end that the next attempt goes on from."""

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from components.adapters import ranks


class StopSignal:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        """Say whether SIGTERM has arrived; a long piece of work between two steps may ask and end early."""
        return self._requested

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn SIGTERM into the flag, and put the handler from before back at the end."""
        self._requested = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: object) -> None:
            self._requested = True

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


_SIGNAL = StopSignal()


def stop_signal() -> StopSignal:
    """Return the process's one signal."""
    return _SIGNAL


class Preemption(TrainerCallback):
    """End training with a checkpoint once any process was asked to stop, where a step ends.

    It also keeps the random state of that point, for a checkpoint that is written later, inside the next rollout.
    """

    def __init__(self, updates_per_step: int = 1) -> None:
        self._updates_per_step = updates_per_step
        self.random_state: dict[str, Any] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask all processes; the trainer saves and stops after this."""
        if state.global_step % self._updates_per_step:
            return
        self.random_state = random_state()
        if ranks.any_of(stop_signal().requested()):
            control.should_save = True
            control.should_training_stop = True


def random_state() -> dict[str, Any]:
    """Return the state of all generators that a checkpoint keeps."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to an earlier state."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
