"""SIGTERM to a stage of two real processes: a checkpoint of the step, exit 75, and a rerun as if undisturbed."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.core.errors import Transient
from components.core.manifest import Manifest

SECONDS = 400


def done(status: Path) -> int:
    """Return how many steps a stage says it has done."""
    try:
        return int(json.loads((status / "sft.json").read_text(encoding="utf-8")).get("done", 0))
    except FileNotFoundError:
        return 0


def test_a_preempted_stage_goes_on_from_the_step_it_had_reached(
    stage_runner: Callable[[str], Any], s3: Any, tiny_model: Path, examples: Manifest, tmp_path: Path
) -> None:
    config = {
        "base_model": str(tiny_model), "batch_size": 4, "micro_batch_size": 1, "save_steps": 1000, "epochs": 6,
        "learning_rate": 1e-3, "precision": "fp32", "max_length": 3072, "processes": 2,
    }  # fmt: skip
    runner = stage_runner("preempted")
    runner.environment = {**runner.environment, "REASRM_STATUS": str(tmp_path / "status")}
    stage = runner.start("sft", config, {"examples": examples})
    deadline = time.monotonic() + SECONDS
    while not done(tmp_path / "status"):
        assert stage.process.poll() is None, stage.log.read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(stage.process.pid, signal.SIGTERM)
    code = stage.process.wait(timeout=SECONDS)
    log = stage.log.read_text(encoding="utf-8")
    assert code == Transient.exit_code, log[-4000:]
    kept = [info.uri for info in s3.storage.list(f"{runner.root}/") if info.uri.endswith("/manifest.json")]
    assert len(kept) == 1, kept
    step = int(kept[0].split("/")[-2])
    assert 1 <= step < 36
    assert f"after step {step}, whose checkpoint is in S3" in log
    preempted = runner.start("sft", config, {"examples": examples}).finish()
    calm = stage_runner("calm").start("sft", config, {"examples": examples}).finish()
    assert preempted.entry("metrics.jsonl") == calm.entry("metrics.jsonl")
    assert preempted.entry("model/model.safetensors") == calm.entry("model/model.safetensors")
