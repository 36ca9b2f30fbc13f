"""Settings of the stage that decides which traces a student learns from."""

from typing import ClassVar

from pydantic import Field

from components.core.config import StageConfig
from components.core.verdict import Grammar


class Config(StageConfig):
    """Settings of `filter`."""

    kind: ClassVar[str] = "examples"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"min_yield", "min_examples"})

    grammar: Grammar = "rubric"
    """The form that a trace must have; the one it was asked for."""
    max_trace_chars: int = Field(30_000, ge=1)
    """Longest trace in characters; loops and rambling go."""
    min_yield: float = Field(0.3, ge=0, le=1)
    """Fraction of the traces that must be left, else the stage stops: the teacher or the grammar is the wrong one."""
    min_examples: int = Field(1, ge=1)
    """Fewest examples that are worth a training run."""
