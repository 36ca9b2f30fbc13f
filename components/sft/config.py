"""Settings of the SFT stage."""

from typing import Self

from pydantic import Field, model_validator

from components.core.errors import InvalidInput
from components.core.references import REFERENCE
from components.core.training import TrainingConfig
from components.sft.schedule import accumulation_steps


class Config(TrainingConfig):
    """Supervised fine-tuning; defaults from RM-R1's 7B recipe (arXiv 2505.02387, appendix E, and its SFT program)."""

    base_model: str = Field(min_length=1, description="A folder, an s3:// uri, or a hub id with @<40-hex revision>.")
    warm_start: str = Field(
        "",
        pattern=REFERENCE,
        description="Registered model (name@champion) or s3:// artifact to start from; while there is none, the base.",
    )
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate.")
    min_learning_rate_share: float = Field(0.1, ge=0, le=1, description="Cosine schedule's floor, share of the peak.")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="Share of the steps that warm up linearly.")
    adam_beta2: float = Field(0.95, gt=0, lt=1, description="AdamW's decay of the second moment.")
    epochs: int = Field(
        1,
        ge=0,
        description="Passes over the examples; each leaves out the rows that fill no batch. 0: hand the base model on.",
    )
    batch_size: int = Field(
        128, ge=1, description="Rows per optimizer step over all processes: examples, or with packing packed rows."
    )
    micro_batch_size: int = Field(1, ge=1, description="Rows in one forward pass, per process.")
    max_length: int = Field(
        12_288, ge=16, description="Longest example in tokens; longer ones are dropped and counted, never cut."
    )
    packing: bool = Field(
        False,
        description="Put several whole examples into one row of up to max_length tokens, unseen by one another: less "
        "padding, more examples per step. batch_size counts such rows.",
    )

    # The rows of a step and their weights are the same; only the order of additions differs.
    not_in_key = TrainingConfig.not_in_key | {"micro_batch_size", "warm_start"}

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        processes = self.nodes * (self.processes if isinstance(self.processes, int) else 1)
        try:
            accumulation_steps(self.batch_size, self.micro_batch_size, processes)
        except InvalidInput as error:
            raise ValueError(str(error)) from error
        return self
