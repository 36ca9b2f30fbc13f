"""The benchmark stage as a KFP component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def benchmark(
    config: str,
    base_model: str,
    grammar: str,
    seed: int,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    sft: dsl.Input[dsl.Model],
    grpo: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Let base, SFT and GRPO models judge the held-out pairs, and score them."""
    from components.adapters.entry import run_component

    manifest = run_component(
        "benchmark",
        config,
        {"pairs": pairs, "sft": sft, "grpo": grpo},
        scores,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"base_model": base_model, "grammar": grammar, "seed": seed},
    )
    scores_by_model: Any = manifest.statistics["scores"]
    for name, measured in scores_by_model.items():
        for score in ("accuracy", "strict_accuracy", "valid_rate", "position_consistency"):
            metrics.log_metric(f"{name}_{score}", measured[score]["value"])
