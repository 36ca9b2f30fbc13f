"""The settings of a training run, where code that is given only its trainer finds them."""

from typing import Any, TypeVar

from transformers import TrainerCallback

from components.core.training import TrainingConfig

T = TypeVar("T")


class Settings(TrainerCallback):
    """Keeps the settings of this attempt, which hold for a run that goes on from a checkpoint as well."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and log as often as is asked now: a checkpoint has the trainer go on as it did before."""
        state.compute_steps(args, state.max_steps)


def callback_of(trainer: Any, kind: type[T]) -> T:
    """Return a trainer's callback of a kind."""
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind))
