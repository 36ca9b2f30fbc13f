"""What prepare tells the DAG: whether there is anything to go on with."""

from components.adapters.entry import run_id_of
from components.core.manifest import Manifest


def conclude(manifest: Manifest, artifact_uri: str, experiment: str) -> bool:
    """Return whether the run goes on; if it does not, tag its run in MLflow, as far as that answers."""
    nothing_new = bool(manifest.statistics.get("nothing_new"))
    if nothing_new:
        from components.adapters.pipeline_run import tag_parent

        tags = {"reasrm.nothing_new": "true", "reasrm.outcome": str(manifest.statistics.get("summary", ""))}
        tag_parent(run_id_of(artifact_uri), experiment, tags)
    return not nothing_new
