"""The work of `filter`: put every trace to the rules, count what each takes away, and show it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.adapters.overlap import OverlapIndex
from components.adapters.sources import local_copy, open_lines
from components.adapters.stage import Inputs, Output
from components.core.errors import InvalidInput
from components.core.prompts import render
from components.core.records import BadRecord, explain, read_models, read_rows, write_jsonl
from components.core.schema import Example, Message, PreferencePair, Trace
from components.filter.config import Config
from components.filter.difficulty import Graded, grade
from components.filter.report import render_report
from components.filter.rules.finding import Aids
from components.filter.rules.grader import Grader
from components.filter.rules.overlap import Benchmarks
from components.filter.sieve import Sifted, sift
from components.filter.statistics import statistics as count

logger = logging.getLogger(__name__)

OVERLAP = "overlap.bin"
REPORT = "report.html"


def run(settings: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Write sft.jsonl, rejected.jsonl, report.html and, given attempts, rl.jsonl and rl_rejected.jsonl.

    Raises:
        InvalidInput: the traces or attempts are of other pairs, or too few are left.
    """
    names = {entry.path for entry in inputs["pairs"].files}
    with_attempts = "attempts" in inputs or bool(settings.attempts)
    wanted = ["distil.jsonl", *(["rl.jsonl"] if with_attempts else []), *([OVERLAP] if OVERLAP in names else [])]
    folder = inputs.fetch("pairs", only=wanted)
    pairs = read_models(folder / "distil.jsonl", PreferencePair)
    traces = read_models(inputs.fetch("traces", only=["traces.jsonl"]) / "traces.jsonl", Trace)
    index = OverlapIndex.load(folder / OVERLAP) if OVERLAP in names else None
    with _aids(settings, index) as aids:
        sifted = sift(settings, {pair.key: pair for pair in pairs}, traces, aids)
    statistics = count(sifted)
    graded = _graded(settings, inputs, output, folder) if with_attempts else None
    write_jsonl(output.directory / "sft.jsonl", examples(sifted))
    write_jsonl(output.directory / "rejected.jsonl", rejected(sifted))
    if graded is not None:
        write_jsonl(output.directory / "rl.jsonl", graded.kept)
        write_jsonl(output.directory / "rl_rejected.jsonl", graded.rejected)
        statistics["rl"] = graded.statistics
    (output.directory / REPORT).write_text(render_report(sifted, statistics), encoding="utf-8")
    output.tracking.log_artifact(output.directory / REPORT)
    output.tracking.log_metrics({"examples": statistics["examples"], "yield": statistics["yield"]})
    if pairs:
        _check_yield(sifted, statistics)
    output.summary = (
        f"{statistics['examples']} examples for {statistics['pairs_kept']} of {statistics['pairs_with_traces']} pairs "
        f"({statistics['yield']:.1%}) from {len(traces)} traces"
    ) + (f"; {len(graded.kept)} rl pairs of {graded.statistics['pairs']}" if graded else "")
    return statistics


@contextmanager
def _aids(settings: Config, index: OverlapIndex | None) -> Iterator[Aids]:
    """Start what the rules of the recipe need."""
    language = None
    if "language" in settings.rules:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

        def language(text: str) -> tuple[str, float]:
            code, confidence = identifier.classify(text)
            return str(code), float(confidence)

    with Grader(settings.gold_seconds) as grader:
        yield Aids(language, grader.equals, Benchmarks(index) if index else None)


def examples(sifted: Sifted) -> Iterator[Example]:
    """Yield what is kept as supervised examples: the judge prompt, and the judgment as the turn to learn."""
    for case in (sifted.cases[place] for place in sifted.kept):
        written = Message(role="assistant", content=case.trace.text.strip())
        messages = render(case.pair, sifted.settings.grammar).messages
        yield Example(key=case.pair.key, prompt=messages, completion=(written,), label=case.pair.label)


def rejected(sifted: Sifted) -> Iterator[dict[str, Any]]:
    """Yield what is dropped, each trace with the rule that dropped it and the words of every rule that it fails."""
    for place, faults in sorted(sifted.faults.items()):
        reasons = [{"rule": name, "reason": reason} for name, reason in faults.items()]
        yield sifted.cases[place].trace.model_dump(mode="json") | {
            "dropped_by": sifted.stopped_at(place),
            "reasons": reasons,
        }


def _graded(settings: Config, inputs: Inputs, output: Output, folder: Path) -> Graded:
    pairs = read_models(folder / "rl.jsonl", PreferencePair)
    if "attempts" not in inputs:
        path, name = local_copy(settings.attempts, output.storage, output.workdir / "sources"), settings.attempts
    elif settings.attempts:
        raise InvalidInput("attempts are given twice, as a setting and as an input; give one of them")
    else:
        path, name = inputs.fetch("attempts", only=["traces.jsonl"]) / "traces.jsonl", "traces.jsonl"
    return grade(settings, pairs, list(_attempts(path, name)))


def _attempts(path: Path, name: str) -> Iterator[Trace]:
    for row in read_rows(open_lines(path, name), name):
        if isinstance(row, BadRecord):
            raise InvalidInput(f"{row.place}: {row.reason}; give traces.jsonl as the traces stage writes it")
        try:
            yield Trace.model_validate(row[1])
        except ValueError as error:
            raise InvalidInput(
                f"{row[0]} is no trace: {explain(error)}; give traces.jsonl of a traces stage"
            ) from error


def _check_yield(sifted: Sifted, statistics: dict[str, Any]) -> None:
    settings, waterfall = sifted.settings, statistics["waterfall"]
    for step in waterfall:
        logger.info("%s: %s kept, %s dropped", step["step"], step["kept"], step["dropped"])
    lost = [f"{step['dropped']} {sifted.rules[step['step']].fault}" for step in waterfall[1:] if step["dropped"]]
    dropped = ", ".join(lost)
    if statistics["yield"] < settings.min_yield:
        raise InvalidInput(
            f"only {statistics['pairs_kept']} of {statistics['pairs_with_traces']} pairs ({statistics['yield']:.1%}) "
            f"keep a trace to learn from, under min_yield={settings.min_yield:g}; dropped were: "
            f"{dropped or 'none, there were no traces'}. Take a better teacher, give it the grammar "
            f"{settings.grammar!r} or more tokens, change the rule at fault, or lower min_yield"
        )
    if statistics["examples"] < settings.min_examples:
        raise InvalidInput(
            f"only {statistics['examples']} examples are left, under min_examples={settings.min_examples}; dropped "
            f"were: {dropped or 'none'}. Give more pairs to the teacher (distil_share, max_distil)"
        )
