"""Walk from a model back to the preference data it learned from: model, benchmark, training, traces, pairs.

The manifests in the object store are the truth: each names its parents and the digest that was read. MLflow only
helps to find the start (a registered version, a run) and to name the run behind each manifest.

A run that goes on from an earlier one has its pairs (`since`) and its model (a warm start) before it. They stand in the
tree; what they were made from does so only as far as `generations` says, for it is another such tree, week by week.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from components.adapters import model_versions, tracking
from components.adapters.registry import find_version
from components.core.errors import Damaged, InvalidInput
from components.core.manifest import BASE, MANIFEST_NAME, SINCE, STAGES, WARM_START, Manifest, Parent, earlier_of
from pipeline.lineage.asking import FindRuns, FindVersions, run_finder, version_finder
from pipeline.lineage.history import Histories, Placing

if TYPE_CHECKING:
    from components.adapters.storage import Storage

REGISTRY, RUN, SOURCE = "registry", "run", "source"
"""What a node can be beside the artifact of a stage: a registered version, a pipeline run, data from elsewhere."""
EARLIER = {SINCE, WARM_START, BASE}
"""Names of what an artifact goes on from that an earlier run made."""
CHAMPION = "champion"
"""The statistic of a source that is the champion which a benchmark judged too."""
NO_CHAMPION = "none"
"""What a benchmark records as the digest of the champion where there was none."""
GONE = "there is no manifest here any more"
NUM_LEVELS = 3
"""How far below its artifact a file may lie for its uri to be understood: model/tokenizer/x.json."""
_MLFLOW_RUN_ID = re.compile(r"[0-9a-f]{32}")
_LOGGED_MODEL = re.compile(r"m-[0-9a-f]{32}")
_KFP_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class LineageNode:
    """One artifact with what it was made from, or (`descendants`) what was made from it.

    `stage` is empty where it is not known, `repeated`: shown in full above. `earlier`: an earlier run made it, and its
    child went on from it. `history` is who made a registered version champion, or took it away.
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
    earlier: bool = False
    history: tuple[Placing, ...] = ()
    parents: tuple["LineageNode", ...] = ()
    children: tuple["LineageNode", ...] = ()

    @property
    def is_artifact(self) -> bool:
        """Whether a manifest of ours describes it, or should."""
        return self.stage not in {REGISTRY, RUN} and self.name != SOURCE

    @property
    def is_mention(self) -> bool:
        """Whether what it was made from may be left out here."""
        return self.repeated or (self.earlier and not self.parents)

    def walk(self) -> Iterator["LineageNode"]:
        """Yield this node and all behind it, each with what is repeated."""
        yield self
        for node in (*self.parents, *self.children):
            yield from node.walk()


def chain(
    reference: str,
    storage: "Storage",
    *,
    generations: int = 0,
    find_runs: FindRuns | None = None,
    find_versions: FindVersions | None = None,
) -> LineageNode:
    """Return the tree behind a registered version, an artifact's uri, an MLflow run or a pipeline run.

    A version is `name`, `name/3` or `name@champion`; a name alone is its newest version. A uri may be that of a file
    in the artifact. A pipeline run is named by KFP's id of it, or on one machine by its folder's name. Of so many
    `generations` of earlier runs the tree has what their artifacts were made from.
    Raises InvalidInput if there is no such thing, Transient if MLflow is needed and does not answer.
    """
    tree = _found(_Walk(storage, generations), reference)
    return name_runs([_name_starts(tree, find_versions or version_finder())], find_runs or run_finder())[0]


def _found(walk: "_Walk", reference: str) -> LineageNode:
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
        if node.is_artifact and (node.uri not in found or (found[node.uri].is_mention and not node.is_mention)):
            found[node.uri] = node
    return list(found.values())


def name_runs(trees: Sequence[LineageNode], find_runs: FindRuns) -> list[LineageNode]:
    """Return the trees with the MLflow run that made each artifact; all are asked for at once."""
    runs = find_runs(
        sorted({node.digest for tree in trees for node in tree.walk() if node.is_artifact and node.digest})
    )

    def named(node: LineageNode) -> LineageNode:
        return replace(
            node,
            mlflow_run_id=runs.get(node.digest) if node.is_artifact else node.mlflow_run_id,
            parents=tuple(map(named, node.parents)),
            children=tuple(map(named, node.children)),
        )

    return [named(tree) for tree in trees] if runs else list(trees)


