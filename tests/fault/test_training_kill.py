"""kill -9 during SFT: the rerun resumes and ends with the same losses and weights."""

from collections.abc import Callable
from pathlib import Path

from components.core.manifest import Manifest


def test_killed_sft_ends_with_the_same_losses_and_weights(
    run_with_kills: Callable[..., tuple[Manifest, Manifest]], tiny_model: Path, examples: Manifest
) -> None:
    config = {
        "base_model": str(tiny_model), "batch_size": 2, "micro_batch_size": 2, "save_steps": 1,
        "learning_rate": 1e-3, "precision": "fp32", "max_length": 1024, "packing": True,
    }  # fmt: skip
    calm, killed = run_with_kills("sft", config, {"examples": examples}, steps=6, seed=1)
    assert calm.entry("metrics.jsonl") == killed.entry("metrics.jsonl")
    assert calm.model_copy(update={"uri": ""}) == killed.model_copy(update={"uri": ""})
