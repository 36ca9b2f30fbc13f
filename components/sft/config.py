"""Settings of the SFT stage."""

from pydantic import Field

from components.core.training import TrainingConfig


class Config(TrainingConfig):
    """Supervised fine-tuning; defaults from RM-R1's 7B recipe (arXiv 2505.02387, appendix E)."""

    base_model: str = Field(min_length=1, description="A folder, an s3:// uri, or a hub id with @<40-hex revision>.")
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate.")
    min_learning_rate_share: float = Field(0.1, ge=0, le=1, description="Cosine schedule's floor, share of the peak.")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="Share of the steps that warm up linearly.")
    epochs: int = Field(1, ge=1, description="Passes over the examples.")
    batch_size: int = Field(1, ge=1, description="Examples in one forward pass, per device.")
    gradient_accumulation: int = Field(128, ge=1, description="Forward passes per optimizer step.")
    max_length: int = Field(
        12_288, ge=16, description="Longest example in tokens; longer ones are dropped and counted."
    )
