"""Settings of the benchmark stage."""

from pydantic import Field

from components.core.config import StageConfig
from components.core.training import Precision
from components.core.verdict import Grammar


class Config(StageConfig):
    """Judging held-out pairs with the base, SFT and GRPO models side by side."""

    kind = "scores"

    base_model: str = Field(min_length=1, description="The model that SFT started from: folder, s3:// uri or hub id.")
    grammar: Grammar = Field("rubric", description="Form of the judgment that the prompt asks for.")
    max_tokens: int = Field(8192, ge=8, description="Longest judgment in tokens; a longer one counts as truncated.")
    batch_size: int = Field(32, ge=1, description="Judgments generated at once.")
    shard_size: int = Field(64, ge=1, description="Judgments per committed shard; what a crash can cost at most.")
    precision: Precision = Field("auto", description="Compute type of the judges. auto: measured once on a CPU.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of the intervals.")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples for scores clustered by pair.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
