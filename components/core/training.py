"""Settings that every training stage shares."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.core.config import StageConfig

Precision = Literal["auto", "bf16", "fp32"]
Sharding = Literal["none", "zero2", "zero3"]


class LoraSettings(BaseModel):
    """Low-rank adapters (arXiv 2106.09685): train small matrices beside the frozen weights, merged at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, description="Rank of the two matrices.")
    alpha: int = Field(32, ge=1, description="Their product is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapters' inputs that is dropped.")
    targets: tuple[str, ...] = Field((), description="Names of the layers; empty: all linear layers but the head.")


class TrainingConfig(StageConfig):
    """How a model is trained, whatever the objective; the defaults are the paper's where it names one."""

    kind = "model"

    precision: Precision = Field("auto", description="Compute type; weights stay fp32. auto: measured once on a CPU.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="AdamW's decay of the second moment.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")
    lora: LoraSettings | None = Field(None, description="Train low-rank adapters instead of all weights.")
    sharding: Sharding = Field(
        "none",
        description="DeepSpeed ZeRO: zero2 shards gradients and optimizer over the processes, zero3 the weights too.",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="What ZeRO keeps in host memory: the optimizer, or with zero3 the weights too."
    )
    processes: int | Literal["auto"] = Field(
        "auto", description="Processes on each machine; auto: one a GPU, and one where there is none."
    )
    nodes: int = Field(1, ge=1, description="Machines that train together.")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="Attention kernels; auto: flash_attention_2 where it is installed, else sdpa."
    )
    liger: bool = Field(False, description="Use Liger's fused layers; needs a GPU and the package liger-kernel.")
    save_steps: int = Field(50, ge=1, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the newest checkpoints stay in S3, the best apart.")
    resume_from: str | None = Field(
        None,
        pattern="^s3://",
        description="Checkpoint of earlier code to go on from; settings and data must agree.",
    )
    seed: int = Field(42, ge=0, description="Seed of data order, dropout and sampling.")

    not_in_key = frozenset(
        {
            "save_steps", "keep_checkpoints", "processes", "nodes", "offload", "attention", "liger",
            "gradient_checkpointing",
        }
    )  # fmt: skip

    @model_validator(mode="after")
    def _sharding_goes_together(self) -> Self:
        if isinstance(self.processes, int) and self.processes < 1:
            raise ValueError(f"processes is {self.processes}: give 1 or more, or auto")
        if self.offload != "none" and self.sharding == "none":
            raise ValueError(f"offload is {self.offload!r}, which needs sharding zero2 or zero3")
        if self.offload == "all" and self.sharding != "zero3":
            raise ValueError('offload "all" keeps the weights in host memory, which needs sharding zero3')
        if self.lora is not None and self.sharding == "zero3":
            raise ValueError("lora goes with sharding none or zero2: with so few trained weights zero3 gains nothing")
        return self
