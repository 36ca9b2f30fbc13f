"""What only the storage can tell the gate: is the model's ancestry all there, and are its weights whole and finite?"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from components.core.manifest import Manifest
from components.publish.gate import Check, fact
from components.publish.tensors import Shard, read_shard

if TYPE_CHECKING:
    from components.adapters.storage import Storage
    from components.publish.ancestry import Ancestry

NUM_SHARDS_AT_ONCE = 4
LINEAGE, WEIGHTS = "lineage complete", "weights finite"


def check_lineage(ancestry: "Ancestry") -> tuple[Check, str]:
    """Say whether every manifest of the ancestry is there and is the one that its child recorded."""
    found = f"all {len(ancestry.found)} artifacts it was made from are those that were read"
    return fact(LINEAGE, ancestry.problems, found)


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
