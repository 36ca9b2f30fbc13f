"""Walk from an artifact down to everything that was made from it: the pairs' traces, the models, their versions.

A manifest names its parents and not its children, so all manifests below the artifact root are read.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from components.adapters import model_versions
from components.core.errors import Damaged, InvalidInput
from components.core.manifest import STAGES, Manifest, Parent, earlier_of
from pipeline.lineage.asking import FindRuns, FindVersions, run_finder, version_finder
from pipeline.lineage.history import Histories
from pipeline.lineage.walk import (
    REGISTRY,
    RUN,
    SOURCE,
    LineageNode,
    artifacts,
    facts_of,
    name_runs,
    problem_of,
    scalars,
    sources_of,
)

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

NUM_READERS = 16


def root_of(uri: str) -> str:
    """Return the artifact root of an artifact: `<root>/<stage>/<key>`."""
    return uri.rstrip("/").rsplit("/", 2)[0]


def starts_of(tree: LineageNode) -> list[str]:
    """Return the uris from which to go down: an artifact's, a version's model, or all that a pipeline run used."""
    if tree.stage == RUN:
        return [node.uri for node in artifacts(tree)]
    return [tree.uri.removesuffix("/model") if tree.stage == REGISTRY else tree.uri]


def manifests_below(root: str, storage: "Storage", advance: Callable[[int, int], None] | None = None) -> list[Manifest]:
    """Return all manifests below an artifact root, by stage; ones that cannot be read are told in the log.

    `advance` is called with how many of how many have been looked at.
    """
    uris = [uri for stage in storage.folders(root) for uri in storage.folders(stage)]

    def read(uri: str) -> Manifest | None:
        try:
            return storage.open(uri)
        except Damaged as error:
            logger.warning("lineage: %s", error)
            return None

    found = []
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for number, manifest in enumerate(pool.map(read, uris), start=1):
            if manifest is not None:
                found.append(manifest)
            if advance is not None:
                advance(number, len(uris))
    return found


def descendants(
    starts: Iterable[str],
    manifests: Iterable[Manifest],
    storage: "Storage",
    *,
    find_runs: FindRuns | None = None,
    find_versions: FindVersions | None = None,
) -> list[LineageNode]:
    """Return for each uri (of an artifact, or of a source that one has read) what was made from it.

    A file may lie in a folder that was read as a source, and a folder may hold several sources. What was made from two
    of them stands below the first. Raises InvalidInput if no manifest knows any of them; of several, one that is gone
    has nothing below it.
    """
    walk, starts = _Down(list(manifests)), list(starts)
    known = sorted({found for uri in starts for found in walk.known_by(uri)}, key=walk.place)
    if not known:
        named = ", ".join(starts)
        raise InvalidInput(f"no manifest below the artifact root is at {named} or was made from it; check the uri")
    found = []
    for uri in known:
        if uri not in walk.expanded:
            found.append(walk.start(uri, next((one for one in starts if one.startswith(f"{uri.rstrip('/')}/")), "")))
    versions: dict[str, list[LineageNode]] = {}
    histories = Histories(storage)
    for version in (find_versions or version_finder())({one.digest for one in walk.models.values()}):
        node = _version(version, histories)
        versions.setdefault(node.digest, []).append(node)
    return name_runs([_with_versions(tree, versions) for tree in found], find_runs or run_finder())


def _with_versions(node: LineageNode, versions: Mapping[str, list[LineageNode]]) -> LineageNode:
    """Return a tree with the registered versions of its models below them."""
    own = versions.get(node.digest, []) if node.stage != REGISTRY and not node.repeated else []
    return replace(node, children=(*(_with_versions(child, versions) for child in node.children), *own))


@dataclass
class _Down:
    manifests: list[Manifest]
    by_uri: dict[str, Manifest] = field(default_factory=dict)
    children: dict[str, list[tuple[Manifest, Parent, str]]] = field(default_factory=dict)
    """By uri: what names it, how, and if that goes on from an earlier run's artifact, as what."""
    models: dict[str, Manifest] = field(default_factory=dict)
    """Models in the trees, by uri."""
    expanded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for manifest in sorted(self.manifests, key=lambda one: (_order(one.stage), one.uri)):
            self.by_uri[manifest.uri] = manifest
            for link in manifest.parents.values():
                self.children.setdefault(link.uri, []).append((manifest, link, ""))
            for name, link in earlier_of(manifest).items():
                self.children.setdefault(link.uri, []).append((manifest, link, name))
            for source in sources_of(manifest):
                link = Parent(uri=source.uri, digest=source.digest)
                self.children.setdefault(source.uri, []).append((manifest, link, ""))
        for links in self.children.values():  # what a later run made of it comes last
            links.sort(key=lambda one: bool(one[2]))

    def place(self, uri: str) -> tuple[int, str]:
        """Return where a start stands: earlier stages first, for they lead to later ones."""
        return (_order(self.by_uri[uri].stage) if uri in self.by_uri else -1, uri)

    def known_by(self, uri: str) -> list[str]:
        """Return the uris by which manifests know a thing: its own, or those of sources that hold it, or lie in it."""
        if uri in self.by_uri or uri in self.children:
            return [uri]
        asked, sources = uri.rstrip("/"), self.children.keys() - self.by_uri.keys()
        holding = [one for one in sources if asked == one.rstrip("/") or asked.startswith(f"{one.rstrip('/')}/")]
        return holding or [one for one in sources if one.startswith(f"{asked}/")]

    def start(self, uri: str, asked: str = "") -> LineageNode:
        """Return the tree below an artifact, or a source; `asked` is the file in the source that was asked for."""
        manifest = self.by_uri.get(uri)
        if manifest is not None:
            return self.node(manifest, "", ())
        digests = {link.digest for _, link, _ in self.children[uri]}
        problems = [f"it was read in {len(digests)} versions"] if len(digests) > 1 else []
        if asked:
            problems.append(f"{asked} lies in it; whether it was there when a run read this, no manifest says")
        return LineageNode(
            SOURCE,
            "",
            uri,
            digests.pop() if len(digests) == 1 else "",
            problem="; ".join(problems),
            children=self.below(uri, "", ()),
        )

    def node(self, manifest: Manifest, problem: str, path: tuple[str, ...], how: str = "") -> LineageNode:
        """Return an artifact with all that is below it; `how` says as what it goes on from what is above it."""
        node = LineageNode(
            name=f"by {how}" if how else manifest.stage,
            stage=manifest.stage,
            uri=manifest.uri,
            digest=manifest.digest,
            run_key=manifest.run_key,
            statistics=scalars(manifest.statistics),
            problem=problem,
        )
        if manifest.uri in path:
            return replace(node, problem=f"{problem} it is its own ancestor".strip())
        if manifest.uri in self.expanded:
            return replace(node, repeated=True)
        self.expanded.add(manifest.uri)
        if manifest.kind == "model":
            self.models[manifest.uri] = manifest
        return replace(node, children=self.below(manifest.uri, manifest.digest, path))

    def below(self, uri: str, digest: str, path: tuple[str, ...]) -> tuple[LineageNode, ...]:
        """Return what names this uri as a parent; one that read other content says so."""
        found: dict[str, LineageNode] = {}
        for child, link, how in self.children.get(uri, ()):
            other = self.by_uri.get(uri)
            problem = problem_of(link, other).replace("its child", "it", 1) if other is not None and digest else ""
            if child.uri not in found:
                found[child.uri] = self.node(child, problem, (*path, uri), how)
        return tuple(found.values())


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _version(version: model_versions.VersionInfo, histories: Histories) -> LineageNode:
    return LineageNode(
        name=f"{version.name}/{version.version}",
        stage=REGISTRY,
        uri=version.source_uri,
        digest=version.tags.get("reasrm.manifest_digest", ""),
        mlflow_run_id=version.run_id or None,
        statistics=facts_of(version),
        history=histories.of(version),
    )
