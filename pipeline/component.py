"""The preflight stage as a KFP component. It stands here, not among the stages, because it knows all of them."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def preflight(
    preference_data: str,
    benchmarks: str,
    base_model: str,
    teacher: str,
    grammar: str,
    model_name: str,
    artifact_root: str,
    experiment: str,
    seed: int,
    prepare_config: str,
    traces_config: str,
    filter_config: str,
    sft_config: str,
    grpo_config: str,
    benchmark_config: str,
    publish_config: str,
    data_until: str,
    traces_parts: list[str],
    benchmark_parts: list[str],
    teacher_secret: str,
    gpu_type: str,
    gpus: str,
    machine_cpu: str,
    machine_memory: str,
    node_selector: dict[str, str],
    tolerations: list[dict],  # type: ignore[type-arg]
    scheduled: str,
    run_name: str,
    placement: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Found",
    [
        ("prepare", str),
        ("traces", str),
        ("filter", str),
        ("sft", str),
        ("grpo", str),
        ("data_until", str),
        ("training_job", str),
        ("since", str),
        ("warm_start", str),
    ],
):
    """Check all that the run needs, before it asks for a GPU, and give the digests of what the stages will read."""
    parameters = dict(locals())
    from pipeline.preflight import preflight as check

    return check(parameters)
