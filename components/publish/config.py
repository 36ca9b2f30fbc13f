"""Settings of the publish stage."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from components.core.config import StageConfig
from components.core.references import NAME

Judge = Literal["sft", "grpo"]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(StageConfig):
    """Which model is released under which name, and what it must reach; shares are fractions between 0 and 1."""

    kind = "release"

    model_name: str = Field(pattern=rf"^{NAME}$", description="Name in the registry; no /, :, @ or quote.")
    alias: str = Field(
        "champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$", description="Alias of a version that passes."
    )
    judge: Judge = Field("grpo", description="Which of the trained models is released.")
    min_accuracy: float = Field(0.6, ge=0, le=1, description="Least accuracy over both orders; 0.5 is chance.")
    min_strict_accuracy: float = Field(0.0, ge=0, le=1, description="Least share of pairs right in both orders.")
    max_invalid_rate: float = Field(0.05, ge=0, le=1, description="Largest share of judgments without a verdict.")
    min_consistency: float = Field(0.6, ge=0, le=1, description="Least share of pairs judged alike in both orders.")
    max_flip_rate: Share | None = Field(
        0.2, description="Largest share of right verdicts that an attack in the worse answer may turn; off: unchecked."
    )
    margin: Share | None = Field(
        0.02,
        description="Paired against the champion (benchmark.champion): the interval of new - champion lies above"
        " -margin; off: unchecked.",
    )
    suites: dict[str, Share] = Field({}, description="Least score of benchmarks by name, under the protocol 'ours'.")
    promote: bool = Field(True, description="Whether a version that passes gets the alias; false only registers it.")
    licences: dict[str, str] = Field(
        {}, description="Licences for the model card, by the uri of the base model or data, or how that begins."
    )
    num_examples: int = Field(5, ge=0, le=50, description="Judged examples shown in the report.")

    @field_validator("alias")
    @classmethod
    def _is_free(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
            raise ValueError(f"{alias!r} has a meaning of its own in MLflow; choose another alias, such as champion")
        if re.fullmatch(r"challenger|previous(-.*)?", alias):
            raise ValueError(f"{alias!r} is the alias of other versions; choose another one, such as champion")
        return alias

    @field_validator("max_flip_rate", "margin", mode="before")
    @classmethod
    def _can_be_off(cls, rate: Any) -> Any:
        return None if rate == "off" else rate  # TOML has no null
