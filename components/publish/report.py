"""The report: one HTML file that needs no network, in which no text of a model or of the data can become markup."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from components.core.redact import redact
from components.publish import figures
from components.publish.examples import collect
from components.publish.release import (
    MODELS,
    Release,
    counts,
    interval,
    percent,
    sources,
    value_of,
    visible,
    waterfall,
)

TEMPLATE = "report.html.jinja"
# Key in the scores, heading, meaning.
COLUMNS = (
    ("accuracy", "Accuracy", "share of right verdicts, mean over both orders; no verdict counts as wrong"),
    ("strict_accuracy", "Strict accuracy", "share of pairs judged right in both orders"),
    ("valid_rate", "Valid", "share of judgments that end with exactly one verdict"),
    ("position_consistency", "Consistent", "share of pairs for which both orders name the same answer"),
    ("first_slot_rate", "Picks first", "share of verdicts for the answer shown first; 50% has no position bias"),
)


def render_report(release: Release) -> str:
    """Return the report as HTML; equal evidence gives equal text."""
    evidence = release.evidence
    page = _template().render(
        release=release,
        config=release.config,
        decision=release.decision,
        models=MODELS,
        columns=COLUMNS,
        scores={model: evidence.scores[model] for model in MODELS if model in evidence.scores},
        categories=category_rows(release),
        confidence=evidence.manifests["benchmark"].config.get("confidence"),
        protocol=evidence.details.get("protocol", ""),
        baseline=value_of(evidence.details.get("length_baseline")),
        base_model=evidence.manifests["sft"].config.get("base_model", "unknown"),
        sources=sources(evidence.manifests["pairs"]),
        counts=counts(evidence.manifests["pairs"]),
        waterfall=waterfall(evidence.manifests["distillation"]),
        reasons=_reasons(release),
        pictures={name: Markup(svg) for name, svg in _pictures(release).items()},  # noqa: S704 - of our own drawing
        examples=collect(
            evidence.judgments, evidence.heldout, release.config.judge, release.config.num_examples
        ),
    )
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, interval=interval, value_of=value_of, plain=_plain)
    return environment.from_string((Path(__file__).parent / TEMPLATE).read_text(encoding="utf-8"))


def _plain(value: Any) -> str:
    return visible(redact(str(value)))


def _pictures(release: Release) -> dict[str, str]:
    evidence = release.evidence
    rows = [
        (MODELS[model], score["value"], score["low"], score["high"])
        for model in MODELS
        if {"value", "low", "high"} <= (score := evidence.scores.get(model, {}).get("accuracy") or {}).keys()
    ]
    return {
        "accuracy": figures.accuracies(rows, release.config.min_accuracy) if rows else "",
        "waterfall": figures.falls(waterfall(evidence.manifests["distillation"])),
        "sft_loss": figures.curve("SFT loss", evidence.sft_metrics, "loss"),
        "reward": figures.curve("GRPO reward", evidence.grpo_metrics, "reward"),
        "kl": figures.curve("GRPO KL", evidence.grpo_metrics, "kl"),
        "valid": figures.curve("GRPO valid rate", evidence.grpo_metrics, "valid_rate", share=True),
    }


def category_rows(release: Release) -> list[tuple[str, int, dict[str, Any]]]:
    """Return for each category its name, the judgments per model, and each model's accuracy."""
    tables = {
        model: score.get("by_category") or {} for model in MODELS if (score := release.evidence.scores.get(model))
    }
    names = sorted({name for table in tables.values() for name in table})
    rows = []
    for name in names:
        cells = {model: table.get(name) or {} for model, table in tables.items()}
        most = max((int(cell.get("num_judgments") or 0) for cell in cells.values()), default=0)
        rows.append((name, most, {model: value_of(cell) for model, cell in cells.items()}))
    return rows


def _reasons(release: Release) -> dict[str, Any]:
    found = release.evidence.manifests["distillation"].statistics.get("reasons")
    return found if isinstance(found, dict) else {}
