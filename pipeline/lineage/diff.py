"""Compare two model versions: the data, the settings, the code, the teacher, the scores."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.adapters import tracking
from components.adapters.origin import OF_STAGE
from components.adapters.storage import Storage
from components.core.errors import InvalidInput, ReasrmError
from components.core.manifest import SINCE, STAGES, WARM_START, Manifest, Parent, earlier_of
from components.core.redact import redact
from pipeline.lineage.difference import Change, Difference, Score
from pipeline.lineage.pairs import HELDOUT, compare_data, read_pairs
from pipeline.lineage.scores import compare_judges, read_judge
from pipeline.lineage.walk import LineageNode, artifacts, sources_of

JUDGING = ("votes", "temperature", "max_tokens", "grammar", "engine", "precision")
"""Settings of the benchmark under which numbers can be compared only if they are equal."""
TEACHER = ("teachers", "traces", "right", "failed", "prompt_tokens", "completion_tokens", "cost")
ORIGIN = {*OF_STAGE.values(), "reasrm.uncommitted"}
"""Tags of what made a stage's work beside its settings and its code."""
MEASURES = ("accuracy", "strict_accuracy", "valid_rate", "position_consistency")
GOES_ON = {("prepare", "since"), ("sft", "warm_start")}
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """One of the two versions: its artifacts by stage, and their MLflow runs."""

    name: str
    manifests: Mapping[str, Manifest]
    runs: Mapping[str, str]

    @property
    def judge(self) -> str:
        """What the benchmark calls the version's model."""
        publish = self.manifests.get("publish")
        named = str(publish.config.get("judge", "")) if publish else ""
        return named or ("grpo" if "grpo" in self.manifests else "sft")


def side_of(tree: LineageNode, storage: Storage) -> Side:
    """Return what is behind a version; of two artifacts of a stage the nearer one is the version's own.

    What it went on from is of an earlier run, and no work of its own.

    Raises InvalidInput if none of the artifacts is there any more.
    """
    manifests: dict[str, Manifest] = {}
    runs: dict[str, str] = {}
    for node in _nearest_first(tree):
        if node.is_artifact and node.stage and node.stage not in manifests:
            manifest = storage.open(node.uri)
            if manifest is not None:
                manifests[node.stage] = manifest
                runs[node.stage] = node.mlflow_run_id or ""
    if not manifests:
        raise InvalidInput(f"nothing is left of what {tree.name} was made from ({len(artifacts(tree))} artifacts gone)")
    return Side(tree.name, manifests, runs)


def _nearest_first(tree: LineageNode) -> Iterator[LineageNode]:
    level = [tree]
    while level:
        yield from level
        level = [parent for node in level for parent in node.parents if not parent.earlier]


def diff(old: LineageNode, new: LineageNode, storage: Storage, step: OnStep = lambda what: None) -> Difference:
    """Return what changed from one version to another. `step` is told what is being compared.

    Raises InvalidInput, Transient or Damaged if something that is there cannot be read.
    """
    first, second = side_of(old, storage), side_of(new, storage)
    both = [stage for stage in STAGES if stage in first.manifests and stage in second.manifests]
    same = tuple(stage for stage in both if first.manifests[stage].digest == second.manifests[stage].digest)
    notes = [
        f"{side.name} has no artifact of {', '.join(missing)}; what they say is not compared"
        for side in (first, second)
        if (missing := [stage for stage in STAGES if stage not in side.manifests and stage != "publish"])
    ]
    notes += _going_on(first, second)
    found: dict[str, Any] = {}
    if "prepare" in both:
        with tempfile.TemporaryDirectory(prefix="reasrm-diff-") as scratch:
            found, more = _by_pairs(first, second, storage, Path(scratch), step)
        notes += more
    step("runs")
    if "benchmark" in both:
        notes += _judging_notes(first.manifests["benchmark"], second.manifests["benchmark"])
        found["scores"] = tuple(_scores(first, second))
    return Difference(
        old=first.name,
        new=second.name,
        same_stages=same,
        started=tuple(changes(_started(first, second), _started(second, first))),
        sources=tuple(_sources(first, second)),
        config=tuple(
            change
            for stage in both
            for change in changes(dotted(_settings(first, stage)), dotted(_settings(second, stage)), f"{stage}.")
        ),
        code=tuple(
            changes(
                {stage: first.manifests[stage].code_version for stage in both},
                {stage: second.manifests[stage].code_version for stage in both},
            )
        ),
        environment=tuple(_environment(first, second, both, notes)),
        teacher=tuple(_teacher(first, second)),
        notes=tuple(notes),
        **found,
    )


