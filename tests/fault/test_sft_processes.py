"""SFT in two real processes: the same model as in one, sharded or not; killed, it goes on with as many processes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.core.manifest import Manifest

SECONDS = 400


@dataclass(frozen=True)
class Trained:
    """What a run gave: its log, its weights, its statistics."""

    log: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    statistics: dict[str, Any]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.log]

    def counted(self) -> dict[str, Any]:
        return {name: value for name, value in self.statistics.items() if "loss" not in name and name != "summary"}


@pytest.fixture
def read(s3: Any, tmp_path: Path) -> Callable[[Manifest], Trained]:
    def fetch(manifest: Manifest) -> Trained:
        folder = s3.storage.fetch(manifest, tmp_path / "read" / manifest.uri.rpartition("/sft/")[0][-5:])
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        weights = load_file(folder / "model" / "model.safetensors")
        return Trained(log, {name: weight.float() for name, weight in weights.items()}, dict(manifest.statistics))

    return fetch


def test_two_processes_train_as_one_does_and_a_killed_run_goes_on_with_both(
    stage_runner: Callable[[str], Any],
    has_checkpoint: Callable[[str, int], bool],
    read: Callable[[Manifest], Trained],
    tiny_model: Path,
    examples: Manifest,
) -> None:
    inputs = {"examples": examples}
    config = {
        "base_model": str(tiny_model), "batch_size": 8, "micro_batch_size": 2, "save_steps": 1, "learning_rate": 1e-3,
        "precision": "fp32", "max_length": 4096,
    }  # fmt: skip
    alone = read(stage_runner("alone").start("sft", config | {"processes": 1}, inputs).finish())
    before = {name: weight.float() for name, weight in load_file(tiny_model / "model.safetensors").items()}
    assert alone.losses[0] > alone.losses[-1] + 0.1

    def check(name: str, manifest: Manifest) -> None:
        found = read(manifest)
        # Gradients are summed in another order: losses agree to five digits, bf16 weights to their last bit.
        assert found.losses == pytest.approx(alone.losses, rel=2e-5), name
        assert [row["epoch"] for row in found.log] == [row["epoch"] for row in alone.log]
        assert found.counted() == alone.counted()
        assert found.weights.keys() == alone.weights.keys(), name
        for key, weight in alone.weights.items():
            torch.testing.assert_close(found.weights[key], weight, rtol=2**-7, atol=2e-4, msg=f"{name}: {key}")
            learned, apart = (weight - before[key]).abs().mean(), (found.weights[key] - weight).abs().mean()
            assert apart < 0.01 * learned or weight.dim() == 1, f"{name}: {key}"  # a norm's 1.0 hardly moves in bf16

    check("ddp", stage_runner("ddp").start("sft", config | {"processes": 2}, inputs).finish())
    check("zero2", stage_runner("zero2").start("sft", config | {"processes": 2, "sharding": "zero2"}, inputs).finish())
    runner, sharded = stage_runner("zero3"), config | {"processes": 2, "sharding": "zero3"}
    runner.start("sft", sharded, inputs).kill_when(lambda: has_checkpoint(runner.root, 1))
    refused = runner.start("sft", sharded | {"processes": 1}, inputs)
    assert refused.process.wait(timeout=SECONDS) == 2, refused.log.read_text(encoding="utf-8")[-4000:]
    assert "2 processes" in refused.log.read_text(encoding="utf-8").splitlines()[-1]
    check("zero3", runner.start("sft", sharded, inputs).finish())
