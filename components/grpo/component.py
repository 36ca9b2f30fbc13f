"""The GRPO stage as a KFP component."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def grpo(
    config: str,
    grammar: str,
    seed: int,
    content: str,
    training_job: str,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    sft: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    examples: dsl.Input[dsl.Dataset] = None,
) -> None:
    """Reinforce the judgments that reach the right verdict."""
    from components.adapters.entry import run_component

    run_component(
        "grpo",
        config,
        {"pairs": pairs, "sft": sft, **({"examples": examples} if examples else {})},
        model,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"grammar": grammar, "seed": seed},
        content=content,
        training_job=training_job,
    )
