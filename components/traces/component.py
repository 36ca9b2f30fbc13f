"""The traces stage as KFP components: the stage, and a part of its work."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def traces_part(
    part: str,
    config: str,
    teacher: str,
    grammar: str,
    content: str,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
) -> str:
    """Ask the teacher about a share of the pairs, such as "2/4"; `traces` finds the answers."""
    from components.adapters.part import run_component_part

    return run_component_part(
        "traces",
        part,
        config,
        {"pairs": pairs},
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"grammar": grammar},
        json_overrides={"teacher": teacher},
        content=content,
    )


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def traces(
    config: str,
    teacher: str,
    grammar: str,
    content: str,
    parts: list[str],
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    traces: dsl.Output[dsl.Dataset],
) -> None:
    """Ask the teacher for a written judgment of each pair of the part that is set, but for those that `parts` asked."""
    from components.adapters.entry import run_component

    run_component(
        "traces",
        config,
        {"pairs": pairs},
        traces,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"grammar": grammar},
        json_overrides={"teacher": teacher},
        content=content,
    )
