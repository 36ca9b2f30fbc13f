"""The report: one HTML file that needs no network, in which no text of a model or of the data can become markup."""

from pathlib import Path

from components.adapters import figures
from components.adapters.page import picture, render_page
from components.core.judges import heading, in_order
from components.publish.examples import collect
from components.publish.release import Release
from components.publish.tables import (
    ATTACKS_TEXT,
    COLUMNS,
    DRIFT_TEXT,
    OWN_REPORT,
    PROTOCOLS_TEXT,
    attack_rows,
    benchmark_report,
    category_rows,
    check_rows,
    drift_rows,
    heldout_suite,
    protocol_text,
    renewal_rows,
    renewed_from,
    score_rows,
    suite_rows,
    value_of,
)
from components.publish.values import counts, mapping, sources, waterfall

TEMPLATE = Path(__file__).parent / "report.html.jinja"


def render_report(release: Release) -> str:
    """Return the report as HTML; equal evidence gives equal text."""
    evidence, config = release.evidence, release.config
    pairs, distillation = evidence.manifests["pairs"], evidence.manifests["distillation"]
    return render_page(
        TEMPLATE,
        release=release,
        config=config,
        decision=release.decision,
        checks=check_rows(release.decision),
        judge_heading=heading(config.judge),
        columns=COLUMNS,
        scores=score_rows(release),
        categories=category_rows(release),
        suites=suite_rows(release),
        protocols_text=PROTOCOLS_TEXT,
        attacks=attack_rows(release),
        attacks_text=ATTACKS_TEXT,
        own_report=OWN_REPORT,
        benchmark_report=benchmark_report(release),
        confidence=evidence.manifests["benchmark"].config.get("confidence"),
        protocol=protocol_text(release),
        baseline=value_of(heldout_suite(release).get("longer_baseline")),
        base_model=evidence.base_model,
        start=evidence.start,
        renewal=renewal_rows(pairs),
        renewed_from=renewed_from(pairs),
        drift=drift_rows(pairs),
        drift_text=DRIFT_TEXT,
        sources=sources(pairs),
        counts=counts(pairs),
        reasons=mapping(distillation.statistics.get("reasons")),
        pictures={name: picture(svg) for name, svg in _pictures(release).items()},
        examples=collect(evidence.examples, evidence.heldout),
    )


def _pictures(release: Release) -> dict[str, str]:
    evidence = release.evidence
    scores = mapping(evidence.statistics.get("scores"))
    accuracies = {model: mapping(mapping(scores[model]).get("accuracy")) for model in in_order(scores)}
    rows = [
        (heading(model), score["value"], score["low"], score["high"])
        for model, score in accuracies.items()
        if all(isinstance(score.get(part), int | float) for part in ("value", "low", "high"))
    ]
    return {
        "accuracy": figures.accuracies(rows, release.config.min_accuracy) if rows else "",
        "waterfall": figures.falls(waterfall(evidence.manifests["distillation"])),
        "sft_loss": figures.curve("SFT loss", evidence.sft_metrics, "loss"),
        "reward": figures.curve("GRPO reward", evidence.grpo_metrics, "reward"),
        "held_out": figures.curve("GRPO strict accuracy", evidence.grpo_metrics, "eval.strict_accuracy", share=True),
        "kl": figures.curve("GRPO KL", evidence.grpo_metrics, "kl"),
        "length": figures.curve("GRPO length", evidence.grpo_metrics, "completion_tokens"),
        "valid": figures.curve("GRPO valid rate", evidence.grpo_metrics, "valid_rate", share=True),
    }
