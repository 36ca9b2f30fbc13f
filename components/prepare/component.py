"""The prepare stage as a KFP component."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def prepare(
    config: str,
    preference_data: str,
    data_until: str,
    benchmarks: str,
    seed: int,
    content: str,
    since: str,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Output[dsl.Dataset],
) -> bool:
    """Clean the preference pairs and split them into distillation, RL and held-out parts; say if anything is new."""
    from components.adapters.entry import run_component
    from components.prepare.outcome import conclude

    manifest = run_component(
        "prepare",
        config,
        {},
        pairs,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"seed": seed, "data_until": data_until, "since": since},
        json_overrides={"sources": preference_data, "benchmarks": benchmarks},
        content=content,
    )
    return conclude(manifest, pairs.uri, experiment)
