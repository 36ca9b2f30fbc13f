"""The exit handler as a KFP component."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def report(
    status: dsl.PipelineTaskFinalStatus,
    run_id: str,
    experiment: str,
    base_model: str,
    preference_data: str,
    seed: int,
    artifact_root: str,
) -> None:
    """Close the pipeline's run in MLflow with its final status and log one line."""
    from components.report.run import close

    settings: dict[str, str | int] = {"base_model": base_model, "preference_data": preference_data, "seed": seed}
    close(run_id, experiment, status.state, status.error_message, settings, artifact_root)
