"""Stop a policy that has left the bounds of [grpo.stop]: it seldom comes back, and every step costs."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from components.core.errors import InvalidInput
from components.grpo.config import StopSettings

logger = logging.getLogger(__name__)

_BOUNDED: Mapping[str, tuple[str, ...]] = {
    "max_kl": ("kl",),
    "min_entropy": ("entropy",),
    "max_entropy": ("entropy",),
    "min_completion_tokens": ("completion_tokens", "completions/mean_length"),
    "max_invalid_rate": ("valid_rate",),
    "max_truncated_rate": ("truncated_rate", "completions/clipped_ratio"),
}
"""What each bound looks at in a row of the log, under our name and TRL's."""


@dataclass(frozen=True)
class Collapse:
    """A bound that was broken for too long: in all RL steps from `since` to `step`, with these values."""

    bound: str
    limit: float
    values: tuple[float, ...]
    since: int
    step: int

    def __str__(self) -> str:
        what = self.bound.partition("_")[2]
        values = ", ".join(f"{value:.4g}" for value in self.values)
        return (
            f"{what} was {'under' if _is_minimum(self.bound) else 'over'} stop.{self.bound} = {self.limit:g} in all RL "
            f"steps from {self.since} to {self.step}: {values}"
        )


class StopOnCollapse(TrainerCallback):
    """Ends training when a bound has been broken in `patience` RL steps in a row; `collapse` and `reason` say which.

    It looks at nothing but the log, whose numbers are those of all processes: they all stop together, and a resumed run
    finds what was found before. It belongs before `HeldOut`: a run that goes on from the very step in which it had been
    stopped makes one step more, which counts for nothing (drop rows behind `collapse.step`) and is not evaluated.
    """

    def __init__(self, settings: StopSettings, updates_per_step: int) -> None:
        self.settings = settings
        self.updates_per_step = updates_per_step
        self.collapse: Collapse | None = None

    @property
    def reason(self) -> str | None:
        """Return why training was stopped, in words, or None when it was not."""
        return None if self.collapse is None else str(self.collapse)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find what an earlier attempt found."""
        self.collapse = find(state.log_history, self.settings, self.updates_per_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop again what had been stopped."""
        if self.collapse is not None:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the log with the new row."""
        if self.collapse is None:
            self.collapse = find(state.log_history, self.settings, self.updates_per_step)
            if self.collapse is not None:
                logger.warning("training stops: %s", self.collapse)
                control.should_training_stop = True


def find(log: Iterable[Mapping[str, Any]], settings: StopSettings, updates_per_step: int) -> Collapse | None:
    """Return the first collapse in a trainer's log, or None.

    Rows that have a loss count, each with the optimizer step it ends with. What several rows of one RL step say is
    averaged, and an RL step that is not over does not count. Raises InvalidInput for a bound on what is not measured.
    """
    limits = {name: limit for name in _BOUNDED if (limit := getattr(settings, name)) is not None}
    streaks: dict[str, list[float]] = {name: [] for name in limits}
    for step, rows in _rl_steps(log, updates_per_step).items():
        for name, limit in limits.items():
            value = _value(name, rows)
            streaks[name] = [*streaks[name], value] if _is_broken(name, limit, value) else []
            if len(streaks[name]) == settings.patience:
                return Collapse(name, limit, tuple(streaks[name]), step - settings.patience + 1, step)
    return None


def _rl_steps(log: Iterable[Mapping[str, Any]], updates_per_step: int) -> dict[int, list[Mapping[str, Any]]]:
    """Return the rows of each RL step that is over, by its number."""
    rows = [row for row in log if "loss" in row]
    last = rows[-1]["step"] // updates_per_step if rows else 0
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(math.ceil(row["step"] / updates_per_step), []).append(row)
    return {step: rows for step, rows in found.items() if step <= last}


def _value(bound: str, rows: list[Mapping[str, Any]]) -> float:
    """Return the mean over an RL step of what is bounded; not a number where the trainer had none."""
    values = [row[name] for row in rows for name in _BOUNDED[bound] if name in row]
    if not values:
        raise InvalidInput(
            f"stop.{bound} looks at {_BOUNDED[bound][0]}, which the log of this run does not have; remove the bound"
        )
    mean = sum(math.nan if value is None else float(value) for value in values) / len(values)
    return 1 - mean if bound == "max_invalid_rate" else mean


def _is_broken(bound: str, limit: float, value: float) -> bool:
    """Say whether a value is beyond the limit; one that is not finite always is."""
    return not math.isfinite(value) or (value < limit if _is_minimum(bound) else value > limit)


def _is_minimum(bound: str) -> bool:
    return bound.startswith("min_")
