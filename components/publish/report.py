"""The report: one HTML file that needs no network, in which no text of a model or of the data can become markup."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from components.publish import figures
from components.publish.examples import collect
from components.publish.release import Release
from components.publish.tables import (
    COLUMNS,
    MODELS,
    category_rows,
    counts,
    mapping,
    percent,
    plain,
    score_rows,
    sources,
    value_of,
    waterfall,
)

TEMPLATE = "report.html.jinja"


def render_report(release: Release) -> str:
    """Return the report as HTML; equal evidence gives equal text."""
    evidence, config = release.evidence, release.config
    pairs, distillation = evidence.manifests["pairs"], evidence.manifests["distillation"]
    page = _template().render(
        release=release,
        config=config,
        decision=release.decision,
        models=MODELS,
        columns=COLUMNS,
        scores=score_rows(release),
        categories=category_rows(release),
        confidence=evidence.manifests["benchmark"].config.get("confidence"),
        protocol=evidence.details.get("protocol", ""),
        baseline=value_of(evidence.details.get("length_baseline")),
        base_model=evidence.manifests["sft"].config.get("base_model", "a base model that was not recorded"),
        sources=sources(pairs),
        counts=counts(pairs),
        reasons=mapping(distillation.statistics.get("reasons")),
        pictures={name: Markup(svg) for name, svg in _pictures(release).items()},  # noqa: S704 - drawn in figures.py
        examples=collect(evidence.judgments, evidence.heldout, config.judge, config.num_examples),
    )
    return "\n".join(line.rstrip() for line in page.split("\n")) + "\n"


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, plain=plain)
    return environment.from_string((Path(__file__).parent / TEMPLATE).read_text(encoding="utf-8"))


def _pictures(release: Release) -> dict[str, str]:
    evidence = release.evidence
    accuracies = {model: mapping(mapping(evidence.scores.get(model)).get("accuracy")) for model in MODELS}
    rows = [
        (MODELS[model], score["value"], score["low"], score["high"])
        for model, score in accuracies.items()
        if all(isinstance(score.get(part), int | float) for part in ("value", "low", "high"))
    ]
    return {
        "accuracy": figures.accuracies(rows, release.config.min_accuracy) if rows else "",
        "waterfall": figures.falls(waterfall(evidence.manifests["distillation"])),
        "sft_loss": figures.curve("SFT loss", evidence.sft_metrics, "loss"),
        "reward": figures.curve("GRPO reward", evidence.grpo_metrics, "reward"),
        "kl": figures.curve("GRPO KL", evidence.grpo_metrics, "kl"),
        "valid": figures.curve("GRPO valid rate", evidence.grpo_metrics, "valid_rate", share=True),
    }
