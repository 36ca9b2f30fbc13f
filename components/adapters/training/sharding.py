"""DeepSpeed ZeRO: who keeps which part of weights, gradients and optimizer."""

import os
import socket
from typing import Any

from components.adapters import ranks
from components.core.training import TrainingConfig

# Elements that ZeRO-2 reduces or gathers at once on a GPU: buffers of 0.4 GB in bf16.
BUCKET = 200_000_000

_BEFORE: dict[str, str | None] = {}
"""The variables that `join_alone` has set, as they were."""


def deepspeed_config(
    config: TrainingConfig, *, on_gpu: bool, in_bf16: bool = False, num_nodes: int = 1
) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration, or None without sharding; `auto` is filled in by the trainer's arguments.

    With bf16 the engine's weights are bf16; their fp32 masters, the sums of their gradients (fp32 too) and both Adam
    moments are sharded. Without it all is fp32. A step whose gradient is not finite is skipped and flagged by the
    engine, never applied.
    """
    if config.sharding == "none":
        return None
    host = {"device": "cpu", "pin_memory": on_gpu}
    zero: dict[str, Any] = {"stage": 2 if config.sharding == "zero2" else 3, "overlap_comm": on_gpu}
    if config.sharding == "zero2":
        zero["contiguous_gradients"] = True
        zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = BUCKET if on_gpu else "auto"
        if not on_gpu:
            del zero["allgather_bucket_size"]
    else:
        zero["reduce_bucket_size"] = "auto"
        zero["stage3_prefetch_bucket_size"] = "auto"
        zero["stage3_param_persistence_threshold"] = "auto"
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if config.offload != "none":
        zero["offload_optimizer"] = host
    if config.offload == "all":
        zero["offload_param"] = host
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto", "check_grad_overflow": True},
        # Many micro batches are added up: bf16 keeps 8 bits, and a sum of a hundred would lose what the last ones add.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if in_bf16 else {}),
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        # The optimizer is torch's fused AdamW everywhere, so that sharded and whole training agree.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "steps_per_print": 1_000_000_000,  # the numbers of a step go to MLflow
        # Each machine keeps what its own processes write; S3 is where all of it comes together.
        "checkpoint": {"use_node_local_storage": num_nodes > 1},
    }


def join_alone() -> None:
    """Let one process be a group of one: DeepSpeed wants a group, torchrun has started none."""
    if ranks.launched():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _BEFORE.update({name: os.environ.get(name) for name in place})
    os.environ.update(place)


def part_again() -> None:
    """Take back what `join_alone` told this process's environment, where it did: the process has no place any more."""
    for name, value in _BEFORE.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _BEFORE.clear()
