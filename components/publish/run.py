"""Decide, register, promote, and write the decision, the model card and the report."""

import json
import logging
from dataclasses import replace
from typing import Any

from components.adapters import model_versions, promotions, tracking
from components.adapters.model_versions import VersionInfo
from components.adapters.promotions import Outcome
from components.adapters.stage import Inputs, Output
from components.publish.card import render_card, render_decision
from components.publish.config import Config
from components.publish.facts import check_lineage, check_weights
from components.publish.gate import Decision, compared_champion, decide
from components.publish.release import Evidence, Release, gather
from components.publish.report import render_report

logger = logging.getLogger(__name__)

STATISTICS = ("passed", "promoted", "version", "model_name", "judge", "checks", "reasons", "outcome", "replaces")
FILES = ("decision.json", "decision.md", "model_card.md", "report.html")


def run(config: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Register the model, passed or not, promote it if it passed, and return the statistics."""
    evidence = gather(inputs, output.storage, config)
    facts = [
        check_lineage(evidence.ancestry),
        check_weights(evidence.manifests[config.judge], output.storage),
    ]
    decision = decide(evidence.statistics, config, facts)
    version = _register(config, evidence, decision, output)
    outcome = _promote(config, evidence, decision, version, output)
    release = Release(
        config,
        evidence,
        decision,
        version.version,
        output.run_key,
        refusal=outcome.reason,
        replaces=outcome.replaces,
        started_from=_started_from(config, evidence),
    )
    decided = _record(release)
    texts = {
        "decision.json": json.dumps(decided, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
        "decision.md": render_decision(decision, release.outcome),
        "model_card.md": render_card(release),
        "report.html": render_report(release),
    }
    for name in FILES:
        (output.directory / name).write_text(texts[name], encoding="utf-8")
        output.tracking.log_artifact(output.directory / name)
    _log(release, output)
    output.summary = _summary(release)
    return {key: decided[key] for key in STATISTICS}


def _register(config: Config, evidence: Evidence, decision: Decision, output: Output) -> VersionInfo:
    """Return the model's version, a new one or that of an earlier run with this model, with this decision's tags."""
    model = evidence.manifests[config.judge]
    tags = {
        "reasrm.run_key": output.run_key,
        "reasrm.judge": config.judge,
        "reasrm.gate": _verdict(decision),
        "reasrm.manifest_uri": model.uri,
        "reasrm.manifest_digest": model.digest,
        "reasrm.publish_uri": output.uri,
        "reasrm.base_model": evidence.base_model,
    }
    tags |= output.tracking.origin
    if evidence.start is not None:
        tags["reasrm.started_from"] = evidence.start.uri
    tags |= {f"reasrm.{name}_uri": ancestor.uri for name, ancestor in evidence.lineage.items()}
    tags |= {f"reasrm.gate.{check.name.replace(' ', '_')}": check.text for check in decision.checks}
    if decision.reasons:
        tags["reasrm.gate_reasons"] = "; ".join(decision.reasons)
    name, description = config.model_name, render_decision(decision)
    run_id = tracking.find_run(model.digest)
    version = model_versions.register_version(name, f"{model.uri}/model", run_id, model.uri, tags, description)
    # Of an earlier run, or of an attempt at this one that may have died between any two tags.
    model_versions.tag_version(name, version.version, {"reasrm.gate_reasons": None, **tags})
    model_versions.describe_version(name, version.version, description)
    return version


def _started_from(config: Config, evidence: Evidence) -> str:
    """Return the registered version that SFT started from, of this model's own if it has several names."""
    found = model_versions.list_versions([evidence.start.digest]) if evidence.start else []
    own = [version for version in found if version.name == config.model_name]
    return next((f"{version.name}/{version.version}" for version in (*own, *found)), "")


def _verdict(decision: Decision) -> str:
    return "passed" if decision.passed else "rejected"


def _promote(config: Config, evidence: Evidence, decision: Decision, version: VersionInfo, output: Output) -> Outcome:
    """Make the version champion if it passed and the champion is still the one it was compared with."""
    log = promotions.find_log(output.storage, config.model_name, config.alias, promotions.beside(output.uri))
    history = log.settle()
    _challenge(config.model_name)
    if not decision.passed or not config.promote:
        return Outcome(False)
    taken = promotions.taken_away(history, log.holder(version))
    again = f"reasrm promote {config.model_name}/{version.version}"
    if taken is not None:
        reason = f"it was rolled back by {taken.by}: {taken.why}; to take it again: {again}"
        return Outcome(False, reason=reason)
    outcome = log.move(
        version,
        kind="publish",
        by=f"run {output.run_key[:20]}",
        why="it passed the gate",
        key=output.run_key,
        compared=compared_champion(evidence.statistics, config),
    )
    return outcome if outcome.promoted else replace(outcome, reason=f"{outcome.reason}, or decide yourself: {again}")


def _challenge(model: str) -> None:
    """Let the alias challenger point to the newest version, whoever registers another one meanwhile."""
    for _ in range(promotions.TRIES):
        newest = model_versions.get_version(model, "")
        challenger = model_versions.get_alias(model, promotions.CHALLENGER)
        if newest is None or (challenger is not None and challenger.version == newest.version):
            return
        model_versions.set_alias(model, promotions.CHALLENGER, newest.version)


def _record(release: Release) -> dict[str, Any]:
    config, model = release.config, release.model
    return {
        **release.decision.model_dump(mode="json"),
        "model_name": config.model_name,
        "version": release.version,
        "alias": config.alias,
        "promoted": release.promoted,
        "outcome": release.outcome,
        "replaces": release.replaces,
        "model": {"uri": f"{model.uri}/model", "digest": model.digest},
        "lineage": {name: {"uri": made.uri, "digest": made.digest} for name, made in release.evidence.lineage.items()},
        "run_key": release.run_key,
    }


def _log(release: Release, output: Output) -> None:
    """Put decision and outcome on the stage's run."""
    config, decision = release.config, release.decision
    tags = {
        "reasrm.gate": _verdict(decision),
        "reasrm.model_version": f"{config.model_name}/{release.version}",
        "reasrm.outcome": release.outcome,
    }
    if decision.reasons:
        tags["reasrm.gate_reasons"] = "; ".join(decision.reasons)
    if release.promoted and release.replaces:
        tags[promotions.FORMER] = release.replaces
    for reason in (*decision.reasons, *filter(None, [release.refusal])):
        logger.warning("%s version %s is not promoted: %s", config.model_name, release.version, reason)
    output.tracking.set_tags(tags)
    for check in decision.checks:
        name = f"gate.{check.name.replace(' ', '_')}"
        measured = {} if check.value is None else {name: check.value}
        output.tracking.log_metrics(measured | {f"{name}.passed": float(check.passed)})
    output.tracking.log_metrics({"gate.passed": float(decision.passed), "gate.promoted": float(release.promoted)})


def _summary(release: Release) -> str:
    config = release.config
    numbers = ", ".join(
        f"{check.name} {'missing' if check.value is None else f'{check.value:.1%}'}"
        for check in release.decision.checks
        if check.value is not None or not check.note
    )
    outcome = "gate passed" if release.decision.passed else "gate failed"
    alias = f", made {config.alias}" if release.promoted else ", alias not moved"
    because = f": {release.refusal}" if release.refusal else ""
    return f"{config.model_name} version {release.version}: {outcome} ({numbers}){alias}{because}"
