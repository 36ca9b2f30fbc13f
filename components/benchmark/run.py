"""Let every judge judge the held-out pairs, the benchmarks and the attacked pairs, and score them side by side."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.adapters.stage import Inputs, Output
from components.benchmark.against import against_champion
from components.benchmark.attacks import AttackedPair, attacked
from components.benchmark.config import Config
from components.benchmark.contenders import JUDGES, Contender, contenders
from components.benchmark.injection import robustness
from components.benchmark.items import HELDOUT, LoadedSuite, load_suites
from components.benchmark.judging import Speed, judge_pairs
from components.benchmark.report import collect, confusion, mlflow_metrics, render_markdown, render_report, roc
from components.benchmark.results import Result, result, suite_entry
from components.benchmark.verdicts import read_verdicts, verdicts_path, write_verdicts
from components.core.records import write_jsonl
from components.core.schema import PreferencePair

logger = logging.getLogger(__name__)

INJECTION = "injection"
SETTINGS = {"votes", "temperature", "max_tokens", "grammar", "engine", "confidence", "num_resamples", "seed"}
HEADLINES = ("accuracy", "strict_accuracy", "valid_rate", "position_consistency")


@dataclass(frozen=True)
class Work:
    """What is judged."""

    suites: Sequence[LoadedSuite]
    attacks: Sequence[AttackedPair]

    @property
    def sets(self) -> dict[str, Sequence[PreferencePair]]:
        """All pairs by the name of their suite."""
        suites: dict[str, Sequence[PreferencePair]] = {suite.name: suite.pairs for suite in self.suites}
        return suites | ({INJECTION: self.attacks} if self.attacks else {})


@dataclass(frozen=True)
class Judged:
    """What came of one judge: its results by suite, and what figures of KFP need."""

    results: Mapping[str, Result]
    injection: Mapping[str, Any] | None
    confusion: tuple[list[str], list[list[int]]]


def run(config: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Write `scores.json`, `verdicts/<judge>.jsonl.gz`, `report.html` and `report.md`, and return the statistics.

    A row of a benchmark that cannot be read is put into `quarantine.jsonl`.
    """
    work, put_aside = load_work(config, inputs, output)
    suites = work.suites
    write_jsonl(output.directory / "quarantine.jsonl", put_aside)
    judges = contenders(config, inputs, output)
    judged = {judge.name: _judge(judge, work, config, output) for judge in judges}
    scores = _scores(work, judged, config, output)
    text = json.dumps(scores, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (output.directory / "scores.json").write_text(text + "\n", encoding="utf-8")
    _write_reports(scores, work, judges, config, output)
    _log(scores, judges, inputs, output)
    found = scores["suites"][HELDOUT]["measures"]
    output.summary = f"{len(suites[0].pairs)} pairs in both orders, accuracy " + ", ".join(
        f"{name} {measures['accuracy']['value']:.0%}" for name, measures in found.items()
    )
    digests = {judge.name: judge.digest for judge in judges if judge.digest}
    champion = against_champion(config.champion, output.sources, digests, scores["suites"][HELDOUT])
    return _statistics(scores, judged[config.models[-1]], len(suites[0].pairs)) | {"champion": champion}


def load_work(config: Config, inputs: Inputs, output: Output) -> tuple[Work, list[dict[str, Any]]]:
    """Return what is judged, and the rows of benchmarks that were put aside. Raises what `load_suites` does."""
    suites, put_aside = load_suites(config, inputs, output.storage, output.workdir / "sources")
    return Work(suites, attacked(suites[0].pairs, config.attacks, config.max_attacked)), put_aside


def log_speed(judge: Contender, speed: Speed, output: Output) -> None:
    """Tell the log and MLflow how fast a judge answered."""
    measured = speed.metrics(judge.dollars_per_hour)
    logger.info("%s: %s", judge.name, ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    output.tracking.log_metrics({f"{judge.name}.speed.{name}": value for name, value in measured.items()})


def forget_model(judge: Contender, output: Output) -> None:
    """Delete the copy of a judge's model on this disk."""
    shutil.rmtree(output.workdir / JUDGES / judge.name, ignore_errors=True)


def _judge(judge: Contender, work: Work, config: Config, output: Output) -> Judged:
    """Let one judge judge everything, keep its verdicts in a file, and score it."""
    judgments = judge_pairs(
        judge.name, judge.judge, judge.key, work.sets, config, output, lambda speed: log_speed(judge, speed, output)
    )
    forget_model(judge, output)
    write_verdicts(verdicts_path(output.directory, judge.name), (one for those in judgments.values() for one in those))
    results = {}
    with output.progress.bar(f"suites of {judge.name} scored", total=len(work.suites)):
        for suite in work.suites:
            results[suite.name] = result(suite, judgments[suite.name], config, judge.price)
            output.progress.advance(1)
    under_attack = None
    if work.attacks:
        under_attack = robustness(work.attacks, judgments[INJECTION], judgments[HELDOUT], config.confidence)
    return Judged(results, under_attack, confusion(judgments[HELDOUT]))


def _scores(work: Work, judged: Mapping[str, Judged], config: Config, output: Output) -> dict[str, Any]:
    suites = {}
    with output.progress.bar("suites compared", total=len(work.suites)):
        for suite in work.suites:
            results = {name: found.results[suite.name] for name, found in judged.items()}
            suites[suite.name] = suite_entry(suite, results, config)
            output.progress.advance(1)
    return {
        "models": list(judged),
        "suites": suites,
        "injection": {name: found.injection for name, found in judged.items() if found.injection is not None},
        "settings": config.model_dump(mode="json", include=SETTINGS),
    }


def _write_reports(
    scores: Mapping[str, Any], work: Work, judges: Sequence[Contender], config: Config, output: Output
) -> None:
    shown = {
        (name, one.key): one
        for name, pairs in work.sets.items()
        for pair in pairs
        for one in (pair.shown(False), pair.shown(True))
    }
    files = [verdicts_path(output.directory, judge.name) for judge in judges]
    examples = collect(
        shown, lambda: (one for file in files for one in read_verdicts(file)), scores["models"], config.num_browsable
    )
    (output.directory / "report.html").write_text(render_report(scores, examples), encoding="utf-8")
    (output.directory / "report.md").write_text(render_markdown(scores), encoding="utf-8")
    for name in ("scores.json", "report.html", "report.md"):
        output.tracking.log_artifact(output.directory / name)


def _log(scores: Mapping[str, Any], judges: Sequence[Contender], inputs: Inputs, output: Output) -> None:
    """Log the scores to the stage's run, and those of the run's artifacts to the models themselves."""
    pairs = inputs["pairs"]
    metrics = mlflow_metrics(scores)
    for judge in judges:
        measured = metrics[judge.name]
        output.tracking.log_metrics({f"{judge.name}.{name}": value for name, value in measured.items()})
        if judge.digest:
            output.tracking.log_scores(judge.digest, measured, (HELDOUT, pairs.uri, pairs.digest))


def _statistics(scores: Mapping[str, Any], last: Judged, num_pairs: int) -> dict[str, Any]:
    """Return what the gate, KFP's figures and the screen need; `last` is the run's last own model."""
    measures = scores["suites"][HELDOUT]["measures"]
    categories, matrix = last.confusion
    fpr, tpr, thresholds = roc(last.results[HELDOUT].votes.values())
    return {
        "num_pairs": num_pairs,
        "scores": measures,
        "suites": {
            name: {
                model: {protocol: parts["score"]["value"] for protocol, parts in protocols.items()}
                for model, protocols in entry["scores"].items()
            }
            for name, entry in scores["suites"].items()
            if name != HELDOUT
        },
        "injection": scores["injection"],
        "longer_baseline": scores["suites"][HELDOUT]["longer_baseline"],
        "numbers": {f"{model}_{name}": found[name]["value"] for model, found in measures.items() for name in HEADLINES},
        "confusion": {"categories": categories, "matrix": matrix},
        "roc": {"fpr": fpr, "tpr": tpr, "thresholds": thresholds} if fpr else None,
    }
