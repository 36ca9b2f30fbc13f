"""The traces stage with a model of its own, as a process that is killed or asked to stop while the model writes."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.manifest import Manifest, describe
from components.core.records import read_models, write_jsonl
from components.core.schema import PreferencePair, Trace

NUM_PAIRS = 20
BATCH = 4


@pytest.fixture
def commit(s3: Any, tmp_path: Path) -> Callable[[str, Callable[[Path], None]], Manifest]:
    """Return what commits a folder as an artifact."""

    def make(kind: str, fill: Callable[[Path], None]) -> Manifest:
        folder = tmp_path / kind
        folder.mkdir()
        fill(folder)
        manifest = Manifest(
            kind=kind, stage="prepare", uri=f"{s3.prefix}/{kind}", run_key="0" * 64, code_version="0", config={},
            files=describe(folder),
        )  # fmt: skip
        s3.storage.commit(manifest, folder)
        return manifest

    return make


def pairs(folder: Path) -> None:
    rows = [
        {"id": f"p{n}", "prompt": f"What is {n} plus 1?", "response_a": f"{n + 1}", "response_b": f"{n}", "label": "A"}
        for n in range(NUM_PAIRS)
    ]
    write_jsonl(folder / "distil.jsonl", map(PreferencePair.model_validate, rows))


@pytest.mark.slow
def test_a_stage_that_is_killed_or_stopped_while_its_model_writes_ends_with_the_same_bytes(
    stage_runner: Any, commit: Any, s3: Any, tiny_model: Path
) -> None:
    model = commit("model", lambda folder: shutil.copytree(tiny_model, folder / "model"))
    inputs = {"pairs": commit("pairs", pairs)}
    teacher = {"kind": "vllm", "engine": "transformers", "model": model.uri, "batch_size": BATCH, "temperature": 1.0}
    config = {"teacher": teacher, "max_tokens": 100, "shard_size": 5, "max_truncated_fraction": 1.0}
    config["max_failed_fraction"] = 0.0

    def journalled(stage: Any) -> int:
        journals = list((stage.output.parent / "work").glob("traces-*/replies.jsonl"))
        return journals[0].read_bytes().count(b"\n") if journals else 0

    calm = stage_runner("calm").start("traces", config, inputs).finish()
    assert calm.statistics["traces"] == NUM_PAIRS
    assert calm.statistics["teachers"] == {model.uri: NUM_PAIRS}

    rough = stage_runner("rough")
    killed = rough.start("traces", config, inputs)
    killed.kill_when(lambda: journalled(killed) >= BATCH)
    num_kept = journalled(killed)
    assert BATCH <= num_kept < NUM_PAIRS

    stopped = rough.start("traces", config, inputs)
    deadline = time.monotonic() + 120
    while journalled(stopped) < num_kept + BATCH:
        assert stopped.process.poll() is None, stopped.log.read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(stopped.process.pid, signal.SIGTERM)
    assert stopped.process.wait(timeout=180) == 75, stopped.log.read_text(encoding="utf-8")[-4000:]

    manifest = rough.start("traces", config, inputs).finish()
    assert manifest.files == calm.files
    assert manifest.statistics == calm.statistics
    traces = s3.storage.fetch(manifest, calm_folder := rough.directory / "fetched")
    assert traces == calm_folder
    assert len({trace.text for trace in read_models(traces / "traces.jsonl", Trace)}) == NUM_PAIRS
