"""A file of schedules: what a user writes, checked before anything is asked of a server."""

import difflib
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.core.errors import InvalidInput
from pipeline.client.schedules.cron import Cron, parse_cron

NAME = r"^[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?$"
MIN_INTERVAL = 60
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_INTERVAL = re.compile(rf"([1-9]\d{{0,6}})([{''.join(_UNITS)}])")
_DAY = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")

PIPELINE = "reasrm"
"""The pipeline that every submission uploads to."""
Version = Literal["pinned", "latest"]


class Schedule(BaseModel):
    """One table of the file: what runs, and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    """Name in Kubeflow's UI and in the commands; small letters, digits and dashes."""
    description: str = Field("", max_length=500)
    """One line for the UI."""
    recipe: str = Field(min_length=1)
    """A recipe's name or a .toml file, as for `reasrm compile`."""
    profile: str = Field("gpu", min_length=1)
    """How the cluster is placed upon, as for `reasrm compile`."""
    settings: tuple[str, ...] = ()
    """Changes to the recipe, written as for --set: sft.epochs=2."""
    cron: str = ""
    """When: six fields, the seconds first (0 0 3 * * mon). Five are read as minute first, as in crontab."""
    interval: str = ""
    """Instead of cron: the time from one run to the next, as 12h, 7d or 2w; counted from `start`."""
    start: datetime | None = None
    """Not before this time."""
    end: datetime | None = None
    """Not after this time."""
    paused: bool = False
    """Keep it, but start no runs."""
    version: Version = "pinned"
    """pinned: the pipeline as it compiles now; latest: at each run the newest version that was uploaded by then, to a
    `pipeline` that only this schedule has. Applying the file makes what it compiles to the newest."""
    pipeline: str = Field(PIPELINE, min_length=1)
    """Name of the pipeline in Kubeflow that versions are uploaded to and taken from."""
    cache: bool = True
    """Whether KFP may take the results of earlier runs; false after artifacts on S3 were deleted."""
    data_until: str = "schedule"
    """Last day of dated preference data: schedule (the day of the run's slot), a day as 2026-11-30, or empty: all."""
    no_catchup: bool = True
    """After a pause start one run at most, not one for each slot that was missed."""
    max_concurrency: int = Field(1, ge=1, le=10)
    """Runs of this schedule at the same time."""
    experiment: str = ""
    """Experiment of Kubeflow's UI; empty: the recipe's."""
    service_account: str = ""
    """Account of the pods; empty: the profile's."""
    mlflow_experiment: str | None = None
    """Experiment for the MLflow plugin of KFP (2.17 and later); not given: the recipe's; empty: the plugin's own."""

    @field_validator("data_until")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        if value not in ("", "schedule") and not _DAY.fullmatch(value):
            raise ValueError(f'{value!r} is neither "schedule" nor a day as 2026-11-30, nor empty')
        return value

    @field_validator("start", "end")
    @classmethod
    def _has_a_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; write {value.isoformat()}Z for UTC")
        return value

    @model_validator(mode="after")
    def _has_one_trigger(self) -> Self:
        if bool(self.cron) == bool(self.interval):
            raise ValueError('give either cron (as "0 0 3 * * mon") or interval (as "7d")')
        if self.cron:
            self.when()
        else:
            self.interval_seconds()
        if self.start and self.end and self.end <= self.start:
            raise ValueError(f"end {self.end.isoformat()} is not after start {self.start.isoformat()}")
        return self

    @model_validator(mode="after")
    def _latest_has_a_pipeline(self) -> Self:
        if self.version == "latest" and self.pipeline == PIPELINE:
            raise ValueError(
                f'version = "latest" runs whatever was uploaded last, and to {PIPELINE!r} everybody uploads; give it a '
                f'pipeline of its own: pipeline = "{PIPELINE}-{self.name}"'
            )
        return self

    def when(self) -> Cron | None:
        """Return the cron expression as it is sent; None with an interval. Raises ValueError."""
        return parse_cron(self.cron) if self.cron else None

    def interval_seconds(self) -> int:
        """Return the interval; 0 with a cron expression. Raises ValueError."""
        if not self.interval:
            return 0
        found = _INTERVAL.fullmatch(self.interval)
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0
        if seconds < MIN_INTERVAL:
            raise ValueError(f"interval {self.interval!r}: write a number and s, m, h, d or w, as 7d; at least 1m")
        return seconds

    def remarks(self) -> tuple[str, ...]:
        """Return what a reader may have meant otherwise."""
        cron = self.when()
        if cron is None or len(self.cron.split()) != 5:
            return ()
        return (f"{self.name}: cron {self.cron!r} is read as minute first and sent as {cron.expression!r}",)


class ScheduleFile(BaseModel):
    """All of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str = Field("", pattern=r"^([a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?)?$")
    """Keeps the schedules of several files in one namespace apart: --prune deletes those of this group only."""
    schedule: tuple[Schedule, ...] = ()
    """The schedules, each as [[schedule]]."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [schedule.name for schedule in self.schedule]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {', '.join(twice)} is given twice")
        return self

    @model_validator(mode="after")
    def _latest_is_nobody_elses(self) -> Self:
        pipelines = [schedule.pipeline for schedule in self.schedule]
        for one in self.schedule:
            if one.version == "latest" and pipelines.count(one.pipeline) > 1:
                raise ValueError(
                    f'schedule {one.name}: version = "latest" runs whatever was uploaded last to {one.pipeline!r}, and '
                    "another schedule uploads there too; give each a pipeline of its own"
                )
        return self


def load_schedules(path: Path) -> ScheduleFile:
    """Read a file of schedules. Raises InvalidInput naming all that is wrong in it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}; give the file with --file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    try:
        return ScheduleFile.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(f"{path}: {'; '.join(_explain(error, values))}") from error


def _explain(error: ValidationError, values: dict[str, Any]) -> list[str]:
    lines = []
    for one in error.errors(include_url=False):
        place = list(one["loc"])
        if one["type"] == "extra_forbidden":
            known = Schedule.model_fields if len(place) > 1 else ScheduleFile.model_fields
            close = difflib.get_close_matches(str(place[-1]), known, n=1)
            message = f"there is no such setting{f'; did you mean {close[0]}?' if close else ''}"
        else:
            message = str(one["msg"]).removeprefix("Value error, ")
        lines.append(f"{_where(place, values)}: {message}" if place else message)
    return lines


def _where(place: list[Any], values: dict[str, Any]) -> str:
    """Return a place with the schedule's name instead of its number, where it has one."""
    if len(place) < 2 or place[0] != "schedule" or not isinstance(place[1], int):
        return ".".join(map(str, place))
    table = values["schedule"][place[1]]
    name = table.get("name") if isinstance(table, dict) else None
    return ".".join([f"schedule {name or place[1] + 1}", *map(str, place[2:])])
