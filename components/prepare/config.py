"""Settings of the stage that reads preference pairs and splits them."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from components.core.config import StageConfig

Source = Annotated[str, Field(pattern=r"^.+\.(jsonl|jsonl\.gz|parquet)$")]


class Config(StageConfig):
    """Settings of `prepare`; the shares are of prompts, so all pairs of one prompt fall into the same part."""

    kind: ClassVar[str] = "pairs"

    sources: tuple[Source, ...] = Field(min_length=1)
    """Files of preference pairs: local paths or s3:// uris ending in .jsonl, .jsonl.gz or .parquet."""
    exclude_sources: tuple[str, ...] = ()
    """Values of the column `source` whose rows are dropped."""
    distil_share: float = Field(0.12, gt=0, lt=1)
    """Fraction of the prompts that the teacher writes traces for (12 % in arXiv 2505.02387)."""
    heldout_share: float = Field(0.02, gt=0, lt=1)
    """Fraction of the prompts kept away from training; the rest goes to reinforcement learning."""
    max_distil: int | None = Field(None, ge=1)
    """Most pairs in `distil`; a seeded sample of all sources is kept."""
    max_rl: int | None = Field(None, ge=1)
    """Most pairs in `rl`; a seeded sample of all sources is kept."""
    max_heldout: int | None = Field(None, ge=1)
    """Most pairs in `heldout`, each of which becomes two rows."""
    max_chars: int = Field(40_000, ge=1)
    """Longest pair in characters, prompt and both answers together; longer ones are dropped, never cut."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Fraction of the rows that may be unusable before the stage stops; ties and duplicates do not count."""
    seed: int = Field(0, ge=0)
    """Seed of the split, of the order of the pairs and of which answer is shown first."""

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.distil_share + self.heldout_share >= 1:
            raise ValueError("distil_share and heldout_share must leave something for rl: their sum must be under 1")
        return self
