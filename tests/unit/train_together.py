"""Processes that train together, one case after the other: `torchrun train_together.py <folder> <case> ...`.

The folder holds model/ and results are written to it: <case>.json, and what was exported to <case>/. A case is
<sharding>[-lora][-bf16][-recompute][-offload][-<poison>]; a poison spoils the second process's part of step 3.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import is_peft_model
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from components.adapters import ranks, training
from components.adapters.checkpoints import Checkpoints
from components.adapters.cpu_head import score_learned_positions_only
from components.adapters.follow import SilentProgress, SilentRun
from components.adapters.models import load_tokenizer
from components.adapters.stage import Output
from components.adapters.storage import Storage
from components.core.errors import ReasrmError
from components.core.training import LoraSettings, TrainingConfig

STEPS, BATCH, POISONED_STEP = 4, 4, 3
POISONS = ("loss", "gradient", "norm", "memory")


class Poisoned(SFTTrainer):  # type: ignore[misc]
    """Spoils one process's part of one step, in the second of its forward passes."""

    poison = ""
    passes = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.passes += 1
        per_step = self.args.gradient_accumulation_steps
        if not self.poison or self.passes != (POISONED_STEP - 1) * per_step + per_step:
            return loss
        if ranks.rank() != ranks.world_size() - 1:
            return loss
        if self.poison == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        if self.poison == "norm":
            return loss * 1e30  # gradients are finite, their squares are not
        # The square root of zero is finite, its slope is not.
        return loss * float("nan") if self.poison == "loss" else loss + (loss * 0).abs().sqrt()


class Trainer(training.Guarded, Poisoned):
    """A trainer as the stages make it."""


def rows(count: int) -> Dataset:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        ids = [rng.randrange(10, 500) for _ in range(30 + rng.randrange(20))]
        made.append({"input_ids": ids, "completion_mask": [0] * 10 + [1] * (len(ids) - 10)})
    return Dataset.from_list(made)


def build(
    folder: Path, config: TrainingConfig, checkpoints: Checkpoints, output: Output, steps: int = STEPS, **more: Any
) -> Trainer:
    tokenizer = load_tokenizer(folder / "model", padding_side="right")
    arguments = SFTConfig(
        **training.common_arguments(config, checkpoints, output),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=BATCH // ranks.world_size(),
        max_length=None,
        completion_only_loss=True,
        **{"save_steps": 2, **more},
    )
    trainer = Trainer(
        model=training.load_trainable(folder / "model", config, output),
        args=arguments,
        train_dataset=rows(STEPS * BATCH),
        processing_class=tokenizer,
        peft_config=training.peft_config(config),
        callbacks=training.callbacks(config, checkpoints, output, ("loss",)),
    )
    model = trainer.model
    score_learned_positions_only(model.get_base_model() if is_peft_model(model) else model)
    return trainer


def settings(case: str) -> TrainingConfig:
    parts = case.split("-")
    return TrainingConfig(
        sharding=parts[0],
        precision="bf16" if "bf16" in parts else "fp32",
        lora=LoraSettings(rank=4, alpha=8) if "lora" in parts else None,
        offload="optimizer" if "offload" in parts else "none",
        gradient_checkpointing="recompute" in parts,
        adam_beta2=0.95,
        keep_checkpoints=2,
    )


def new_output(folder: Path, case: str) -> Output:
    root = (folder / "root").read_text(encoding="utf-8")
    directory = folder / case / str(ranks.rank())
    directory.mkdir(parents=True)
    return Output(
        f"{root}/{case}", directory, folder / case / "work", Storage.from_env(), SilentRun(), SilentProgress(), "key"
    )


def run(folder: Path, case: str) -> dict[str, Any]:
    """Return what came of a case."""
    config, output = settings(case), new_output(folder, case)
    checkpoints = Checkpoints(output, "sft", "1", config, 2, parents={}, sharding=config.sharding)
    trainer = build(folder, config, checkpoints, output)
    trainer.poison = next((poison for poison in POISONS if case.endswith(poison)), "")
    try:
        log = training.train(trainer, checkpoints, output, rows_of_step=lambda: [f"row-of-{ranks.rank()}"])
    except ReasrmError as error:
        saved = [path.stat().st_size for path in (checkpoints.directory / "checkpoint-2").rglob("*") if path.is_file()]
        return {"error": str(error), "global_step": trainer.state.global_step, "saved": sum(saved)}
    training.export(trainer, trainer.processing_class, log, output)
    return {"log": log, **({"error": spoiled_export(trainer, log, output)} if case == "none" else {})}


def spoiled_export(trainer: Any, log: list[dict[str, Any]], output: Output) -> str:
    """Return the error of an export in which the first process finds a weight that is no bf16 number."""
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = 3.4e38
    try:
        training.export(trainer, trainer.processing_class, log, output)
    except ReasrmError as error:
        return str(error)
    return ""


def forget() -> None:
    """Take down what one case has set up, so that the next one begins afresh."""
    ranks.barrier()
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


def main() -> None:
    folder = Path(sys.argv[1])
    for case in sys.argv[2:]:
        found = run(folder, case)
        (folder / f"{case}.{ranks.rank()}.json").write_text(json.dumps(found), encoding="utf-8")
        forget()


if __name__ == "__main__":
    main()
