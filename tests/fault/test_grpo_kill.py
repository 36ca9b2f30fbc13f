"""kill -9 during GRPO: the rerun resumes and ends with the same losses and weights."""

from collections.abc import Callable

from components.core.manifest import Manifest

# A random model is never right; whether it ends in time differs, so that some groups have an advantage.
CONFIG = {
    "steps": 4, "updates_per_step": 2, "prompts_per_step": 4, "num_generations": 4, "micro_batch_size": 2,
    "save_steps": 1, "max_completion_tokens": 64, "learning_rate": 1e-3, "precision": "fp32",
    "rewards": {"overlong": 1.0, "overlong_tokens": 60},
}  # fmt: skip


def test_killed_grpo_ends_with_the_same_losses_and_weights(
    run_with_kills: Callable[..., tuple[Manifest, Manifest]],
    tiny_artifact: Manifest,
    rl_pairs: Manifest,
) -> None:
    inputs = {"pairs": rl_pairs, "sft": tiny_artifact}
    calm, killed = run_with_kills("grpo", CONFIG, inputs, steps=4, seed=2)
    assert calm.statistics["no_signal_rate"] < 1  # rewards differ, so weights move
    assert calm.entry("metrics.jsonl") == killed.entry("metrics.jsonl")
    assert calm.model_copy(update={"uri": ""}) == killed.model_copy(update={"uri": ""})
