"""Each step's numbers, for MLflow and the progress bar."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from components.adapters import ranks
from components.adapters.stage import Output
from components.adapters.training.speed import Share, meter, peak_flops, peak_memory, phases, size_of, summarize

# Wall-clock values have no place in an artifact: doing the work twice must give the same bytes.
_CLOCK_MARKS = ("runtime", "per_second", "time", "profiling", "flos", "train_loss", "num_tokens")

SCORE = "eval.strict_accuracy"
"""The held-out score in a trainer's log: the share of pairs that are judged rightly in both orders."""


class Report(TrainerCallback):
    """Pass each step's numbers and its speed to MLflow and to the progress bar; a step may be several updates."""

    def __init__(self, output: Output, shown: tuple[str, ...], updates_per_step: int = 1) -> None:
        self.output = output
        self.shown = shown
        self._updates_per_step = updates_per_step
        self._begun = 0.0
        self._peak: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to measure: what came before is no part of the first step."""
        self._size = size_of(kwargs["model"])
        self._peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        meter().take()
        phases().take()
        self._begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log numeric values with their step."""
        numbers = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in numbers or "loss" not in numbers or state.global_step % self._updates_per_step:
            return
        numbers |= {f"speed.{name}": value for name, value in self._speed().items()}
        self.output.tracking.log_metrics(numbers, step=state.global_step // self._updates_per_step)
        note = "  ".join(f"{key} {numbers[key]:.3g}" for key in self.shown if key in numbers)
        self.output.progress.advance(1, note=note)

    def _speed(self) -> dict[str, float]:
        trained, scored = meter().take()  # waits for the device, so that the clock is read when the work is done
        now = time.perf_counter()
        seconds, self._begun = now - self._begun, now
        shares = ranks.gather(Share(trained, scored, peak_memory()))
        return summarize(shares, self._size, seconds, phases().take(), self._peak)


def score_of(history: list[dict[str, Any]], step: int) -> float | None:
    """Return the held-out score that a trainer's log has for a step, or None."""
    return next((float(row[SCORE]) for row in reversed(history) if SCORE in row and row["step"] == step), None)


def log_of(history: list[dict[str, Any]], updates_per_step: int) -> list[dict[str, Any]]:
    """Return a trainer's log without times and without values that are not finite, one row per step."""
    rows = [row for row in history if "loss" in row and row["step"] % updates_per_step == 0]
    return [{"step": row["step"] // updates_per_step, **_clockless(row)} for row in rows]


def _clockless(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if not any(mark in key for mark in _CLOCK_MARKS)}
    return {
        key: value
        for key, value in kept.items()
        if key != "step" and (not isinstance(value, float) or math.isfinite(value))
    }