def _by_pairs(
    first: Side, second: Side, storage: Storage, scratch: Path, step: OnStep
) -> tuple[dict[str, Any], list[str]]:
    """Return what the two sets of pairs, and the judges on them, differ in; and notes."""
    step("pairs")
    old, new = (read_pairs(side.manifests["prepare"], storage, scratch) for side in (first, second))
    data, moved = compare_data(old, new)
    notes = []
    if leaked := sum(len(move.ids) for move in moved if move.old != HELDOUT and move.new == HELDOUT):
        notes.append(
            f"{leaked} pairs that {second.name} holds out were training data of {first.name}: they are left out of the "
            "paired comparison, but not of its own scores"
        )
    found: dict[str, Any] = {"data": data, "moved": moved}
    if "benchmark" in first.manifests and "benchmark" in second.manifests:
        step("verdicts")
        by_old, by_new = (
            read_judge(side.manifests["benchmark"], side.judge, storage, scratch) for side in (first, second)
        )
        found["paired"] = compare_judges(old, new, by_old, by_new)
        if found["paired"] is None:
            notes.append("no held-out pair was judged for both versions; there is no paired comparison")
    return found, notes


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level: `teacher.0.model` -> value."""
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and value:
        items = enumerate(value)
    else:
        return {prefix.removesuffix("."): redact(value) if isinstance(value, str) else value}
    return {name: leaf for key, inner in items for name, leaf in dotted(inner, f"{prefix}{key}.").items()}


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    """Yield what differs; None stands for what is not there."""
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Change(f"{prefix}{name}", old.get(name), new.get(name))


def _settings(side: Side, stage: str) -> Mapping[str, Any]:
    """Return a stage's settings; what it goes on from stands apart, by what was found there."""
    return {name: value for name, value in side.manifests[stage].config.items() if (stage, name) not in GOES_ON}


def _started(side: Side, other: Side) -> dict[str, str]:
    """Return what a side went on from, with the other side's name if it is of that."""
    return {
        f"{stage}: {name}": f"{parent.uri} of {other.name}" if _is_of(parent, other) else parent.uri
        for stage, manifest in side.manifests.items()
        for name, parent in earlier_of(manifest).items()
    }


def _is_of(parent: Parent, side: Side) -> bool:
    return any(parent == Parent(uri=made.uri, digest=made.digest) for made in side.manifests.values())


def _going_on(old: Side, new: Side) -> Iterator[str]:
    """Yield what it means for pairs that went out if one version went on from the other."""
    sft, prepare = new.manifests.get("sft"), new.manifests.get("prepare")
    warm = earlier_of(sft).get(WARM_START) if sft else None
    starts = warm is not None and _is_of(warm, old)
    since = prepare.statistics.get("since") if prepare and SINCE in earlier_of(prepare) else None
    if prepare and isinstance(since, dict) and _is_of(earlier_of(prepare)[SINCE], old):
        counts = [sum(_numbers(since.get(name), "distil", "rl")) for name in ("new", "replayed")]
        learned = (
            f"what went out was learned by the model of {old.name}, from which it starts"
            if starts
            else f"it does not start from the model of {old.name}, so it has not learned what went out"
        )
        yield (
            f"{new.name} goes on from {old.name}: {counts[0]} of the pairs to train on are new since then, {counts[1]} "
            f"are taken again; {learned}"
        )
    elif starts:
        yield f"{new.name} starts from the model of {old.name}; its pairs were not chosen by what that one has seen"


def _numbers(values: Any, *names: str) -> Iterator[int]:
    yield from (value for name in names if isinstance(value := _at(values).get(name), int))


def _sources(first: Side, second: Side) -> Iterator[Change]:
    """Yield data and models from elsewhere that were read with another content, by stage and uri."""
    found: list[dict[str, Any]] = []
    for side in (first, second):
        read: dict[str, Any] = {}
        for stage, manifest in side.manifests.items():
            for source in sources_of(manifest):
                read[f"{stage}: {redact(source.uri)}"] = source.digest or None
        found.append(read)
    yield from changes(found[0], found[1])


def _teacher(first: Side, second: Side) -> Iterator[Change]:
    found = []
    for side in (first, second):
        manifest = side.manifests.get("traces")
        statistics = manifest.statistics if manifest else {}
        found.append(dotted({name: statistics.get(name) for name in TEACHER}))
    yield from changes(found[0], found[1])


def _environment(first: Side, second: Side, stages: list[str], notes: list[str]) -> Iterator[Change]:
    """Yield what MLflow knows of the runs and manifests do not: images, commits, versions of the pipeline."""
    try:
        for stage in stages:
            if first.manifests[stage].digest == second.manifests[stage].digest:
                continue  # the very same work
            tags = []
            for side in (first, second):
                run = side.runs.get(stage, "")
                known = tracking.run_tags(run) if run else None
                tags.append({name: value for name, value in (known or {}).items() if name in ORIGIN})
            yield from changes(tags[0], tags[1], f"{stage}.")
    except ReasrmError as error:
        notes.append(f"images and commits are not compared: {error}")


def _judging_notes(old: Manifest, new: Manifest) -> list[str]:
    differ = [name for name in JUDGING if old.config.get(name) != new.config.get(name)]
    return (
        [f"the benchmarks judged with other settings ({', '.join(differ)}); scores compare with care"] if differ else []
    )


def _scores(first: Side, second: Side) -> Iterator[Score]:
    """Yield the measures on each side's own held-out pairs, then the suites' scores."""
    found = []
    for side in (first, second):
        statistics, values = side.manifests["benchmark"].statistics, dict[str, tuple[float, ...]]()
        measured = _at(statistics, "scores", side.judge)
        for name in MEASURES:
            rate = measured.get(name)
            if isinstance(rate, Mapping):
                values[f"held-out {name.replace('_', ' ')}"] = tuple(rate[key] for key in ("value", "low", "high"))
        for suite, judges in _at(statistics, "suites").items():
            for protocol, value in _at(judges, side.judge).items():
                values[f"{suite} ({protocol})"] = (float(value),)
        found.append(values)
    for name in dict.fromkeys([*found[0], *found[1]]):
        yield Score(name, found[0].get(name), found[1].get(name))


def _at(values: Any, *path: str) -> Mapping[str, Any]:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}
