"""The filter stage as a KFP component."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def filter(
    config: str,
    grammar: str,
    content: str,
    artifact_root: str,
    experiment: str,
    pairs: dsl.Input[dsl.Dataset],
    traces: dsl.Input[dsl.Dataset],
    examples: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    attempts: dsl.Input[dsl.Dataset] = None,
) -> None:
    """Keep the traces that reach the right verdict in the right form, as examples to learn from."""
    from components.adapters.entry import run_component
    from components.adapters.export import export

    manifest = run_component(
        "filter",
        config,
        {"pairs": pairs, "traces": traces, **({"attempts": attempts} if attempts else {})},
        examples,
        artifact_root=artifact_root,
        experiment=experiment,
        overrides={"grammar": grammar},
        content=content,
    )
    export(manifest, "report.html", report.path)
