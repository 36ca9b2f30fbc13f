"""What is known about a model that is to be released, gathered from the manifests and small files of its ancestors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import InvalidInput
from components.core.judges import in_order
from components.core.manifest import Manifest
from components.core.records import BadRecord, parse_strict, read_models, read_rows
from components.core.schema import PreferencePair
from components.publish.ancestry import Ancestry, find_ancestry
from components.publish.config import Config
from components.publish.examples import Examples, read_examples
from components.publish.gate import Decision
from components.publish.values import sources

if TYPE_CHECKING:
    from components.adapters.stage import Inputs
    from components.adapters.storage import Storage

UNKNOWN = "unknown"
INPUTS = ("pairs", "distillation", "sft", "grpo", "benchmark")


@dataclass(frozen=True)
class Evidence:
    """All that the gate, the card and the report are made from; `traces` is None if its manifest is gone.

    `ancestry` reaches over the models that it was warm-started from to the data of earlier runs.

    `statistics` are those of the benchmark's manifest and `details` is its scores.json. `examples` are the judgments
    that the report shows.
    """

    manifests: Mapping[str, Manifest]
    traces: Manifest | None
    statistics: Mapping[str, Any]
    details: Mapping[str, Any]
    sft_metrics: list[dict[str, Any]]
    grpo_metrics: list[dict[str, Any]]
    examples: Examples
    heldout: Mapping[str, PreferencePair]
    ancestry: Ancestry

    @property
    def start(self) -> Manifest | None:
        """The model of ours that SFT started from; None if that was a base model."""
        return self.ancestry.start(self.manifests["sft"])

    @property
    def first(self) -> Manifest:
        """The SFT manifest of the first model of this line: what that started from is the base model."""
        return self.ancestry.tuned(self.manifests["sft"])[-1]

    @property
    def base_model(self) -> str:
        """The base model that all of this line began with; unknown if a model between is gone."""
        return UNKNOWN if self._is_cut else str(self.first.config.get("base_model") or UNKNOWN)

    @property
    def base_sources(self) -> list[Mapping[str, Any]]:
        """Uri and sha256 of the base model; empty if a model between is gone."""
        return [] if self._is_cut else sources(self.first)

    @property
    def _is_cut(self) -> bool:
        """Whether the first model that is known started from another one."""
        base = str(self.first.config.get("base_model", "")).rstrip("/")
        uris = [str(source.get("uri", "")).rstrip("/") for source in sources(self.first)]
        return any(uri.startswith("s3://") and uri != base for uri in uris)

    @property
    def earlier(self) -> list[Manifest]:
        """The pairs of earlier runs that the model has learned from too."""
        now = self.manifests["pairs"].uri
        return [manifest for manifest in self.ancestry.found if manifest.stage == "prepare" and manifest.uri != now]

    @property
    def lineage(self) -> dict[str, Manifest]:
        """The ancestors by name, in the order in which they were made."""
        named = {"pairs": self.manifests["pairs"]} | ({"traces": self.traces} if self.traces else {})
        return named | {name: self.manifests[name] for name in INPUTS[1:]}


@dataclass(frozen=True)
class Release:
    """A model with the gate's decision and its version in the registry.

    `refusal` says why a version that passed was not promoted; `replaces` names the champion whose place it took, and
    `started_from` the registered version that SFT started from.
    """

    config: Config
    evidence: Evidence
    decision: Decision
    version: str
    run_key: str
    refusal: str = ""
    replaces: str = ""
    started_from: str = ""

    @property
    def model(self) -> Manifest:
        """The manifest of the released model."""
        return self.evidence.manifests[self.config.judge]

    @property
    def promoted(self) -> bool:
        """Whether this version got the alias."""
        return self.decision.passed and self.config.promote and not self.refusal

    @property
    def outcome(self) -> str:
        """Say in words what became of the alias."""
        alias = f"the alias {self.config.alias}"
        if self.promoted:
            former = f"; before it pointed to {self.replaces}, where a rollback goes" if self.replaces else ""
            return f"{alias[0].upper()}{alias[1:]} points to this version{former}."
        if self.refusal:
            return f"{alias[0].upper()}{alias[1:]} was not moved: {self.refusal}."
        if self.decision.passed:
            return f"This run only registers: {alias} was not moved."
        return f"The version is registered as rejected, for the record; {alias} was not moved."


def gather(inputs: "Inputs", storage: "Storage", config: Config) -> Evidence:
    """Read manifests, scores, metrics, the verdicts to be shown and held-out pairs; never the weights.

    Raises InvalidInput if an input is missing, or if the scores are not those of the model that would be released.
    """
    missing = [name for name in INPUTS if name not in inputs]
    if missing:
        raise InvalidInput(f"publish misses the inputs {missing}; give it all of {list(INPUTS)}")
    manifests = {name: inputs[name] for name in INPUTS}
    _check_identity(manifests, config.judge)
    details = parse_strict((inputs.fetch("benchmark", only=["scores.json"]) / "scores.json").read_bytes())
    path = inputs.fetch("pairs", only=["heldout.jsonl"]) / "heldout.jsonl"
    heldout = {pair.key: pair for pair in read_models(path, PreferencePair)}
    ancestry = find_ancestry(manifests.values(), storage)
    made_from = manifests["distillation"].parents.get("traces")
    return Evidence(
        manifests=manifests,
        traces=ancestry.opened(made_from.uri) if made_from else None,
        statistics=manifests["benchmark"].statistics,
        details=details,
        sft_metrics=_metrics(inputs, "sft"),
        grpo_metrics=_metrics(inputs, "grpo"),
        examples=_examples(inputs, details["models"], heldout, config),
        heldout=heldout,
        ancestry=ancestry,
    )


def _check_identity(manifests: Mapping[str, Manifest], judge: str) -> None:
    model, benchmark = manifests[judge], manifests["benchmark"]
    judged = benchmark.parents.get(judge)
    if judged is None or judged.digest != model.digest:
        found = judged.uri if judged else "no model"
        raise InvalidInput(
            f"the benchmark {benchmark.uri} judged {found} as {judge!r}, not {model.uri}; "
            "publish the model that was benchmarked, or run the benchmark on this one"
        )
    if not any(entry.path.startswith("model/") and entry.path.endswith(".safetensors") for entry in model.files):
        raise InvalidInput(f"{model.uri} has no model/*.safetensors to release; give the manifest of a training stage")


def _examples(inputs: "Inputs", models: list[str], heldout: Mapping[str, PreferencePair], config: Config) -> Examples:
    if not config.num_examples:
        return {}
    names = {model: f"verdicts/{model}.jsonl.gz" for model in in_order({*models, config.judge})}
    missing = sorted(set(names.values()) - {entry.path for entry in inputs["benchmark"].files})
    if missing:
        raise InvalidInput(f"{inputs['benchmark'].uri} has no {', '.join(missing)}; run the benchmark again")
    folder = inputs.fetch("benchmark", only=list(names.values()))
    files = {model: folder / name for model, name in names.items()}
    return read_examples(files, heldout, config.judge, config.num_examples)


def _metrics(inputs: "Inputs", name: str) -> list[dict[str, Any]]:
    if all(entry.path != "metrics.jsonl" for entry in inputs[name].files):
        return []
    path: Path = inputs.fetch(name, only=["metrics.jsonl"]) / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for item in read_rows(file, f"{name}/metrics.jsonl"):
            if isinstance(item, BadRecord):
                raise InvalidInput(f"{item.place}: {item.reason}; run {name} again to write its metrics anew")
            rows.append(item[1])
    return rows
