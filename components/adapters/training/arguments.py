"""The trainer arguments that do not depend on the objective."""

from typing import Any

import torch
from transformers import TrainingArguments

from components.adapters import ranks
from components.adapters.checkpoints import Checkpoints
from components.adapters.models import pick_precision
from components.adapters.stage import Output
from components.adapters.training.sharding import deepspeed_config, join_alone
from components.core.training import TrainingConfig

# Batches of few different widths: a CPU's kernels are built and kept per shape, and without this the memory of a run
# grew with every new width (measured: 5.7 to 5.0 GiB and 18 % less time a step on two cores, 30 steps).
PAD_MULTIPLE = 64
# How long one process waits for another, s (torch's own, for gloo): one rolls out for longer, or writes a checkpoint.
# What waits for S3 is no part of it: processes tell each other how far they are meanwhile (`together`).
PROCESS_TIMEOUT = 1800

# transformers 5.17, which vLLM up to 0.31 wants, does not know the new name; 5.23 warns of the old one.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def precision_of(config: TrainingConfig, output: Output) -> str:
    """Return bf16 or fp32; what the first attempt measured holds for all later ones."""
    return output.once("precision", lambda: pick_precision(config.precision))


def common_arguments(config: TrainingConfig, checkpoints: Checkpoints, output: Output) -> dict[str, Any]:
    """Return the arguments without batch sizes, learning rate, schedule, max_steps and save_steps.

    Make the trainer's arguments of them before the model is loaded: with zero3 they decide how it is loaded.
    """
    on_gpu, in_bf16 = torch.cuda.is_available(), precision_of(config, output) == "bf16"
    sharding = deepspeed_config(config, on_gpu=on_gpu, in_bf16=in_bf16, num_nodes=ranks.num_nodes())
    if sharding is not None:
        join_alone()
    return {
        "output_dir": str(checkpoints.directory),
        "bf16": in_bf16,
        "use_cpu": not on_gpu,
        "deepspeed": sharding,
        "ddp_find_unused_parameters": False,
        "ddp_timeout": PROCESS_TIMEOUT,
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": config.adam_beta2,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        CHECKPOINTING: config.gradient_checkpointing,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
        "save_strategy": "steps",
        "save_total_limit": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "seed": config.seed,
        "data_seed": config.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "pad_to_multiple_of": PAD_MULTIPLE,
    }
