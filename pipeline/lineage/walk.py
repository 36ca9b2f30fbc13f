"""Walk from a model back to the preference data it learned from: model, benchmark, training, traces, pairs.

The manifests in the object store are the truth: each names its parents and the digest that was read. MLflow only
helps to find the start (a registered version, a run) and to name the run behind each manifest.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from components.adapters import tracking
from components.core.errors import Damaged, InvalidInput, ReasrmError
from components.core.manifest import MANIFEST_NAME, Manifest, Parent

logger = logging.getLogger(__name__)
T = TypeVar("T")

REGISTRY, RUN, SOURCE = "registry", "run", "source"
"""What a node can be beside the artifact of a stage: a registered version, a pipeline run, data from elsewhere."""
STAGES = ("prepare", "traces", "filter", "sft", "grpo", "benchmark", "publish")
GONE = "there is no manifest here any more"
NUM_LEVELS = 3
"""How far below its artifact a file may lie for its uri to be understood: model/tokenizer/x.json."""
_MLFLOW_RUN_ID = re.compile(r"[0-9a-f]{32}")
_LOGGED_MODEL = re.compile(r"m-[0-9a-f]{32}")
_KFP_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))?")


class Manifests(Protocol):
    """Where manifests are read; the storage adapter is one."""

    def open(self, uri: str) -> Manifest | None:
        """Return the manifest at a uri, or None if there is none."""
        ...


@dataclass(frozen=True)
class LineageNode:
    """One artifact with what it was made from, or (`descendants`) what was made from it.

    `stage` is empty where it is not known, `repeated`: shown in full above.
    """

    name: str
    stage: str
    uri: str
    digest: str
    run_key: str = ""
    mlflow_run_id: str | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    repeated: bool = False
    parents: tuple["LineageNode", ...] = ()
    children: tuple["LineageNode", ...] = ()

    @property
    def is_artifact(self) -> bool:
        """Whether a manifest of ours describes it, or should."""
        return self.stage not in {REGISTRY, RUN} and self.name != SOURCE

    def walk(self) -> Iterator["LineageNode"]:
        """Yield this node and all behind it, each with what is repeated."""
        yield self
        for node in (*self.parents, *self.children):
            yield from node.walk()


def chain(reference: str, storage: Manifests, *, find_run: Callable[[str], str | None] | None = None) -> LineageNode:
    """Return the tree behind a registered version, an artifact's uri, an MLflow run or a pipeline run.

    A version is `name`, `name/3` or `name@champion`; a name alone is its newest version. A uri may be that of a file
    in the artifact. A pipeline run is named by KFP's id of it, or on one machine by its folder's name.
    Raises InvalidInput if there is no such thing, Transient if MLflow is needed and does not answer.
    """
    walk = _Walk(storage, find_run or run_finder())
    if "://" in reference:
        return _start(walk, reference)
    if _LOGGED_MODEL.fullmatch(reference):
        model = tracking.find_logged_model(reference)
        if model is None or not model.uri:
            raise InvalidInput(f"MLflow has no logged model {reference} of this pipeline; check the id")
        return _start(walk, model.uri)
    if _MLFLOW_RUN_ID.fullmatch(reference):
        return _from_mlflow(walk, reference)
    if _KFP_RUN_ID.fullmatch(reference):
        if (found := _from_run(walk, reference)) is None:
            raise InvalidInput(
                f"no stage of run {reference} has told MLflow of an artifact; check the id, or see reasrm status"
            )
        return found
    return _from_version(walk, reference)


def artifacts(tree: LineageNode) -> list[LineageNode]:
    """Return each artifact of a tree once, in the tree's order; what is described in full goes before a mention."""
    found: dict[str, LineageNode] = {}
    for node in tree.walk():
        if node.is_artifact and (node.uri not in found or (found[node.uri].repeated and not node.repeated)):
            found[node.uri] = node
    return list(found.values())


