"""A tree as OpenLineage: one COMPLETE event for each stage that made an artifact, oldest work first.

The names of datasets are those of the OpenLineage naming rules for S3: the bucket is the namespace, the key the name.
What OpenLineage has no facet for stands in facets of our own (`reasrm_*`), which consumers keep or pass over.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from components.core.errors import Damaged
from components.core.manifest import Manifest, earlier_of
from components.core.redact import redact
from pipeline.lineage.verify import Finding
from pipeline.lineage.walk import CHAMPION, REGISTRY, SOURCE, LineageNode, artifacts, sources_of

SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
CUSTOM = {kind: f"{SPEC}/2-0-2/OpenLineage.json#/$defs/{kind}Facet" for kind in ("Run", "Dataset")}
PRODUCER = "urn:reasrm:lineage"
JOB_NAMESPACE = "reasrm"
_MLFLOW_RUN_ID = re.compile(r"[0-9a-f]{32}")
FindTime = Callable[[str], datetime | None]


def to_json(
    tree: LineageNode,
    below: Iterable[LineageNode],
    events: Iterable[dict[str, Any]],
    findings: Iterable[Finding] | None = None,
) -> str:
    """Return all that is known as one JSON object.

    `tree` is upward, `made_from_it` downward, `events` are for OpenLineage, `verified` is what hashing found, null
    where it was not done.
    """
    found = {
        "tree": asdict(tree),
        "made_from_it": [asdict(node) for node in below],
        "verified": None if findings is None else [asdict(finding) for finding in findings],
        "events": list(events),
    }
    return json.dumps(found, indent=1, ensure_ascii=False)


def events(trees: Iterable[LineageNode], open_manifest: Callable[[str], Manifest | None], when: FindTime) -> list[Any]:
    """Return the events of all artifacts of some trees, in the order in which they were committed.

    `when` says when an artifact's manifest was written. A stage without a manifest that can be read has no event.
    """
    nodes = {node.uri: node for tree in trees for node in artifacts(tree)}
    found = []
    for node in nodes.values():
        try:
            manifest = open_manifest(node.uri)
        except Damaged:  # the tree says so
            continue
        committed = when(node.uri) if manifest is not None else None
        if manifest is not None and committed is not None:
            found.append(_event(node, manifest, committed))
    return sorted(found, key=lambda event: (event["eventTime"], event["job"]["name"]))


def _event(node: LineageNode, manifest: Manifest, committed: datetime) -> dict[str, Any]:
    parents = (*manifest.parents.values(), *earlier_of(manifest).values())
    inputs = [_dataset(parent.uri, parent.digest) for parent in parents]
    inputs += [
        _dataset(source.uri, source.digest, place=REGISTRY if CHAMPION in source.statistics else "file")
        for source in sources_of(manifest)
    ]
    work = {
        "runKey": manifest.run_key,
        "codeVersion": manifest.code_version,
        "config": json.loads(redact(json.dumps(manifest.config))),
        "statistics": node.statistics,
    }
    return {
        "eventType": "COMPLETE",
        "eventTime": committed.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "producer": PRODUCER,
        "schemaURL": EVENT,
        "run": {"runId": run_id(node, manifest), "facets": {"reasrm_work": _facet(CUSTOM["Run"], **work)}},
        "job": {
            "namespace": JOB_NAMESPACE,
            "name": manifest.stage,
            "facets": {
                "jobType": _facet(
                    f"{SPEC}/facets/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
                    processingType="BATCH",
                    integration="REASRM",
                    jobType="TASK",
                )
            },
        },
        "inputs": inputs,
        "outputs": [
            {
                **_dataset(manifest.uri, manifest.digest, kind=manifest.kind, problem=node.problem),
                "outputFacets": {
                    "outputStatistics": _facet(
                        f"{SPEC}/facets/1-0-2/OutputStatisticsOutputDatasetFacet.json"
                        "#/$defs/OutputStatisticsOutputDatasetFacet",
                        size=sum(entry.size for entry in manifest.files),
                        fileCount=len(manifest.files),
                    )
                },
            }
        ],
    }


def run_id(node: LineageNode, manifest: Manifest) -> str:
    """Return the run's UUID: MLflow's id of it where it is known, else one made from the work's name."""
    known = node.mlflow_run_id or ""
    if _MLFLOW_RUN_ID.fullmatch(known):
        return str(uuid.UUID(known))
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{manifest.uri}#{manifest.run_key}"))


def _dataset(uri: str, digest: str, *, kind: str = "", problem: str = "", place: str = "file") -> dict[str, Any]:
    """Return a dataset; `place` is the namespace of what has no uri of the form scheme://."""
    uri = redact(uri)
    scheme, _, rest = uri.partition("://")
    host, _, name = rest.partition("/")
    version = _facet(
        f"{SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet", datasetVersion=digest
    )
    facets = {"version": version} if digest else {}
    if kind or problem:
        facets["reasrm_artifact"] = _facet(CUSTOM["Dataset"], kind=kind or SOURCE, problem=problem)
    named = (f"{scheme}://{host}", name or "/") if rest else (place, uri)
    return {"namespace": named[0], "name": named[1], "facets": facets}


def _facet(schema: str, **values: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": schema, **values}