def _name_starts(tree: LineageNode, find_versions: FindVersions) -> LineageNode:
    """Return the tree with the registered versions whose models it started from."""
    digests = {node.digest for node in tree.walk() if node.name in {WARM_START, BASE}}
    names: dict[str, list[str]] = {}
    for version in find_versions(digests) if digests else ():
        names.setdefault(version.tags.get("reasrm.manifest_digest", ""), []).append(f"{version.name}/{version.version}")

    def named(node: LineageNode) -> LineageNode:
        found = names.get(node.digest) if node.name in {WARM_START, BASE} else None
        told = {"registered as": ", ".join(found)} if found else {}
        return replace(node, statistics=node.statistics | told, parents=tuple(map(named, node.parents)))

    return named(tree) if names else tree


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
    version = find_version(reference)
    if version is None:
        run = None if set(reference) & {"/", "@"} else _from_run(walk, reference)
        if run is None:
            raise InvalidInput(f"MLflow has no model version and no run {reference}; check the name and the version")
        return run
    tags = version.tags
    model_uri = tags.get("reasrm.manifest_uri") or version.source_uri.removesuffix("/model")
    starts = {"publish": tags.get("reasrm.publish_uri", ""), "benchmark": tags.get("reasrm.benchmark_uri", "")}
    nodes: list[LineageNode] = []
    for stage, uri in starts.items():
        # The decision to publish already leads to the benchmark, and that to the model.
        if uri and all(node.problem == GONE for node in nodes):
            nodes.append(walk.node(stage, Parent(uri=uri, digest=""), ()))
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
        history=Histories(walk.storage).of(version),
        parents=tuple(nodes),
    )


def facts_of(version: model_versions.VersionInfo) -> dict[str, Any]:
    """Return what is shown of a registered version."""
    known = {"aliases": ", ".join(version.aliases), "gate": version.tags.get("reasrm.gate", "")}
    return {name: value for name, value in known.items() if value}


def contains(node: LineageNode, uri: str) -> bool:
    """Whether an artifact is in a tree."""
    return node.uri == uri or any(contains(parent, uri) for parent in node.parents)


@dataclass
class _Walk:
    """What one walk has seen: shared parents are expanded once, and nothing is read twice."""

    storage: "Storage"
    generations: int
    expanded: set[str] = field(default_factory=set)

    def node(self, name: str, link: Parent, path: tuple[str, ...], generation: int = 0) -> LineageNode:
        """Return an artifact with what is behind it; `generation` counts the earlier runs that lead to it."""
        earlier = name in EARLIER
        try:
            manifest = self.storage.open(link.uri)
        except Damaged as error:
            return LineageNode(name, "", link.uri, link.digest, problem=str(error), earlier=earlier)
        if manifest is None:
            return LineageNode(name, "", link.uri, link.digest, problem=GONE, earlier=earlier)
        node = LineageNode(
            name=name,
            stage=manifest.stage,
            uri=manifest.uri,
            digest=manifest.digest,
            run_key=manifest.run_key,
            statistics=scalars(manifest.statistics),
            problem=problem_of(link, manifest),
            earlier=earlier,
        )
        if link.uri in path:
            return replace(node, problem=f"{node.problem} it is its own ancestor".strip())
        if link.uri in self.expanded:
            return replace(node, repeated=True)
        if generation > self.generations:
            return node
        self.expanded.add(link.uri)
        path = (*path, link.uri)
        parents = [self.node(key, parent, path, generation) for key, parent in manifest.parents.items()]
        before = [self.node(key, parent, path, generation + 1) for key, parent in earlier_of(manifest).items()]
        return replace(node, parents=(*parents, *before, *sources_of(manifest)))


def problem_of(link: Parent, manifest: Manifest) -> str:
    """Say how what a child recorded of its parent and the manifest that is there differ; empty if they agree."""
    if link.digest and link.digest != manifest.digest:
        return f"its child read digest {link.digest}, but the manifest here has {manifest.digest}"
    if manifest.uri.rstrip("/") != link.uri.rstrip("/"):
        return f"the manifest at {link.uri} says that it is {manifest.uri}"
    return ""


def sources_of(manifest: Manifest) -> list[LineageNode]:
    """Return the preference data and models that a manifest names and that no manifest of ours describes."""
    sources = manifest.statistics.get("sources")
    if not isinstance(sources, list):
        return []
    ours = {parent.uri for parent in earlier_of(manifest).values()}
    champion = manifest.config.get(CHAMPION) if manifest.stage == "benchmark" else None
    return [
        LineageNode(
            name=SOURCE,
            stage="",
            uri=uri,
            digest=str(source.get("sha256", "")),
            statistics=scalars({key: value for key, value in source.items() if key not in {"uri", "sha256"}})
            | ({CHAMPION: "at that time, judged beside it"} if uri == champion else {}),
        )
        for source in sources
        if isinstance(source, dict)
        and not _is_of(uri := str(source.get("uri", "")), ours)
        and (uri != champion or source.get("sha256") != NO_CHAMPION)
    ]


def _is_of(uri: str, artifacts: Iterable[str]) -> bool:
    """Whether a uri is that of one of the artifacts, or of a file in it."""
    return any(uri == one or uri.startswith(f"{one}/") for one in artifacts)


def scalars(statistics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers and words of nested statistics under dotted names."""
    found: dict[str, Any] = {}
    for key, value in statistics.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, str)):
            found[f"{prefix}{key}"] = value
    return found
