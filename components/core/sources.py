"""Where preference data comes from: settings that the recipe and `prepare` share."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from components.core.schema import Record
from components.core.suites import suite_named

Format = Literal[
    "auto", "pairs", "messages", "code-preference-pairs", "math-step-dpo", "rmb", "rm-r1", "hh-rlhf", "judgments"
]
Cell = str | int | float | bool


def _written(value: Any) -> Any:
    return value.isoformat() if type(value) is date else value


Day = Annotated[str, BeforeValidator(_written), Field(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]
"""A day as YYYY-MM-DD, or nothing; TOML's own dates are taken too."""


class Select(Record):
    """Which rows of a source are read; first `keep` and `drop`, then `sample`."""

    split: str = Field("train", min_length=1)
    """Split of a hub dataset."""
    subset: str = ""
    """Configuration of a hub dataset, where it has several."""
    keep: dict[str, tuple[Cell, ...]] = {}
    """Column -> values: only rows with one of them."""
    drop: dict[str, tuple[Cell, ...]] = {}
    """Column -> values: no rows with one of them."""
    sample: int | None = Field(None, ge=1)
    """Most rows; drawn as `datasets` does it: shuffle(seed), then the first ones."""
    seed: int = Field(42, ge=0)
    """Seed of that draw."""


class SourceSettings(Record):
    """A file, a folder, an S3 prefix or a hub dataset of preference data."""

    uri: str = Field(min_length=1)
    """A file or a folder, on this machine or s3://, or hf://org/name."""
    format: Format = "auto"
    """Layout of the rows; `auto` recognises it by the columns and says in the log which it took."""
    revision: str = Field("", pattern=r"^([0-9a-f]{40})?$")
    """Commit of a hub dataset, 40 hex digits; needed for hf://, and only there."""
    select: Select = Select()
    """Which rows are read."""
    until: Day = ""
    """Files whose path names a later day (as in `dt=2026-11-16/part-0.jsonl`) are left alone; empty: none."""
    weight: float = Field(1.0, gt=0)
    """How readily its pairs are taken where a part has a limit: 2 is twice as likely as 1."""


def _known_suite(name: str) -> str:
    return name if name == "auto" else suite_named(name).name


BenchmarkFormat = Annotated[str, AfterValidator(_known_suite)]


class BenchmarkSettings(Record):
    """A benchmark: its items are not trained on, and the judges are measured on it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    """Its name in reports and metrics."""
    uri: str = Field(min_length=1)
    """A file or a folder, on this machine or s3://, or hf://org/name."""
    format: BenchmarkFormat = "auto"
    """The suite that it is, which says how its rows are read and scored; `auto` recognises it by the columns."""
    revision: str = Field("", pattern=r"^([0-9a-f]{40})?$")
    """Commit of a hub dataset, 40 hex digits."""
    select: Select = Select()
    """Which rows are read."""
    judged: bool = True
    """Whether the benchmark stage judges it; false only keeps its items out of training."""
    max_items: int | None = Field(None, ge=1)
    """Most items that are judged, drawn by a hash of their ids; its score is then marked as partial. null: all."""


def _named(value: Any) -> Any:
    return {"uri": value} if isinstance(value, str) else value


Source = Annotated[SourceSettings, BeforeValidator(_named)]
"""A source; a text alone is its uri."""
