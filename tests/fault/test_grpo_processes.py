"""GRPO in two real processes, sharded or not, does what one does; SIGTERM within a rollout loses nothing."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from components.core.manifest import Manifest

# A random model is never right; whether it ends in time differs, so that some groups have an advantage.
CONFIG = {
    "steps": 4, "prompts_per_step": 4, "num_generations": 4, "micro_batch_size": 2, "save_steps": 1,
    "max_completion_tokens": 64, "learning_rate": 1e-3, "precision": "fp32",
    "rewards": {"overlong": 1.0, "overlong_tokens": 60},
}  # fmt: skip

SECONDS = 400


def log_of(s3: Any, manifest: Manifest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in s3.storage.read_bytes(f"{manifest.uri}/metrics.jsonl").splitlines()]


def test_two_processes_do_what_one_does(
    stage_runner: Callable[[str], Any], s3: Any, tiny_artifact: Manifest, rl_pairs: Manifest
) -> None:
    config = CONFIG | {
        "orders": "both", "updates_per_step": 2, "resample_rounds": 1, "steps": 2,
        "prompts_per_step": 8, "num_generations": 2,  # each of two processes has a whole pair for each update
        "max_completion_tokens": 32, "rewards": {"overlong": 1.0, "overlong_tokens": 28},
    }  # fmt: skip
    inputs = {"pairs": rl_pairs, "sft": tiny_artifact}
    alone = log_of(s3, stage_runner("alone").start("grpo", config, inputs).finish())
    assert sum(row["num_replaced"] for row in alone) > 0
    for name, sharding in (("ddp", "none"), ("zero3", "zero3")):
        settings = config | {"processes": 2, "sharding": sharding}
        found = log_of(s3, stage_runner(name).start("grpo", settings, inputs).finish())
        for one, two in zip(alone, found, strict=True):
            same = ("reward", "completion_tokens", "num_drawn", "num_replaced", "no_signal_rate")
            assert {key: two[key] for key in same} == pytest.approx({key: one[key] for key in same}, rel=1e-6), name
            # Gradients are summed in another order.
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6), name
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4, abs=1e-6), name


def test_sigterm_within_a_rollout_is_resumable(
    stage_runner: Callable[[str], Any],
    has_checkpoint: Callable[[str, int], bool],
    tiny_artifact: Manifest,
    rl_pairs: Manifest,
) -> None:
    config = CONFIG | {"steps": 3, "updates_per_step": 2, "rollouts": {"batch_size": 1}}
    inputs = {"pairs": rl_pairs, "sft": tiny_artifact}
    calm = stage_runner("calm").start("grpo", config, inputs).finish()
    runner = stage_runner("stopped")
    attempt = runner.start("grpo", config, inputs)
    deadline = time.monotonic() + SECONDS
    while not has_checkpoint(runner.root, 1):  # the next rollout has begun, or is about to
        assert attempt.process.poll() is None and time.monotonic() < deadline, attempt.log.read_text()[-4000:]
        time.sleep(0.01)
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.process.wait(timeout=SECONDS) == 75, attempt.log.read_text(encoding="utf-8")[-4000:]
    done = runner.start("grpo", config, inputs).finish()
    assert calm.entry("metrics.jsonl") == done.entry("metrics.jsonl")
    assert calm.model_copy(update={"uri": ""}) == done.model_copy(update={"uri": ""})
