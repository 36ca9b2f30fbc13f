"""What the run of the whole pipeline shows in MLflow: how it ended, what its stages did, the main numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.adapters.tracking import StageOutput
from components.core.manifest import STAGES, Manifest

if TYPE_CHECKING:
    from components.adapters.storage import Storage


NO_STAGE = (
    "No stage told MLflow anything. If the run succeeded, KFP took the result of `prepare` from its cache, which had "
    "found nothing new to learn; or MLflow was away all the time."
)


@dataclass(frozen=True)
class Summary:
    """The description (Markdown), metrics, tags and model of a pipeline run."""

    description: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    """Digest of the manifest of the model that was registered."""


def summarise(made: Iterable[StageOutput], storage: "Storage") -> Summary:
    """Return what the stages of a run made of it. Raises Transient or InvalidInput where S3 is away."""
    outputs = sorted((one for one in made if one.stage in STAGES), key=lambda one: STAGES.index(one.stage))
    if not outputs:
        return Summary(NO_STAGE)
    manifests = {one.stage: storage.open(one.uri) for one in outputs}
    told = {stage: manifest.statistics if manifest else {} for stage, manifest in manifests.items()}
    published = told.get("publish", {})
    headline = _headline(published, told.get("prepare", {}))
    return Summary(
        f"{headline}\n\n{_table(outputs, told)}",
        _metrics(published),
        _tags(published, told.get("prepare", {})),
        _model(manifests.get("publish")),
    )


def _headline(published: Mapping[str, Any], prepared: Mapping[str, Any]) -> str:
    if published:
        gate = "The gate is passed." if published["passed"] else "**The gate is not passed.**"
        lines = [f"**{published['model_name']} version {published['version']}.** {gate} {published['outcome']}"]
        return "\n".join([*lines, *(f"- {reason}" for reason in published["reasons"])])
    if prepared.get("nothing_new"):
        return "There was nothing new to learn, and the run ended well."
    return "The run did not come to a model: see which stage is missing below, and `reasrm.error` among the tags."


def _table(outputs: Sequence[StageOutput], told: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| stage | result | |", "|---|---|---|"]
    for one in outputs:
        summary = str(told[one.stage].get("summary", "")).replace("|", "\\|").replace("\n", " ")
        rows.append(f"| {one.stage} | {summary} | {'used again' if one.reused else ''} |")
    return "\n".join(rows)


def _metrics(published: Mapping[str, Any]) -> dict[str, float]:
    values = {check["name"].replace(" ", "_"): check["value"] for check in published.get("checks", ())}
    numbers = {name: float(value) for name, value in values.items() if value is not None}
    decided = {name: float(published[name]) for name in ("passed", "promoted") if name in published}
    return numbers | decided


def _tags(published: Mapping[str, Any], prepared: Mapping[str, Any]) -> dict[str, str]:
    if prepared.get("nothing_new"):
        return {"reasrm.nothing_new": "true", "reasrm.outcome": str(prepared.get("summary", ""))}
    if not published:
        return {}
    gate = "passed" if published["passed"] else "rejected"
    return {"reasrm.gate": gate, "reasrm.model_version": f"{published['model_name']}/{published['version']}"}


def _model(published: Manifest | None) -> str:
    parent = published.parents.get(str(published.statistics.get("judge"))) if published else None
    return parent.digest if parent else ""
