"""All that a model was made from: its parents, the models that training started from, and the pairs of earlier runs."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

from components.core.errors import Damaged
from components.core.manifest import Manifest, Parent, earlier_of
from components.publish.values import sources

if TYPE_CHECKING:
    from components.adapters.storage import Storage

NUM_AT_ONCE = 16


@dataclass(frozen=True)
class Ancestry:
    """The manifests that were found, each once and the nearest first, and in words what is not as it was recorded."""

    found: tuple[Manifest, ...] = ()
    problems: tuple[str, ...] = ()

    def opened(self, uri: str) -> Manifest | None:
        """Return the ancestor at a uri, or None if there is none (any more)."""
        return next((manifest for manifest in self.found if manifest.uri == uri), None)

    def tuned(self, sft: Manifest) -> list[Manifest]:
        """Return an SFT manifest and those of the models that it was warm-started from, the nearest first."""
        chain = [sft]
        while (start := self.start(chain[-1])) is not None:
            below = start if start.stage == "sft" else self._parent(start, "sft")
            if below is None or below in chain:
                break
            chain.append(below)
        return chain

    def start(self, sft: Manifest) -> Manifest | None:
        """Return the model of ours that an SFT run started from; None for a base model, or if it is gone."""
        uris = [str(source.get("uri", "")).rstrip("/") for source in sources(sft)]
        found = (self.opened(uri) for uri in uris)
        return next((model for model in found if model is not None and model.stage in {"sft", "grpo"}), None)

    def _parent(self, manifest: Manifest, name: str) -> Manifest | None:
        parent = manifest.parents.get(name)
        return self.opened(parent.uri) if parent else None


def find_ancestry(starts: Iterable[Manifest], storage: "Storage") -> Ancestry:
    """Open every manifest that these were made from. Raises Transient where S3 does not answer."""
    found: dict[str, Manifest] = {}
    told: dict[Parent, str] = {}
    waiting = [(manifest.uri, link) for manifest in starts for link in links(manifest)]
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        while waiting:
            due = {link: child for child, link in reversed(waiting) if link not in told}
            opened = pool.map(_open, due.values(), due, repeat(storage))
            waiting = []
            for link, (manifest, problem) in zip(due, opened, strict=True):
                told[link] = problem
                if manifest is not None and manifest.uri not in found:
                    found[manifest.uri] = manifest
                    waiting += [(manifest.uri, further) for further in links(manifest)]
    return Ancestry(tuple(found.values()), tuple(sorted(filter(None, told.values()))))


def links(manifest: Manifest) -> Iterator[Parent]:
    """Yield the artifacts that one was made from, with the digests that were read.

    These are its parents, the artifact that SFT started from, and the pairs that `prepare` went on from.
    """
    yield from manifest.parents.values()
    yield from earlier_of(manifest).values()


def _open(child: str, link: Parent, storage: "Storage") -> tuple[Manifest | None, str]:
    try:
        manifest = storage.open(link.uri)
    except Damaged as error:
        return None, str(error)
    if manifest is None:
        return None, f"there is no manifest at {link.uri} any more, from which {child} was made"
    if manifest.digest != link.digest:
        return manifest, f"{link.uri} is not what {child} was made from: its manifest has another digest now"
    return manifest, ""
