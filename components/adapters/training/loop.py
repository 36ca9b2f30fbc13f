"""Train from the newest checkpoint to the end, and give back a log without times."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from components.adapters import ranks
from components.adapters.checkpoints import Checkpoints
from components.adapters.stage import Output, Stopped
from components.adapters.training.disk import check_disk
from components.adapters.training.guards import (
    NonFinite,
    StopOnNonFinite,
    explain_non_finite,
    name_rows,
)
from components.adapters.training.memory import memory_explained
from components.adapters.training.preemption import Preemption, restore_random_state, stop_signal
from components.adapters.training.reporting import Report, log_of, score_of
from components.adapters.training.settings import Settings, callback_of
from components.adapters.training.sharding import part_again
from components.core.errors import ReasrmError, Transient
from components.core.training import TrainingConfig


class CommitCheckpoint(TrainerCallback):
    """Hand each checkpoint that the trainer has written to `Checkpoints`, with its held-out score if it has one.

    Checkpoints are numbered as the trainer numbers its folders: by optimizer steps.
    """

    def __init__(self, checkpoints: Checkpoints, updates_per_step: int = 1) -> None:
        self.checkpoints = checkpoints
        self.newest = 0
        """The optimizer step of the newest checkpoint that was handed over, or resumed from; 0 before the first."""
        self._updates_per_step = updates_per_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do not save the last step only because it is the last: the finished model follows at once."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Commit the folder of this optimizer step."""
        update = state.global_step
        folder = Path(args.output_dir) / f"checkpoint-{update}"
        self.checkpoints.commit(folder, update, score_of(state.log_history, update // self._updates_per_step))
        self.newest = update


def callbacks(
    config: TrainingConfig,
    checkpoints: Checkpoints,
    output: Output,
    shown: tuple[str, ...],
    updates_per_step: int = 1,
) -> list[Any]:
    """Return the callbacks that every trainer gets; `shown` are the numbers beside the progress bar.

    A callback that sets `should_save` for the last step must come after these.
    """
    return [
        Settings(config),
        StopOnNonFinite(updates_per_step),
        Report(output, shown, updates_per_step),
        CommitCheckpoint(checkpoints, updates_per_step),
        Preemption(updates_per_step),
    ]


def train(
    trainer: Any,
    checkpoints: Checkpoints,
    output: Output,
    *,
    updates_per_step: int = 1,
    rows_of_step: Callable[[], Sequence[str] | Sequence[Sequence[str]]] | None = None,
) -> list[dict[str, Any]]:
    """Train from the newest whole checkpoint, or from the start; return the log, one row per step.

    `rows_of_step` names the rows of the running step in this process: all of them, or a list for each forward pass.
    Uploads under way are finished first, whatever happens.

    Raises:
        InvalidInput: the disk is too small.
        ReasrmError: a loss or gradient is not finite, or the memory does not suffice.
        Transient: SIGTERM has come; a checkpoint of the last finished step is in S3.
    """
    resume = checkpoints.newest()  # clears what earlier attempts left, so it comes before the look at the disk
    check_disk(trainer, checkpoints.directory)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    commit = callback_of(trainer, CommitCheckpoint)
    commit.newest = done

    def doing() -> str:
        step = trainer.state.global_step // updates_per_step + 1
        return f"in step {step} at {trainer.working_on or 'the model alone'}"

    try:
        stopped = False
        with (
            memory_explained(callback_of(trainer, Settings).config, doing, trainer.length_setting),
            stop_signal().listening(),
        ):
            steps = {"total": _num_updates(trainer) // updates_per_step, "done": done // updates_per_step}
            try:
                with output.progress.bar("steps", **steps):
                    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
                stopped = ranks.any_of(stop_signal().requested())
            except Stopped:
                stopped = True
            if stopped:
                _save_now(trainer, commit)
        checkpoints.wait(required=stopped and commit.newest > 0)
    except NonFinite as error:
        named = ranks.gather(name_rows(rows_of_step() if rows_of_step else (), error))
        rows = [row for names in named for row in names]
        last_good = _last_good(checkpoints, output, commit.newest, done, updates_per_step)
        raise explain_non_finite(error, rows, last_good) from error
    finally:
        checkpoints.close()
        part_again()
    if stopped:
        kept = f"after step {commit.newest // updates_per_step}, whose checkpoint is in S3" if commit.newest else ""
        raise Transient(f"stopped by SIGTERM {kept or 'before the first step'}; run again to go on")
    ranks.barrier()
    if ranks.local_rank() == 0:
        shutil.rmtree(checkpoints.directory, ignore_errors=True)
    return log_of(trainer.state.log_history, updates_per_step)


def _save_now(trainer: Any, commit: CommitCheckpoint) -> None:
    """Write and commit a checkpoint of the last finished step, unless it has one; every process must come here."""
    if trainer.state.global_step == commit.newest:
        return
    preemption = callback_of(trainer, Preemption)
    if preemption.random_state is not None:
        restore_random_state(preemption.random_state)
    trainer._save_checkpoint(trainer.model, trial=None)
    commit.on_save(trainer.args, trainer.state, trainer.control)


def _last_good(checkpoints: Checkpoints, output: Output, newest: int, done: int, updates_per_step: int) -> str:
    """Say which checkpoint to go back to, once it is known to be in S3; every process must ask."""
    step, folder = newest // updates_per_step, output.partial_uri("checkpoints/")
    if not newest:
        return "No checkpoint yet."
    if newest == done:
        return f"The last good checkpoint is that of step {step}, which this attempt went on from."
    try:
        checkpoints.wait(required=True)
    except ReasrmError as error:
        return f"The checkpoint of step {step} is not in S3 ({error}); what is there lies in {folder}."
    return f"The last good checkpoint is that of step {step} in {folder}{newest:08d}."


def _num_updates(trainer: Any) -> int:
    args, num_rows = trainer.args, len(trainer.train_dataset)
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = math.ceil(num_rows / int(args.per_device_train_batch_size * args.world_size))
    return int(args.num_train_epochs) * math.ceil(batches / int(args.gradient_accumulation_steps))
