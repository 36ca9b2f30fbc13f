"""What stops a training run before it spoils the model, and names what it was working on.

A number that is not finite is found before the optimizer step, by all processes at the same point: under torch's data
parallelism when the gradients have been reduced, under DeepSpeed, whose engine steps inside the last backward pass, by
the losses before it and by the engine's own check of the gradient, which skips the step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from components.adapters import ranks
from components.adapters.training.speed import meter, phases
from components.core.errors import ReasrmError

_NAMED_ROWS = 20


class NonFinite(ReasrmError):
    """A loss or a gradient is not finite; every process raises it at the same point."""

    def __init__(self, step: int, what: str, micro_batches: Sequence[int] = ()) -> None:
        super().__init__(
            f"the {what} of step {step} is not finite: training stopped before it could spoil the model; lower the "
            "learning rate or look at the rows of this step"
        )
        self.step = step
        self.what = what
        self.micro_batches = tuple(micro_batches)
        """Which of this process's forward passes in the step, from 0, had a loss that is not finite."""


class Losses:
    """Which losses of the running step are finite, kept on the device: asking costs a wait for it."""

    def __init__(self) -> None:
        self._finite: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        """Take note of one forward pass."""
        self._finite.append(torch.isfinite(loss.detach()).all())

    def non_finite(self) -> list[int]:
        """Return the places of the forward passes, from 0, whose loss is not finite."""
        if not self._finite:
            return []
        flags = torch.stack(self._finite).tolist()
        return [place for place, finite in enumerate(flags) if not finite]

    def clear(self) -> None:
        """Begin a new step."""
        self._finite.clear()


class StopOnNonFinite(TrainerCallback):
    """Stop before the optimizer step when a loss or a gradient is not finite, so that no dead model is ever saved.

    Without it the trainer logs loss 0.0, goes on, and ends with success.
    """

    def __init__(self, updates_per_step: int = 1) -> None:
        self.losses = Losses()
        self.norm: Any = None
        """The norm of the step's gradient before it was clipped, once the trainer knows it."""
        self._updates_per_step = updates_per_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the losses and the norm of the step before."""
        self.losses.clear()
        self.norm = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check all losses and gradients of the step. Raises NonFinite on every process.

        The norm says more than the gradients: where it overflows, clipping has made zeros of them.
        """
        skipped = getattr(kwargs.get("optimizer"), "step_was_skipped", False)  # DeepSpeed: the same everywhere
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norm = self.norm
        if norm is None and gradients:  # DeepSpeed keeps them elsewhere
            norm = torch.stack(torch._foreach_norm(gradients)).sum()
        self.agree(state, not skipped and (norm is None or bool(torch.isfinite(torch.as_tensor(norm)))))

    def agree(self, state: Any, finite: bool = True) -> None:
        """Raise NonFinite on every process when any of them has found something; all must ask at the same point."""
        bad = self.losses.non_finite()
        whats = [what for what in ranks.gather("loss" if bad else "" if finite else "gradient") if what]
        if whats:
            step = state.global_step // self._updates_per_step + 1
            raise NonFinite(step, "loss" if "loss" in whats else "gradient", bad)


class Guarded:
    """Mix into a trainer, before it: `class SftTrainer(Guarded, SFTTrainer)`.

    Watches each loss, counts tokens, measures how long saving takes, and remembers what it is working on.
    """

    length_setting = "max_length"
    """The setting to lower when sequences are too long for the memory."""

    working_on = ""
    """The shapes of the tensors in work, in words."""

    _non_finite: StopOnNonFinite | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for callback in self.callback_handler.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopOnNonFinite):
                self._non_finite = callback

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Train on one micro-batch."""
        self.working_on = describe(inputs)
        return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, and look at it."""
        trainer: Any = self
        if not trainer.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self.working_on = describe(inputs)
        meter().count(inputs)
        found = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self._non_finite is not None:
            self._non_finite.losses.add(found[0] if isinstance(found, tuple) else found)
            if trainer.is_deepspeed_enabled and trainer.accelerator.sync_gradients:
                self._non_finite.agree(trainer.state)
                self.working_on += ", or in the optimizer step after it"  # DeepSpeed's ends the backward pass
        return found

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.working_on = "the optimizer step"
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if self._non_finite is not None:
            self._non_finite.norm = norm
        return norm

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.working_on = "writing a checkpoint"
        with phases().measure("save"):
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing when all steps are done: a checkpoint of the last one would get another one otherwise."""
        trainer: Any = self
        if trainer.state.global_step < trainer.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]


def describe(inputs: Any) -> str:
    """Return a batch's tensors and their shapes in words."""
    if isinstance(inputs, Mapping):
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if getattr(value, "ndim", 0) > 1}
        kept = {name: shape for name, shape in shapes.items() if name.endswith("_ids")} or shapes
        return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in kept.items())
    return f"{len(inputs)} rows" if isinstance(inputs, Sequence) else type(inputs).__name__


def name_rows(rows: Sequence[str] | Sequence[Sequence[str]], error: NonFinite) -> list[str]:
    """Return this process's rows to look at; those of single forward passes where they are given one by one."""
    if error.what == "loss" and not error.micro_batches:
        return []
    lists = [[row] if isinstance(row, str) else list(row) for row in rows]
    apart = any(not isinstance(row, str) for row in rows)
    if apart and error.micro_batches:
        lists = [lists[place] for place in error.micro_batches if place < len(lists)]
    return [row for names in lists for row in names]


def explain_non_finite(error: NonFinite, rows: Sequence[str], last_good: str) -> ReasrmError:
    """Return the error with the rows, and a sentence on the checkpoint to go back to."""
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    named = f" The rows: {', '.join(rows[:_NAMED_ROWS])}{more}." if rows else ""
    return ReasrmError(f"{error}.{named} {last_good}")
