"""What only the storage can tell the gate: is the model's ancestry all there, and are its weights whole and finite?"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from components.core.errors import Damaged
from components.core.manifest import Manifest, Parent
from components.publish.gate import Check, fact
from components.publish.tensors import Shard, read_shard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from components.adapters.storage import Storage

NUM_SHARDS_AT_ONCE = 4
LINEAGE, WEIGHTS = "lineage complete", "weights finite"


def check_lineage(starts: "Iterable[Manifest]", storage: "Storage") -> tuple[Check, str]:
    """Open every manifest that these were made from; each has to be the one that its child recorded."""
    waiting = [(manifest.uri, parent) for manifest in starts for parent in manifest.parents.values()]
    seen: dict[Parent, str] = {}
    while waiting:
        child, parent = waiting.pop()
        if parent in seen:
            continue
        manifest, seen[parent] = _opened(child, parent, storage)
        if manifest is not None:
            waiting += [(manifest.uri, further) for further in manifest.parents.values()]
    problems = sorted(problem for problem in seen.values() if problem)
    return fact(LINEAGE, problems, f"all {len(seen)} artifacts it was made from are those that were read")


def _opened(child: str, parent: Parent, storage: "Storage") -> tuple[Manifest | None, str]:
    try:
        manifest = storage.open(parent.uri)
    except Damaged as error:
        return None, str(error)
    if manifest is None:
        return None, f"there is no manifest at {parent.uri} any more, from which {child} was made"
    if manifest.digest != parent.digest:
        return manifest, f"{parent.uri} is not what {child} was made from: its manifest has another digest now"
    return manifest, ""


def check_weights(model: Manifest, storage: "Storage") -> tuple[Check, str]:
    """Read all weights once: their bytes have to be those of the manifest, and every number finite.

    They pass in blocks; four files at once. Raises Transient where S3 stops answering.
    """
    entries = [entry for entry in model.files if entry.path.endswith(".safetensors")]
    with ThreadPoolExecutor(NUM_SHARDS_AT_ONCE) as pool:
        shards: list[Shard] = list(pool.map(lambda entry: read_shard(storage, model.uri, entry), entries))
    problems = [problem for shard in shards for problem in shard.problems]
    if not sum(shard.num_tensors for shard in shards):
        problems = problems or ["there are no tensors"]
    numbers = sum(shard.num_tensors for shard in shards), len(shards)
    return fact(WEIGHTS, problems, f"all of {numbers[0]} tensors in {numbers[1]} files, with the recorded sha256")
