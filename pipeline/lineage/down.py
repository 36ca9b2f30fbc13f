"""Walk from an artifact down to everything that was made from it: the pairs' traces, the models, their versions.

A manifest names its parents and not its children, so all manifests below the artifact root are read.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from components.adapters import tracking
from components.core.errors import Damaged, InvalidInput
from components.core.manifest import Manifest, Parent
from pipeline.lineage.walk import (
    REGISTRY,
    RUN,
    SOURCE,
    STAGES,
    BestEffort,
    LineageNode,
    Manifests,
    artifacts,
    facts_of,
    problem_of,
    run_finder,
    scalars,
    sources_of,
)

logger = logging.getLogger(__name__)

NUM_READERS = 16
FindVersions = Callable[[str], Sequence[tracking.VersionInfo]]


class Catalogue(Manifests, Protocol):
    """Manifests that can be listed; the storage adapter is one."""

    def folders(self, prefix_uri: str) -> Sequence[str]:
        """Return the uris of the folders right below a prefix."""
        ...


def root_of(uri: str) -> str:
    """Return the artifact root of an artifact: `<root>/<stage>/<key>`."""
    return uri.rstrip("/").rsplit("/", 2)[0]


def starts_of(tree: LineageNode) -> list[str]:
    """Return the uris from which to go down: an artifact's, a version's model, or all that a pipeline run used."""
    if tree.stage == RUN:
        return [node.uri for node in artifacts(tree)]
    return [tree.uri.removesuffix("/model") if tree.stage == REGISTRY else tree.uri]


def manifests_below(root: str, storage: Catalogue, advance: Callable[[int, int], None] | None = None) -> list[Manifest]:
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
    *,
    find_run: Callable[[str], str | None] | None = None,
    find_versions: FindVersions | None = None,
) -> list[LineageNode]:
    """Return for each uri (of an artifact, or of a source that one has read) what was made from it.

    What was made from two of them stands below the first. Raises InvalidInput for a uri that no manifest knows.
    """
    walk = _Down(list(manifests), find_run or run_finder(), find_versions or version_finder())
    found = []
    for uri in sorted(starts, key=walk.place):
        if uri not in walk.expanded:
            found.append(walk.start(uri))
    return found


@dataclass
class _Down:
    manifests: list[Manifest]
    find_run: Callable[[str], str | None]
    find_versions: FindVersions
    by_uri: dict[str, Manifest] = field(default_factory=dict)
    children: dict[str, list[tuple[Manifest, Parent]]] = field(default_factory=dict)
    expanded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for manifest in sorted(self.manifests, key=lambda one: (_order(one.stage), one.uri)):
            self.by_uri[manifest.uri] = manifest
            for link in manifest.parents.values():
                self.children.setdefault(link.uri, []).append((manifest, link))
            for source in sources_of(manifest):
                link = Parent(uri=source.uri, digest=source.digest)
                self.children.setdefault(source.uri, []).append((manifest, link))

    def place(self, uri: str) -> tuple[int, str]:
        """Return where a start stands: earlier stages first, for they lead to later ones."""
        return (_order(self.by_uri[uri].stage) if uri in self.by_uri else -1, uri)

    def start(self, uri: str) -> LineageNode:
        """Return the tree below an artifact or a source."""
        manifest = self.by_uri.get(uri)
        if manifest is not None:
            return self.node(manifest, "", ())
        if uri not in self.children:
            raise InvalidInput(f"no manifest below the artifact root is at {uri} or was made from it; check the uri")
        digests = {link.digest for _, link in self.children[uri]}
        return LineageNode(
            SOURCE,
            "",
            uri,
            digests.pop() if len(digests) == 1 else "",
            problem=f"it was read in {len(digests)} versions" if len(digests) > 1 else "",
            children=self.below(uri, "", ()),
        )

    def node(self, manifest: Manifest, problem: str, path: tuple[str, ...]) -> LineageNode:
        """Return an artifact with all that is below it."""
        node = LineageNode(
            name=manifest.stage,
            stage=manifest.stage,
            uri=manifest.uri,
            digest=manifest.digest,
            run_key=manifest.run_key,
            mlflow_run_id=self.find_run(manifest.digest),
            statistics=scalars(manifest.statistics),
            problem=problem,
        )
        if manifest.uri in path:
            return replace(node, problem=f"{problem} it is its own ancestor".strip())
        if manifest.uri in self.expanded:
            return replace(node, repeated=True)
        self.expanded.add(manifest.uri)
        versions = [_version(one) for one in self.find_versions(manifest.digest)] if manifest.kind == "model" else []
        return replace(node, children=(*self.below(manifest.uri, manifest.digest, path), *versions))

    def below(self, uri: str, digest: str, path: tuple[str, ...]) -> tuple[LineageNode, ...]:
        """Return what names this uri as a parent; one that read other content says so."""
        found: dict[str, LineageNode] = {}
        for child, link in self.children.get(uri, ()):
            other = self.by_uri.get(uri)
            problem = problem_of(link, other).replace("its child", "it", 1) if other is not None and digest else ""
            if child.uri not in found:
                found[child.uri] = self.node(child, problem, (*path, uri))
        return tuple(found.values())


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _version(version: tracking.VersionInfo) -> LineageNode:
    return LineageNode(
        name=f"{version.name}/{version.version}",
        stage=REGISTRY,
        uri=version.source_uri,
        digest=version.tags.get("reasrm.manifest_digest", ""),
        mlflow_run_id=version.run_id or None,
        statistics=facts_of(version),
    )


def version_finder() -> FindVersions:
    """Return a function from a manifest's digest to the model's registered versions."""
    return BestEffort[Sequence[tracking.VersionInfo]](tracking.find_versions, ())
