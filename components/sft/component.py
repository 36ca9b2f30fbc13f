"""The SFT stage as a KFP component."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def sft(
    config: str,
    base_model: str,
    warm_start: str,
    seed: int,
    content: str,
    training_job: str,
    artifact_root: str,
    experiment: str,
    examples: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
) -> None:
    """Fine-tune the base model on the kept traces."""
    from components.adapters.entry import run_component

    run_component(
        "sft",
        config,
        {"examples": examples},
        model,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"base_model": base_model, "warm_start": warm_start, "seed": seed},
        content=content,
        training_job=training_job,
    )
