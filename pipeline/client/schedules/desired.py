"""What a schedule of the file comes to: the pipeline that it runs, with which parameters, under which mark."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from components.core.errors import InvalidInput
from pipeline.client.schedules.model import Schedule, ScheduleFile

HASH_LENGTH = 12
NOT_SHOWN = ("content", "start")
"""Fields that a plan shows and a recurring run does not have: they are kept in its description."""
_KEPT = re.compile(rf"\b({'|'.join(NOT_SHOWN)})=(\S+)")


@dataclass(frozen=True)
class Desired:
    """A recurring run as it should be."""

    name: str
    group: str
    enabled: bool
    fields: Mapping[str, Any]
    """Whatever makes two schedules differ, flat; what a plan compares and shows."""
    parameters: Mapping[str, Any]
    schedule: Schedule
    package: bytes = field(repr=False)
    """The compiled pipeline: the version that is pinned, or that has to be the newest."""

    @property
    def latest(self) -> bool:
        """Whether runs take the newest version of the pipeline."""
        return self.schedule.version == "latest"

    @property
    def hash(self) -> str:
        """Return what changes with any field and any parameter."""
        text = json.dumps({**self.fields, "parameters": self.parameters}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]

    @property
    def description(self) -> str:
        """Return the description in the UI: the user's line, what the server does not show, and the mark."""
        kept = [f"{name}={self.fields[name]}" for name in NOT_SHOWN if self.fields[name]]
        made = "Made by `reasrm schedule`: change it in its file, not here."
        return "\n".join([self.fields["description"], " ".join([made, *kept]), mark(self.group, self.name, self.hash)])


def mark(group: str, name: str, digest: str) -> str:
    """Return the line by which a recurring run is known as ours."""
    return f"reasrm:{f'{group}/' if group else ''}{name}:{digest}"


def read_description(text: str) -> tuple[str, dict[str, str]]:
    """Return the user's line of a description, and the fields that are kept in it."""
    said, _, rest = text.partition("\n")
    kept = dict(_KEPT.findall(rest))
    return said, {name: kept.get(name, "") for name in NOT_SHOWN}


def desired(schedules: ScheduleFile, folder: Path) -> tuple[Desired, ...]:
    """Compile all schedules of a file in this folder; recipes and profiles given as files may lie beside it.

    Raises InvalidInput naming the schedule whose recipe or profile is wrong.
    """
    return tuple(_desired(schedule, schedules.group, folder) for schedule in schedules.schedule)


def _desired(schedule: Schedule, group: str, folder: Path) -> Desired:
    from pipeline.client.submit import check_places
    from pipeline.compiler import arguments_for, compile_pipeline
    from pipeline.config import load_recipe
    from pipeline.profile import load_profile

    try:
        config = load_recipe(_beside(folder, schedule.recipe), schedule.settings)
        profile = load_profile(_beside(folder, schedule.profile))
        check_places(config)
        package = compile_pipeline(config, profile, redo=not schedule.cache)
    except InvalidInput as error:
        raise InvalidInput(f"schedule {schedule.name}: {error}") from error
    parameters = arguments_for(config, profile) | {"data_until": schedule.data_until}
    mlflow = schedule.mlflow_experiment
    return describe(
        schedule,
        group,
        package=package,
        parameters=parameters,
        experiment=schedule.experiment or config.experiment,
        service_account=schedule.service_account or profile.service_account,
        mlflow_experiment=config.experiment if mlflow is None else mlflow,
    )


def _beside(folder: Path, name: str) -> str:
    file = folder / name
    return str(file) if name.endswith(".toml") and file.is_file() else name


def describe(
    schedule: Schedule,
    group: str,
    *,
    package: bytes,
    parameters: Mapping[str, Any],
    experiment: str,
    service_account: str,
    mlflow_experiment: str,
) -> Desired:
    """Put together what a schedule comes to. Raises InvalidInput if its parameters are more than KFP takes."""
    from pipeline.config import MAX_PARAMETER_BYTES

    size = len(json.dumps(parameters, ensure_ascii=False).encode())
    if size > MAX_PARAMETER_BYTES:
        raise InvalidInput(
            f"schedule {schedule.name}: its parameters take {size} bytes, KFP allows {MAX_PARAMETER_BYTES}; shorten "
            "the lists of the recipe"
        )
    cron = schedule.when()
    pinned = schedule.version == "pinned"
    return Desired(
        name=schedule.name,
        group=group,
        enabled=not schedule.paused,
        fields={
            "cron": cron.expression if cron else "",
            "interval": schedule.interval_seconds(),
            "start": _time(schedule.start),
            "end": _time(schedule.end),
            "pipeline": schedule.pipeline,
            "version": schedule.version,
            "content": hashlib.sha256(package).hexdigest()[:HASH_LENGTH] if pinned else "",
            "no_catchup": schedule.no_catchup,
            "max_concurrency": schedule.max_concurrency,
            "experiment": experiment,
            "service_account": service_account,
            "mlflow_experiment": mlflow_experiment,
            "description": " ".join(schedule.description.split()) or f"Recipe {schedule.recipe}",
        },
        parameters=parameters,
        schedule=schedule,
        package=package,
    )


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


def start_to_send(schedule: Schedule, now: datetime) -> datetime | None:
    """Return the start that makes KFP run at the next slot, and not at once for one that has passed.

    Its controller counts from the start, or else from the creation; with no_catchup the last slot between that time and
    now is run at once, which after a replacement would be run twice. So a start that has passed is left out, and for an
    interval it becomes the last slot up to now: the first run comes one interval after it.
    """
    if schedule.start is None:
        return None
    start, now = schedule.start.astimezone(UTC), now.astimezone(UTC)
    if start > now:
        return start
    if not schedule.interval:
        return None
    interval = timedelta(seconds=schedule.interval_seconds())
    return start + (now - start) // interval * interval


def next_run(schedule: Schedule, now: datetime) -> datetime | None:
    """Return when the next slot is, as far as that is known here: an interval without a start counts from creation."""
    after = max(now, schedule.start) if schedule.start else now
    cron = schedule.when()
    if cron:
        found = cron.next(after - timedelta(seconds=1) if schedule.start == after else after)
    else:
        begin = start_to_send(schedule, now)
        found = begin + timedelta(seconds=schedule.interval_seconds()) if begin else None
    return None if found is None or (schedule.end and found > schedule.end) else found
