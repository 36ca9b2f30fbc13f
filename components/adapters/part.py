"""A part of a stage's work, done by a task of its own beside other parts.

A part does its share of the work in progress under the run key and the S3 prefix of the whole work, and commits no
artifact. The stage comes after the parts, finds what they did, does what is missing, and commits. So nothing depends on
a part: one that fails, is lost or runs twice costs time, and its result is the same.

A stage has parts if there is a module `components/<stage>/part.py` with

    nothing_to_do(settings) -> str                        why the stage needs no parts, "" if it does
    run_part(settings, inputs, output, share) -> str      the work; returns a line of numbers
"""

import dataclasses
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from components.adapters import ranks
from components.adapters.entry import kfp_task, parse_settings, read_manifest, run_id_of
from components.adapters.progress import Progress
from components.adapters.stage import (
    COPIES,
    RUN_NAME_VARIABLE,
    Stopped,
    check_content,
    describe_work,
    exclusive,
    load_config,
    name_work,
    stopping_cleanly,
    tracked,
)
from components.adapters.untold import Shelf
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest
from components.core.redact import redact
from components.core.teachers import CallLimits

logger = logging.getLogger(__name__)

PART = "-part-"
"""What in the name of a part's working folder stands behind that of the whole."""

_PART = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Share:
    """Which pieces of a work are done: those of part `number` of `count`, from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "2/4", the second of four. Raises InvalidInput when it is not such a text."""
        found = _PART.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise InvalidInput(f'{text!r} is not a part; write "2/4" for the second of four')
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this is everything."""
        return self.count == 1

    def takes(self, place: int) -> bool:
        """Tell whether the piece at this place, from 0, is in the share; neighbours are in different ones."""
        return place % self.count == self.number - 1

    def limited(self, calls: CallLimits, max_tokens: int, who: str) -> CallLimits:
        """Return how a part calls an endpoint: all parts together keep to its rates.

        Raises InvalidInput when the tokens a minute are too few for one answer of `max_tokens` in each part.
        """
        requests, tokens = calls.requests_per_minute, calls.tokens_per_minute
        if tokens is not None and tokens // self.count < max_tokens:
            raise InvalidInput(
                f"{who} may take {tokens} tokens a minute, which is under {max_tokens} for each of {self.count} parts; "
                f"take at most {max(1, tokens // max_tokens)} parts, lower max_tokens, or raise tokens_per_minute"
            )
        limits = {
            "requests_per_minute": None if requests is None else requests / self.count,
            "tokens_per_minute": None if tokens is None else tokens // self.count,
        }
        return calls.model_copy(update=limits)


WHOLE = Share()


def run_component_part(
    stage: str,
    part: str,
    config: str,
    inputs: Mapping[str, Any],
    *,
    artifact_root: str,
    experiment: str,
    overrides: Mapping[str, Any] | None = None,
    json_overrides: Mapping[str, str] | None = None,
    content: str = "",
) -> str:
    """Run a part of a stage as a KFP task; the arguments are those of `run_component`.

    What it returns says nothing of how it went: it becomes an input of the stage, whose place in KFP's cache must not
    depend on that. Ends the process with the error's exit code on failure.
    """
    with kfp_task(_task_name(stage, part)):
        if Share.parse(part).is_whole:
            return f"{stage} {part}"
        settings = parse_settings(stage, config, overrides, json_overrides)
        parents = {name: read_manifest(Path(artifact.path)) for name, artifact in inputs.items()}
        ranks.forget_strays()
        with stopping_cleanly():
            summary = run_part(
                stage,
                settings,
                parents,
                part,
                artifact_root=artifact_root,
                experiment=experiment,
                run_id=run_id_of(""),  # A part has no output that would lie below the run's id.
                run_name=os.environ.get(RUN_NAME_VARIABLE, ""),
                content=content,
            )
        logger.info("%s %s: %s", stage, part, summary)
    return f"{stage} {part}"


def run_part(
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Manifest],
    part: str,
    *,
    artifact_root: str,
    experiment: str,
    run_id: str,
    run_name: str = "",
    content: str = "",
) -> str:
    """Do a part ("2/4") of a stage's work and return a line that says what was done.

    There is nothing to do where the part is the whole, or the whole is committed.

    Raises:
        InvalidInput: the part, the configuration, an input or the set-up has to be changed.
        Transient: S3 or a teacher is not there for now, or the process was asked to stop; what was done is kept.
    """
    share = Share.parse(part)
    if share.is_whole:
        return "the stage does all of it"
    work_of = _module(stage)
    settings = load_config(stage, config)
    reason: str = work_of.nothing_to_do(settings)
    if reason:
        return reason
    progress = Progress(_task_name(stage, part))
    try:
        work = name_work(stage, settings, inputs, artifact_root)
        check_content(work, content)
        work = dataclasses.replace(work, workdir=part_workdir(work.workdir, share))
        named = f"{stage} {share}"
        shelf = Shelf.of(work.storage, artifact_root, run_id, work.workdir)
        with exclusive(work.workdir), tracked(run_id, run_name, named, experiment, work.workdir, shelf) as tracking:
            describe_work(work, tracking)
            tracking.set_tags({"reasrm.part": str(share), "reasrm.part_of": stage})
            if work.committed() is not None:
                summary = "the stage is done already"
            else:
                summary = work_of.run_part(settings, *work.places(work.workdir / "output", tracking, progress), share)
        work.clear((*COPIES, "output"))
        progress.end("done", summary)
        return summary
    except BaseException as error:
        kind = Transient if isinstance(error, Stopped) else type(error)
        progress.end("failed", redact(str(error)) or kind.__name__, error=kind.__name__)
        raise


def part_workdir(workdir: Path, share: Share) -> Path:
    """Return the working folder of a part, beside that of the whole."""
    return workdir.with_name(f"{workdir.name}{PART}{share.number}-of-{share.count}")


def workdirs_beside(workdir: Path) -> list[Path]:
    """Return the working folders of the same work on this disk, of its parts or of the whole, but for this one."""
    whole = workdir.name.partition(PART)[0]
    found = (workdir.with_name(whole), *workdir.parent.glob(f"{whole}{PART}*"))
    return sorted(folder for folder in found if folder != workdir and folder.is_dir())


def _module(stage: str) -> Any:
    name = f"components.{stage}.part"
    if importlib.util.find_spec(name) is None:
        raise InvalidInput(f"{stage} cannot be done in parts; run the stage alone")
    return importlib.import_module(name)


def _task_name(stage: str, part: str) -> str:
    """Return what a part's log and status are called; a part that is the whole writes to the stage's log."""
    return stage if part == "1/1" else f"{stage}-{re.sub('[^0-9]+', '-of-', part)}"
