"""What only the storage can tell the gate: is the model's ancestry all there, and are its weights whole and finite?"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from components.core.errors import Damaged
from components.core.manifest import FileEntry, Manifest
from components.publish.gate import Check, fact
from components.publish.tensors import Shard, read_shard

if TYPE_CHECKING:
    from components.adapters.storage import Storage
    from components.publish.ancestry import Ancestry

NUM_SHARDS_AT_ONCE = 4
LINEAGE, WEIGHTS = "lineage complete", "weights finite"
INDEX = ".safetensors.index.json"
"""Behind the name of the file that says which tensor is in which of several files."""
PICKLED = re.compile(r"(?:^|/)(?:pytorch_model|adapter_model|consolidated)[^/]*\.(?:bin|pth|pt)$|\.ckpt$")


def check_lineage(ancestry: "Ancestry") -> tuple[Check, str]:
    """Say whether every manifest of the ancestry is there and is the one that its child recorded."""
    found = f"all {len(ancestry.found)} artifacts it was made from are those that were read"
    return fact(LINEAGE, ancestry.problems, found)


def check_weights(model: Manifest, storage: "Storage") -> tuple[Check, str]:
    """Read all weights once: their bytes have to be those of the manifest, and every number finite.

    They pass in blocks; four files at once. What an index names has to be there, and there may be no weights of a kind
    that is not looked into. Raises Transient where S3 stops answering.
    """
    entries = [entry for entry in model.files if entry.path.endswith(".safetensors")]
    pickled = [entry.path for entry in model.files if PICKLED.search(entry.path)]
    with ThreadPoolExecutor(NUM_SHARDS_AT_ONCE) as pool:
        shards: list[Shard] = list(pool.map(lambda entry: read_shard(storage, model.uri, entry), entries))
    problems = [problem for shard in shards for problem in shard.problems]
    problems += [f"{path} are pickled weights, which are not looked into: write safetensors alone" for path in pickled]
    problems += [
        problem for entry in model.files if entry.path.endswith(INDEX) for problem in _missing(model, entry, storage)
    ]
    if not sum(shard.num_tensors for shard in shards):
        problems = problems or ["there are no tensors"]
    numbers = sum(shard.num_tensors for shard in shards), len(shards)
    return fact(WEIGHTS, problems, f"all of {numbers[0]} tensors in {numbers[1]} files, with the recorded sha256")


def _missing(model: Manifest, index: FileEntry, storage: "Storage") -> Iterator[str]:
    """Yield in words which files an index of weights names and the manifest does not. Raises Transient."""
    chunks = storage.read_chunks(f"{model.uri}/{index.path}")
    if chunks is None:
        yield f"{index.path} is gone"
        return
    try:
        named = {str(name) for name in json.loads(b"".join(chunks))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, Damaged) as error:
        yield f"{index.path} is no index of weights: {error}"
        return
    folder = index.path.rpartition("/")[0]
    there = {entry.path for entry in model.files}
    for name in sorted(named):
        if f"{folder}/{name}".lstrip("/") not in there:
            yield f"{index.path} names {name}, and there is no such file"
