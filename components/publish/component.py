"""The gate and the publish stage as KFP components."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def gate(
    config: str,
    model_name: str,
    scores: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Markdown],
) -> NamedTuple("Gate", [("passed", bool), ("reasons", str)]):  # type: ignore[valid-type]
    """Decide from the benchmark's scores whether the model may become the champion."""
    from components.publish.ask import ask

    return ask(config, model_name, scores.path, decision.path)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def publish(
    config: str,
    model_name: str,
    promote: bool,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    distillation: dsl.Input[dsl.Dataset],
    sft: dsl.Input[dsl.Model],
    grpo: dsl.Input[dsl.Model],
    benchmark: dsl.Input[dsl.Artifact],
    release: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    card: dsl.Output[dsl.Markdown],
) -> None:
    """Register the model with its report and card; move the alias if it passes all checks."""
    from components.adapters.entry import run_component
    from components.adapters.export import export

    manifest = run_component(
        "publish",
        config,
        {"pairs": pairs, "distillation": distillation, "sft": sft, "grpo": grpo, "benchmark": benchmark},
        release,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"model_name": model_name, "promote": promote},
    )
    export(manifest, "report.html", report.path)
    export(manifest, "model_card.md", card.path)
