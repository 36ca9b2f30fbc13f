"""Settings that every training stage shares."""

from typing import Literal

from pydantic import Field

from components.core.config import StageConfig

Precision = Literal["auto", "bf16", "fp32"]


class TrainingConfig(StageConfig):
    """How a model is trained, whatever the objective; the defaults are the paper's where it names one."""

    kind = "model"

    precision: Precision = Field("auto", description="Compute type; weights stay fp32. auto: measured once on a CPU.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")
    save_steps: int = Field(50, ge=1, description="Optimizer steps between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the newest checkpoints stay in S3.")
    seed: int = Field(42, ge=0, description="Seed of data order, dropout and sampling.")

    not_in_key = frozenset({"save_steps", "keep_checkpoints"})
