"""The model that is trained, and the adapters that are trained instead of it."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from components.adapters.models import load_model
from components.adapters.stage import Output
from components.adapters.training.arguments import precision_of
from components.adapters.training.memory import memory_explained
from components.core.errors import InvalidInput
from components.core.training import TrainingConfig


def load_trainable(folder: Path, config: TrainingConfig, output: Output) -> Any:
    """Return the model of a folder, to be trained. The trainer's arguments must have been made before.

    Without sharding the weights are fp32 and bf16 means autocast over them, which learns better than bf16 weights.
    Under ZeRO the engine keeps the fp32 masters itself, and weights that LoRA freezes need no more than the bf16 they
    are stored in. Raises InvalidInput when `liger` cannot be had, ReasrmError when the memory does not suffice.
    """
    check_liger(config)
    in_bf16 = precision_of(config, output) == "bf16"
    narrow = in_bf16 and (config.sharding != "none" or config.lora is not None)
    if config.sharding == "zero3":
        from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

        if not is_deepspeed_zero3_enabled():
            raise RuntimeError("the trainer's arguments must exist before the model, or each process loads all of it")
    with memory_explained(config, lambda: "loading the model"):
        model = load_model(
            folder,
            torch.bfloat16 if narrow else torch.float32,
            attention=pick_attention(config.attention, in_bf16),
            place=config.sharding != "zero3",  # there each process has loaded its part, and the engine places it
        )
    if config.liger:
        from transformers.integrations.liger import apply_liger_kernel

        # No fused loss: it would take the place of the head that scores the learned positions only.
        apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    return model


def pick_attention(attention: str, in_bf16: bool) -> str:
    """Return the attention kernels. Raises InvalidInput for flash_attention_2 where it cannot run."""
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    if attention == "auto":
        return "flash_attention_2" if has_flash and in_bf16 else "sdpa"
    if attention == "flash_attention_2" and not has_flash:
        raise InvalidInput(
            "attention is flash_attention_2, which needs a GPU and the package flash-attn; install it, or set "
            'attention to "auto"'
        )
    return attention


def check_liger(config: TrainingConfig) -> None:
    """Raise InvalidInput when Liger's layers are asked for and cannot be had."""
    if not config.liger:
        return
    if not torch.cuda.is_available():
        raise InvalidInput("liger is true, but its kernels run on a GPU and there is none; set liger to false")
    if importlib.util.find_spec("liger_kernel") is None:
        raise InvalidInput("liger is true, but liger-kernel is not installed; install it, or set liger to false")


def peft_config(config: TrainingConfig) -> Any | None:
    """Return the adapters' settings for TRL's `peft_config`, or None to train all weights."""
    if config.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.targets) or "all-linear",  # all but the head
    )
