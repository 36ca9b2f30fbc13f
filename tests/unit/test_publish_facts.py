"""What the gate asks the storage: ancestry and weights, read in blocks of any size."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load, save

from components.core.manifest import FileEntry, Manifest, Parent
from components.publish.ancestry import find_ancestry
from components.publish.facts import check_lineage, check_weights

WHOLE = {"f4": np.arange(7, dtype="<f4"), "ids": np.arange(5), "empty": np.zeros((0, 3), "<f2"), "one": np.array(1.0)}


class Files:
    """Objects in memory, streamed in blocks of a size that fits no tensor."""

    def __init__(self, files, block=13):
        self.files, self.block = files, block

    def read_chunks(self, uri):
        data = self.files.get(uri.removeprefix("s3://b/model/"))
        return data and iter([data[at : at + self.block] for at in range(0, len(data), self.block)])


def manifest(files):
    entries = tuple(
        FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()
    )
    return Manifest(
        kind="model", stage="grpo", uri="s3://b/model", run_key="0" * 64, code_version="1", config={}, files=entries
    )


def checked(files, stored=None):
    return check_weights(manifest(files), Files(files if stored is None else stored))


def test_weights_that_are_whole_and_finite_pass():
    files = {"model/a.safetensors": save(WHOLE), "model/b.safetensors": save({"x": np.ones(3, "<f2")}), "metrics": b""}
    check, _ = checked(files)
    assert check.passed
    assert check.note == "all of 5 tensors in 2 files, with the recorded sha256"


def as_bf16(numbers):
    return (np.asarray(numbers, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


def as_e5m2(numbers):
    return (np.asarray(numbers, "<f2").view("<u2") >> 8).astype("u1").tobytes()


TYPES = {
    "F64": lambda numbers: np.asarray(numbers, "<f8").tobytes(),
    "F32": lambda numbers: np.asarray(numbers, "<f4").tobytes(),
    "F16": lambda numbers: np.asarray(numbers, "<f2").tobytes(),
    "BF16": as_bf16,
    "F8_E5M2": as_e5m2,
    "F8_E4M3": bytes,
}


def packed(dtype, data, **row):
    """A file with one tensor, byte by byte."""
    size = 1 if dtype.startswith("F8") else int(dtype[-2:]) // 8
    row = {"dtype": dtype, "shape": [len(data) // size], "data_offsets": [0, len(data)]} | row
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": row}).encode()
    return {"m.safetensors": len(header).to_bytes(8, "little") + header + data}


def test_our_packing_is_that_of_the_library():
    numbers = np.arange(4, dtype="<f2")
    assert load(packed("F16", TYPES["F16"](numbers))["m.safetensors"])["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 8])
@pytest.mark.parametrize("dtype", list(TYPES)[:-1])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(bad, place, dtype):
    numbers = np.linspace(-1, 1, 9)
    assert checked(packed(dtype, TYPES[dtype](numbers)))[0].passed
    numbers[place] = bad
    check, reason = checked(packed(dtype, TYPES[dtype](numbers)))
    assert not check.passed
    assert reason == "weights finite: tensor w has numbers that are not finite"


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("F64", 1.7e308), ("F32", 3.4e38), ("F16", 65504.0), ("BF16", 3.38e38), ("F8_E5M2", 57344.0)],
)
def test_the_largest_numbers_of_each_type_are_finite(dtype, most):
    assert checked(packed(dtype, TYPES[dtype]([most, -most])))[0].passed


def test_the_small_float_without_infinity_has_two_patterns_that_are_no_number():
    assert checked(packed("F8_E4M3", bytes(set(range(256)) - {0x7F, 0xFF})))[0].passed
    for pattern in (0x7F, 0xFF):
        assert not checked(packed("F8_E4M3", bytes([0, pattern])))[0].passed


GOOD = save(WHOLE)


def described(**row):
    header = json.dumps({"w": row}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ends too early"),
        (b"weights", "ends too early"),
        (GOOD[:-1], "ends too early"),
        (GOOD + b"x", "bytes after its last tensor"),
        ((2**40).to_bytes(8, "little"), "its header would take 1099511627776 bytes"),
        ((4).to_bytes(8, "little") + b"none", "is no safetensors file"),
        (described(dtype="F32", shape=[2]), "does not describe tensor w"),
        (described(dtype="F4", shape=[2], data_offsets=[0, 8]), "tensor w has the unknown type F4"),
        (described(dtype="F32", shape=[3], data_offsets=[0, 8]), "tensor w has 8 bytes, not 12"),
        (described(dtype="F32", shape=[1], data_offsets=[4, 8]), "does not begin where the one before ends"),
    ],
)
def test_what_is_no_model_is_a_reason_and_no_crash(data, words):
    check, reason = checked({"m.safetensors": data})
    assert not check.passed
    assert words in reason


def test_bytes_that_are_gone_or_changed_are_a_reason():
    files = {"a.safetensors": GOOD, "b.safetensors": save({"x": np.ones(3, "<f4")})}
    assert "b.safetensors is gone" in checked(files, {"a.safetensors": GOOD})[1]
    other = files | {"b.safetensors": save({"x": np.full(3, 2, "<f4")})}
    assert "b.safetensors is damaged" in checked(files, other)[1]
    assert "there are no tensors" in checked({"metrics": b""})[1]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin", "x.ckpt"]
)
def test_pickled_weights_are_a_reason_alone_and_beside_others(name):
    pickled = {f"model/{name}": b"pickle", "model/training_args.bin": b"no weights"}
    told = f"model/{name} are pickled weights, which are not looked into: write safetensors alone"
    assert checked(pickled)[1] == f"weights finite: {told}"
    check, reason = checked({"model/model.safetensors": GOOD} | pickled)
    assert (check.passed, reason) == (False, f"weights finite: {told}")


def test_a_model_without_any_weights_is_refused():
    check, reason = checked({"model/config.json": b"{}", "model/tokenizer.json": b"{}"})
    assert (check.passed, reason) == (False, "weights finite: there are no tensors")


def test_a_file_of_weights_that_the_index_names_and_nobody_wrote_is_a_reason():
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    files = {f"model/{name}": GOOD for name in names} | {
        "model/model.safetensors.index.json": json.dumps(index).encode()
    }
    assert checked(files)[0].passed
    stored = dict(files)
    del files[f"model/{names[1]}"]
    told = f"model/model.safetensors.index.json names {names[1]}, and there is no such file"
    assert checked(files, stored)[1] == f"weights finite: {told}"
    stored = files | {"model/model.safetensors.index.json": b"[]"}
    assert "model.safetensors.index.json is no index of weights" in checked(files, stored)[1]
    del stored["model/model.safetensors.index.json"]
    assert "model/model.safetensors.index.json is gone" in checked(files, stored)[1]


def test_memory_does_not_grow_with_the_model():
    data = save({"w": np.ones(8_000_000, "<f4")})
    files = Files({"m.safetensors": data}, block=2**20)
    view = memoryview(data)
    files.read_chunks = lambda uri: (bytes(view[at : at + 2**20]) for at in range(0, len(view), 2**20))
    described = manifest({"m.safetensors": data})
    tracemalloc.start()
    assert check_weights(described, files)[0].passed
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20 < len(data)


class Store:
    def __init__(self):
        self.manifests = {}

    def open(self, uri):
        return self.manifests.get(uri)

    def add(self, name, *parents, at="", **statistics):
        made = Manifest(
            kind=name, stage=name, uri=f"s3://b/{name}{at}", run_key="0" * 64, code_version="1",
            config={"base_model": "tiny"}, files=(), statistics=statistics,
            parents={parent.stage: Parent(uri=parent.uri, digest=parent.digest) for parent in parents},
        )  # fmt: skip
        self.manifests[made.uri] = made
        return made


@pytest.fixture
def store():
    store = Store()
    pairs = store.add("pairs")
    traces = store.add("traces", pairs)
    store.add("sft", store.add("filter", traces, pairs))
    return store


def test_a_lineage_whose_manifests_are_those_that_were_read_is_complete(store):
    check, _ = check_lineage(find_ancestry([store.manifests["s3://b/sft"]], store))
    assert (check.passed, check.note) == (True, "all 3 artifacts it was made from are those that were read")


def test_a_missing_and_a_replaced_ancestor_are_reasons(store):
    sft = store.manifests["s3://b/sft"]
    store.add("traces")
    assert "s3://b/traces is not what s3://b/filter was made from" in check_lineage(find_ancestry([sft], store))[1]
    del store.manifests["s3://b/pairs"]
    check, reason = check_lineage(find_ancestry([sft], store))
    assert not check.passed
    assert "there is no manifest at s3://b/pairs any more, from which s3://b/filter was made" in reason


def weeks(store):
    """Three runs, each warm-started from the one before; the first from the base model."""
    base, since = {"uri": "tiny", "sha256": "b" * 64}, {}
    for week in ("", "-2", "-3"):
        data = {"uri": f"s3://data/{week}", "sha256": "d" * 64}
        pairs = store.add("prepare", at=week, sources=[data], **since)
        tuned = store.add("sft", store.add("filter", pairs, at=week), at=week, sources=[base])
        model = store.add("grpo", tuned, pairs, at=week)
        base = {"uri": model.uri, "sha256": model.digest}
        since = {"since": {"uri": pairs.uri, "digest": pairs.digest}}
    return model, tuned


def test_the_ancestry_reaches_over_warm_starts_and_the_pairs_of_earlier_runs(store):
    model, tuned = weeks(store)
    ancestry = find_ancestry([model], store)
    assert ancestry.problems == ()
    assert [made.uri for made in ancestry.tuned(tuned)] == ["s3://b/sft-3", "s3://b/sft-2", "s3://b/sft"]
    assert ancestry.start(tuned).uri == "s3://b/grpo-2"
    assert [made.uri for made in ancestry.found if made.stage == "prepare"] == [
        "s3://b/prepare-3", "s3://b/prepare-2", "s3://b/prepare",
    ]  # fmt: skip
    assert len(ancestry.found) == 11


def test_a_model_that_it_was_warm_started_from_is_part_of_the_lineage(store):
    model, tuned = weeks(store)
    del store.manifests["s3://b/grpo"]
    ancestry = find_ancestry([model], store)
    check, reason = check_lineage(ancestry)
    assert not check.passed
    assert "there is no manifest at s3://b/grpo any more, from which s3://b/sft-2 was made" in reason
    assert [made.uri for made in ancestry.tuned(tuned)] == ["s3://b/sft-3", "s3://b/sft-2"]
