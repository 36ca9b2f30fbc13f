"""The benchmark stage as KFP components: the stage, and a part of its work."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def benchmark_part(
    part: str,
    config: str,
    base_model: str,
    benchmarks: str,
    grammar: str,
    seed: int,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    sft: dsl.Input[dsl.Model],
    grpo: dsl.Input[dsl.Model],
) -> str:
    """Let all judges answer a share of the questions, such as "2/4"; `benchmark` finds the answers."""
    from components.adapters.part import run_component_part

    return run_component_part(
        "benchmark",
        part,
        config,
        {"pairs": pairs, "sft": sft, "grpo": grpo},
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"base_model": base_model, "grammar": grammar, "seed": seed},
        json_overrides={"benchmarks": benchmarks},
    )


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def benchmark(
    config: str,
    base_model: str,
    benchmarks: str,
    grammar: str,
    seed: int,
    parts: list[str],
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    sft: dsl.Input[dsl.Model],
    grpo: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    verdicts: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Markdown],
) -> None:
    """Let base, SFT and GRPO models and other judges judge the held-out pairs and the benchmarks, and score them.

    Questions that `parts` asked are not asked again.
    """
    from components.adapters.entry import run_component
    from components.adapters.export import export, log_classification, log_numbers

    manifest = run_component(
        "benchmark",
        config,
        {"pairs": pairs, "sft": sft, "grpo": grpo},
        scores,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"base_model": base_model, "grammar": grammar, "seed": seed},
        json_overrides={"benchmarks": benchmarks},
    )
    log_numbers(manifest, metrics)
    log_classification(manifest, verdicts)
    export(manifest, "report.html", report.path)
    export(manifest, "report.md", table.path)