def _start(walk: "_Walk", reference: str) -> LineageNode:
    """Return the node of the artifact at a uri, or of the one that the file with this uri belongs to."""
    asked = uri = reference.removesuffix(f"/{MANIFEST_NAME}").rstrip("/")
    bucket = "/".join(uri.split("/")[:3])
    for _ in range(NUM_LEVELS + 1):
        manifest = walk.storage.open(uri) if uri.startswith(f"{bucket}/") else None
        if manifest is not None:
            return walk.node(manifest.stage, Parent(uri=uri, digest=""), ())
        uri = uri.rpartition("/")[0]
    raise InvalidInput(f"{reference}: there is no manifest at {asked}; check the name, or whether the stage finished")


def _from_mlflow(walk: "_Walk", run: str) -> LineageNode:
    tags = tracking.run_tags(run)
    if tags is None:
        raise InvalidInput(f"MLflow has no run {run}; check the id and MLFLOW_TRACKING_URI")
    if uri := tags.get("reasrm.output_uri"):
        return _start(walk, uri)
    found = _from_outputs(walk, tracking.find_outputs(run, tag="mlflow.parentRunId"))
    if found is None:
        raise InvalidInput(f"MLflow run {run} has made no artifact; name a run of a stage that finished")
    name = tags.get("reasrm.run_id") or tags.get("mlflow.runName") or run
    return replace(found, name=name, mlflow_run_id=run)


def _from_run(walk: "_Walk", run_id: str) -> LineageNode | None:
    found = _from_outputs(walk, tracking.find_outputs(run_id))
    return found and replace(found, name=run_id)


def _from_outputs(walk: "_Walk", outputs: Sequence[tracking.StageOutput]) -> LineageNode | None:
    """Return the tree behind all that a pipeline run's stages made, the last of them first; None if they made nothing.

    What an earlier stage made stands where a later one read it.
    """
    if not outputs:
        return None

    def rank(output: tracking.StageOutput) -> int:
        return -STAGES.index(output.stage) if output.stage in STAGES else 1

    nodes: list[LineageNode] = []
    for output in sorted(outputs, key=rank):
        if not any(contains(node, output.uri) for node in nodes):
            nodes.append(walk.node(output.stage, Parent(uri=output.uri, digest=output.digest), ()))
    reused = sorted({output.stage for output in outputs if output.reused})
    return LineageNode(
        name="",
        stage=RUN,
        uri="",
        digest="",
        statistics={"used again": ", ".join(reused)} if reused else {},
        parents=tuple(nodes),
    )


def _from_version(walk: "_Walk", reference: str) -> LineageNode:
    match = _VERSION.fullmatch(reference)
    if match is None:
        raise InvalidInput(f"{reference!r} is no model version; write name, name/3, name@champion or an s3:// uri")
    name, number, alias = match["name"], match["version"] or "", match["alias"]
    version = tracking.get_alias(name, alias) if alias else tracking.get_version(name, number)
    if version is None:
        run = _from_run(walk, name) if not (number or alias) else None
        if run is None:
            raise InvalidInput(f"MLflow has no model version and no run {reference}; check the name and the version")
        return run
    tags = version.tags
    model_uri = tags.get("reasrm.manifest_uri") or version.source_uri.removesuffix("/model")
    starts = {"publish": tags.get("reasrm.publish_uri", ""), "benchmark": tags.get("reasrm.benchmark_uri", "")}
    nodes: list[LineageNode] = []
    for stage, uri in starts.items():
        # The decision to publish already leads to the benchmark, and that to the model.
        if uri and not nodes and (node := walk.node(stage, Parent(uri=uri, digest=""), ())).problem != GONE:
            nodes.append(node)
    link = Parent(uri=model_uri, digest=tags.get("reasrm.manifest_digest", ""))
    model = next((found for node in nodes for found in node.walk() if found.uri == model_uri), None)
    if model is None:
        nodes.append(walk.node("model", link, ()))
    return LineageNode(
        name=f"{version.name}/{version.version}",
        stage=REGISTRY,
        uri=version.source_uri,
        digest=tags.get("reasrm.manifest_digest", ""),
        run_key=tags.get("reasrm.run_key", ""),
        mlflow_run_id=version.run_id or None,
        statistics=facts_of(version),
        problem=""
        if model is None or link.digest in {"", model.digest}
        else f"it was registered with digest {link.digest}, but the model's manifest now has {model.digest}",
        parents=tuple(nodes),
    )


