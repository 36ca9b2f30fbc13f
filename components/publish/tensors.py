"""Look through a safetensors file as it streams by, without torch: is every number finite?

The layout (https://github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, a
JSON object of name -> {dtype, shape, data_offsets}; then all tensors one after another.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.core.errors import Damaged
from components.core.manifest import FileEntry

if TYPE_CHECKING:
    from components.adapters.storage import Storage

BLOCK_BYTES = 2**20  # a multiple of the size of every number
MAX_HEADER_BYTES = 100_000_000  # the format's own bound
WHOLE = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
# dtype -> bytes of a number, and for floats an unsigned type with the bits that are all set in infinity and NaN.
# F8_E4M3 has no infinity: NaN is the one pattern of all bits but the sign.
FLOATS = {
    "F64": (8, "<u8", 0x7FF0_0000_0000_0000),
    "F32": (4, "<u4", 0x7F80_0000),
    "F16": (2, "<u2", 0x7C00),
    "BF16": (2, "<u2", 0x7F80),
    "F8_E5M2": (1, "u1", 0x7C),
    "F8_E4M3": (1, "u1", 0x7F),
}


@dataclass
class Shard:
    """What was found in one file."""

    num_tensors: int = 0
    problems: list[str] = field(default_factory=list)


class _Tensor(NamedTuple):
    name: str
    dtype: str
    start: int
    end: int


def read_shard(storage: "Storage", uri: str, entry: FileEntry) -> Shard:
    """Read one file of a model from S3 in blocks. Raises Transient."""
    shard = Shard()
    try:
        chunks = storage.read_chunks(f"{uri}/{entry.path}")
        if chunks is None:
            shard.problems.append(f"{entry.path} is gone")
            return shard
        digest, counted = hashlib.sha256(), [0]
        _look(_Reader(_hashed(chunks, digest, counted)), shard, entry.path)
    except Damaged as error:
        shard.problems.append(f"{entry.path}: {error}")
        return shard
    if counted[0] != entry.size or digest.hexdigest() != entry.sha256:
        shard.problems.append(f"{entry.path} is damaged: its bytes do not have the sha256 of the manifest")
    return shard


def _hashed(chunks: Iterator[bytes], digest: Any, counted: list[int]) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        counted[0] += len(chunk)
        yield chunk


def _look(reader: "_Reader", shard: Shard, path: str) -> None:
    try:
        tensors = _header(reader)
        shard.num_tensors = len(tensors)
        for tensor in tensors:
            if _is_spoilt(reader, tensor):
                shard.problems.append(f"tensor {tensor.name} has numbers that are not finite")
        if reader.read(1):
            raise ValueError("there are bytes after its last tensor")
    except ValueError as error:
        shard.problems.append(f"{path} is no safetensors file: {error}")
    reader.drain()


def _header(reader: "_Reader") -> list[_Tensor]:
    length = int.from_bytes(reader.exactly(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header would take {length} bytes")
    header = json.loads(reader.exactly(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    tensors = sorted((_tensor(name, row) for name, row in header.items() if name != "__metadata__"), key=_place)
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(f"tensor {tensor.name} does not begin where the one before ends")
        end = tensor.end
    return tensors


def _place(tensor: _Tensor) -> tuple[int, int]:
    return tensor.start, tensor.end


def _tensor(name: str, row: Any) -> _Tensor:
    try:
        dtype, (start, end), shape = row["dtype"], row["data_offsets"], row["shape"]
        size = FLOATS[dtype][0] * math.prod(shape) if dtype in FLOATS else end - start
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header does not describe tensor {name}") from error
    if dtype not in FLOATS and dtype not in WHOLE:
        raise ValueError(f"tensor {name} has the unknown type {dtype}")
    if end - start != size or size < 0:
        raise ValueError(f"tensor {name} has {end - start} bytes, not {size}")
    return _Tensor(name, dtype, start, end)


def _is_spoilt(reader: "_Reader", tensor: _Tensor) -> bool:
    left, spoilt = tensor.end - tensor.start, False
    _, kind, mask = FLOATS.get(tensor.dtype, (1, "u1", 0))
    while left:
        block = reader.exactly(min(left, BLOCK_BYTES))
        left -= len(block)
        if mask and not spoilt:
            spoilt = _has_all_bits(np.frombuffer(block, np.dtype(kind)), mask)
    return spoilt


def _has_all_bits(numbers: NDArray[Any], mask: int) -> bool:
    bits = numbers.dtype.type(mask)
    return bool(((numbers & bits) == bits).any())


class _Reader:
    """Cuts a stream of blocks into pieces of wanted sizes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.rest = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""
        parts, have = [self.rest], len(self.rest)
        while have < size:
            chunk = next(self.chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self.rest = data[size:]
        return data[:size]

    def exactly(self, size: int) -> bytes:
        """Return the next bytes. Raises ValueError at the end."""
        data = self.read(size)
        if len(data) != size:
            raise ValueError("it ends too early")
        return data

    def drain(self) -> None:
        """Read to the end."""
        self.rest = b""
        for _ in self.chunks:
            pass
