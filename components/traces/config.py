"""Settings of the stage that asks the teacher."""

from typing import ClassVar

from pydantic import Field

from components.core.config import StageConfig
from components.core.teachers import CallLimits, TeacherSettings
from components.core.verdict import Grammar


class Config(StageConfig):
    """Settings of `traces`."""

    kind: ClassVar[str] = "traces"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"calls", "max_failed_fraction", "max_total_tokens"})

    teacher: TeacherSettings
    """Who writes: `{"kind": "recorded", "uri": ...}` or `{"kind": "openai", "base_url": ..., "model": ...}`."""
    calls: CallLimits = CallLimits()
    """How an endpoint is called: key, concurrency, attempts, deadlines."""
    grammar: Grammar = "rubric"
    """The form of a judgment: `rubric` (Chain-of-Rubrics) or `think` (free reasoning, then the verdict)."""
    max_tokens: int = Field(8192, ge=16)
    """Most tokens in one trace."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; null leaves it to the endpoint, as the paper did."""
    shard_size: int = Field(32, ge=1)
    """Pairs whose traces are committed to S3 together."""
    max_failed_fraction: float = Field(0.05, ge=0, le=1)
    """Fraction of the pairs that may end without a trace before the stage stops."""
    max_total_tokens: int | None = Field(None, ge=1)
    """Budget in tokens, read and written, earlier attempts included; null is no limit."""