def facts_of(version: tracking.VersionInfo) -> dict[str, Any]:
    """Return what is shown of a registered version."""
    known = {"aliases": ", ".join(version.aliases), "gate": version.tags.get("reasrm.gate", "")}
    return {name: value for name, value in known.items() if value}


def contains(node: LineageNode, uri: str) -> bool:
    """Whether an artifact is in a tree."""
    return node.uri == uri or any(contains(parent, uri) for parent in node.parents)


@dataclass
class _Walk:
    """What one walk has seen: shared parents are expanded once, and nothing is read twice."""

    storage: Manifests
    find_run: Callable[[str], str | None]
    expanded: set[str] = field(default_factory=set)

    def node(self, name: str, link: Parent, path: tuple[str, ...]) -> LineageNode:
        try:
            manifest = self.storage.open(link.uri)
        except Damaged as error:
            return LineageNode(name, "", link.uri, link.digest, problem=str(error))
        if manifest is None:
            return LineageNode(name, "", link.uri, link.digest, problem=GONE)
        node = LineageNode(
            name=name,
            stage=manifest.stage,
            uri=manifest.uri,
            digest=manifest.digest,
            run_key=manifest.run_key,
            mlflow_run_id=self.find_run(manifest.digest),
            statistics=scalars(manifest.statistics),
            problem=problem_of(link, manifest),
        )
        if link.uri in path:
            return replace(node, problem=f"{node.problem} it is its own ancestor".strip())
        if link.uri in self.expanded:
            return replace(node, repeated=True)
        self.expanded.add(link.uri)
        parents = [self.node(key, parent, (*path, link.uri)) for key, parent in manifest.parents.items()]
        return replace(node, parents=(*parents, *sources_of(manifest)))


def problem_of(link: Parent, manifest: Manifest) -> str:
    """Say how what a child recorded of its parent and the manifest that is there differ; empty if they agree."""
    if link.digest and link.digest != manifest.digest:
        return f"its child read digest {link.digest}, but the manifest here has {manifest.digest}"
    if manifest.uri.rstrip("/") != link.uri.rstrip("/"):
        return f"the manifest at {link.uri} says that it is {manifest.uri}"
    return ""


def sources_of(manifest: Manifest) -> list[LineageNode]:
    """Return the preference data that a prepare manifest names, which no manifest of ours describes."""
    sources = manifest.statistics.get("sources")
    if not isinstance(sources, list):
        return []
    return [
        LineageNode(
            name=SOURCE,
            stage="",
            uri=str(source.get("uri", "")),
            digest=str(source.get("sha256", "")),
            statistics=scalars({key: value for key, value in source.items() if key not in {"uri", "sha256"}}),
        )
        for source in sources
        if isinstance(source, dict)
    ]


def scalars(statistics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers and words of nested statistics under dotted names."""
    found: dict[str, Any] = {}
    for key, value in statistics.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, str)):
            found[f"{prefix}{key}"] = value
    return found


class BestEffort(Generic[T]):
    """Asks MLflow until it fails once, and answers `otherwise` from then on: the chain stands without it."""

    def __init__(self, ask: Callable[[str], T], otherwise: T) -> None:
        self.ask, self.otherwise = ask, otherwise
        self.reachable = bool(os.environ.get("MLFLOW_TRACKING_URI"))

    def __call__(self, digest: str) -> T:
        """Return what MLflow says of a manifest, by its digest."""
        if not self.reachable:
            return self.otherwise
        try:
            return self.ask(digest)
        except ReasrmError as error:
            logger.warning("lineage: what only MLflow knows is left out: %s", error)
            self.reachable = False
            return self.otherwise


def run_finder() -> Callable[[str], str | None]:
    """Return a function from a manifest's digest to the MLflow run that made it."""
    return BestEffort[str | None](tracking.find_run, None)
