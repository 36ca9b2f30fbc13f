"""What SFT and GRPO share around TRL's trainers: arguments, callbacks, checkpoints, export."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from components.adapters.checkpoints import Checkpoints
from components.adapters.models import pick_precision
from components.adapters.stage import Output
from components.core.errors import InvalidInput, ReasrmError
from components.core.records import write_jsonl
from components.core.training import TrainingConfig

BYTES_PER_PARAMETER = 4 + 8  # fp32 weights and two Adam moments
# Batches of few different widths: a CPU's kernels are built and kept per shape, and without this the memory of a run
# grew with every new width (measured: 5.7 to 5.0 GiB and 18 % less time a step on two cores, 30 steps).
PAD_MULTIPLE = 64
# Wall-clock values have no place in an artifact: doing the work twice must give the same bytes.
_CLOCK_MARKS = ("runtime", "per_second", "time", "profiling", "flos", "train_loss", "num_tokens")


def common_arguments(config: TrainingConfig, checkpoints: Checkpoints, output: Output) -> dict[str, Any]:
    """Return the trainer arguments that do not depend on the objective."""
    precision = output.once("precision", lambda: pick_precision(config.precision))
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints.directory),
        "bf16": precision == "bf16",
        "use_cpu": not on_gpu,
        "optim": "adamw_torch_fused",
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "seed": config.seed,
        "data_seed": config.seed,
        "dataloader_pin_memory": on_gpu,
        "pad_to_multiple_of": PAD_MULTIPLE,
    }


class StopOnNonFinite(TrainerCallback):
    """Stop before the optimizer step when a gradient is not finite, so that no dead model is ever saved.

    Without it the trainer logs loss 0.0, goes on, and ends with success.
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check all gradients. Raises ReasrmError naming the step."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        if not math.isfinite(float(torch.stack(norms).sum())):
            raise ReasrmError(
                f"the gradient of step {state.global_step + 1} is not finite: training stopped before it could spoil "
                "the model; lower the learning rate or look at the rows of this step. The last checkpoint is good."
            )


class Report(TrainerCallback):
    """Pass each step's numbers to MLflow and to the progress bar."""

    def __init__(self, output: Output, shown: tuple[str, ...]) -> None:
        self.output = output
        self.shown = shown

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log numeric values with their step."""
        numbers = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in numbers:
            return
        self.output.tracking.log_metrics(numbers, step=state.global_step)
        note = "  ".join(f"{key} {numbers[key]:.3g}" for key in self.shown if key in numbers)
        self.output.progress.advance(1, note=note)


class CommitCheckpoint(TrainerCallback):
    """Hand each checkpoint that the trainer has written to `Checkpoints`."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Commit the folder of this step, unless it is the last step: the finished model follows at once."""
        if state.global_step < state.max_steps:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.checkpoints.commit(folder, state.global_step)


def train(trainer: Any, checkpoints: Checkpoints, output: Output) -> list[dict[str, Any]]:
    """Train from the newest whole checkpoint, or from the start; return the log, one row per step.

    Raises ReasrmError on non-finite gradients and whatever the trainer raises; uploads under way are finished first.
    """
    check_disk(trainer.model, checkpoints.directory)
    resume = checkpoints.newest()
    total = trainer.args.max_steps if trainer.args.max_steps > 0 else _num_steps(trainer)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    try:
        with output.progress.bar("steps", total=total, done=done):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        checkpoints.wait()
    finally:
        checkpoints.close()
    shutil.rmtree(checkpoints.directory, ignore_errors=True)
    return [_clockless(row) for row in trainer.state.log_history if "loss" in row]


def _num_steps(trainer: Any) -> int:
    args, num_rows = trainer.args, len(trainer.train_dataset)
    batches = math.ceil(num_rows / int(args.per_device_train_batch_size * args.world_size))
    return int(args.num_train_epochs) * math.ceil(batches / int(args.gradient_accumulation_steps))


def _clockless(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if not any(mark in key for mark in _CLOCK_MARKS)}
    finite = {key: value for key, value in kept.items() if not isinstance(value, float) or math.isfinite(value)}
    return {"step": finite.pop("step"), **finite}


def check_disk(model: Any, directory: Path) -> None:
    """Raise InvalidInput when the disk cannot hold two checkpoints: a full disk must not be found in the middle."""
    directory.mkdir(parents=True, exist_ok=True)
    needed = 2 * BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InvalidInput(
            f"two checkpoints need {needed / 1e9:.1f} GB in {directory}, and {free / 1e9:.1f} GB are free; "
            "free some space, or point REASRM_WORKDIR to a larger disk"
        )


def export(model: Any, tokenizer: Any, log: list[dict[str, Any]], output: Output) -> None:
    """Write the finished model as bf16 safetensors with its tokenizer, and the log of its training.

    Raises ReasrmError when a weight is not finite.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ReasrmError(f"the trained weight {name} has non-finite values; the model is not published")
    model.to(torch.bfloat16).save_pretrained(output.directory / "model", safe_serialization=True)
    tokenizer.save_pretrained(output.directory / "model")
    write_jsonl(output.directory / "metrics.jsonl", log)
