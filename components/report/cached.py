"""The stages that did not run because KFP had their results in its cache: they too get a run in MLflow, which says so.

KFP tells nobody. But the stages that did run know what they read, and its manifests know what they were made from; so a
stage that must have been there and has no run is one that KFP took from its cache.
"""

import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.adapters.pipeline_run import Told
from components.adapters.stage import describe_inputs, tracked
from components.adapters.tracking import StageOutput
from components.core.manifest import Manifest

if TYPE_CHECKING:
    from components.adapters.storage import Storage

EDGES = frozenset({"pairs", "traces", "examples", "distillation", "sft", "grpo"})
"""Names of inputs that come from a stage of the same run."""
WHY = (
    "KFP took the result of an earlier run from its cache (or the stage ran, and could tell neither MLflow nor S3: "
    "then its curves are lost)"
)


def record_cached(
    run_id: str, experiment: str, told: Told, storage: "Storage", but: Collection[str] = ()
) -> list[StageOutput]:
    """Make the runs of a pipeline run's cached stages, and return what they made. Raises Transient or InvalidInput.

    `told` is what MLflow knows of the run. The stages of `but` are known to have run: it only did not hear of it yet.
    """
    uris = told.inputs | {made.uri for made in told.outputs}
    cached = {stage: made for stage, made in _behind(uris, storage).items() if stage not in {*told.stages, *but}}
    for manifest in cached.values():
        _record(manifest, run_id, experiment, storage)
    return [StageOutput(stage, made.uri, made.digest, "", True) for stage, made in sorted(cached.items())]


def _behind(uris: Iterable[str], storage: "Storage") -> dict[str, Manifest]:
    """Return by stage what a run's work was made from; of two artifacts of one stage the nearer one."""
    found: dict[str, Manifest] = {}
    waiting, seen = deque(sorted(uris)), set(uris)
    while waiting:
        manifest = storage.open(waiting.popleft())
        if manifest is None:
            continue
        found.setdefault(manifest.stage, manifest)
        above = [parent.uri for name, parent in manifest.parents.items() if name in EDGES and parent.uri not in seen]
        waiting += above
        seen.update(above)
    return found


def _record(manifest: Manifest, run_id: str, experiment: str, storage: "Storage") -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        tracked(run_id, run_id, manifest.stage, experiment, Path(folder), is_own_task=False) as tracking,
    ):
        tracking.set_tags({"reasrm.cached": "kfp"})
        inputs = {name: storage.open(parent.uri) for name, parent in manifest.parents.items()}
        describe_inputs(manifest.stage, {name: made for name, made in inputs.items() if made}, tracking)
        statistics: Mapping[str, Any] = manifest.statistics
        for source in statistics.get("sources") or ():
            tracking.log_source(str(source["uri"]), str(source["sha256"]))
        tracking.log_reused(manifest, WHY)
