"""The model card, in Markdown: what the model is, where it comes from, what it can do and how to use it."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.adapters.page import NONE, percent, plain
from components.core.judges import heading
from components.core.manifest import Manifest
from components.publish.gate import Decision
from components.publish.release import Release
from components.publish.tables import (
    ATTACKS_TEXT,
    COLUMNS,
    DRIFT_TEXT,
    OWN_REPORT,
    PROTOCOLS_TEXT,
    SuiteRow,
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
    teacher_cost,
    teacher_rows,
    value_of,
)
from components.publish.values import counts, mapping, sources, waterfall

_MARKS = re.compile(r"([\\`*_{}\[\]|~#])")
UNKNOWN = "unknown: look it up before use"

LOADING = """\
Copy the folder from S3, then ask with the prompt that the model was trained on (it needs the package `reasrm`):

```sh
aws s3 cp --recursive {uri}/model/ judge/
```

```python
from components.core.prompts import render
from components.core.schema import PreferencePair
from components.core.verdict import parse_verdict
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("judge")
model = AutoModelForCausalLM.from_pretrained("judge", use_safetensors=True)
# `label` is part of every pair; the prompt does not show it.
pair = PreferencePair(id="1", prompt="2 + 2?", response_a="4", response_b="5", label="A")
messages = [message.model_dump() for message in render(pair, "{grammar}").messages]
asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
written = model.generate(**asked, max_new_tokens={max_tokens}, do_sample=False)
print(parse_verdict(tokenizer.decode(written[0, asked["input_ids"].shape[1]:], skip_special_tokens=True)))
```
"""


def render_card(release: Release) -> str:
    """Return the model card as Markdown; equal evidence gives equal text."""
    sections = (
        ("", _head(release)),
        ("Decision", _decision(release)),
        ("Scores", _scores(release)),
        ("Data", _data(release)),
        ("Teachers", _teachers(release)),
        ("Training", _training(release)),
        ("Limits", _limits(release)),
        ("How to load it", _loading(release)),
        ("Lineage", _lineage(release)),
        ("Licences", _licences(release)),
    )
    return "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections) + "\n"


def _head(release: Release) -> str:
    manifests = release.evidence.manifests
    how = "supervised fine-tuning on a teacher's reasoning"
    if release.config.judge == "grpo":
        how += ", then GRPO with a reward for the right verdict"
    base = release.evidence.base_model
    digest = next((source.get("sha256") for source in release.evidence.base_sources), "unknown")
    traces = release.evidence.traces
    return f"""# {text(release.config.model_name)}

Version {text(release.version)}, a reasoning reward model. It reads a conversation and two answers, reasons in writing
(its own rubric for chat, its own solution for reasoning tasks) and then names the better answer.

- Base model: {code(base)} (sha256 {code(digest)}; licence: {_base_licence(release)})
{_start(release)}- Trained by: {how}
- Teacher: {_teacher(traces) if traces else "unknown: the manifest of its traces is gone"}
- Form of the judgment: {code(manifests["benchmark"].config.get("grammar", "unknown"))}
- Weights: {code(release.model.uri + "/model")}"""


def _base_licence(release: Release) -> str:
    stated = release.config.licences
    return ", ".join(text(_licence(source, stated)) for source in release.evidence.base_sources) or UNKNOWN


def _start(release: Release) -> str:
    """Say which model of ours SFT started from, and how many lie between that and the base model."""
    evidence = release.evidence
    start, steps = evidence.start, len(evidence.ancestry.tuned(evidence.manifests["sft"])) - 1
    if start is None:
        return ""
    named = f"{code(release.started_from)}, " if release.started_from else ""
    line = f", the last of {steps} that were trained one from the other" if steps > 1 else ""
    return f"- Started from: {named}{code(start.uri)} (manifest {code(start.digest)}){line}\n"


def _teacher(traces: Manifest) -> str:
    counted = mapping(traces.statistics.get("teachers"))
    if counted:
        return ", ".join(f"{code(name)} ({number} traces)" for name, number in sorted(counted.items()))
    settings = traces.config.get("teacher")
    teachers = [mapping(one) for one in settings] if isinstance(settings, list) else []
    return ", ".join(code(one.get("model") or one.get("uri") or "unknown") for one in teachers) or "unknown"


def _decision(release: Release) -> str:
    return render_decision(release.decision, release.outcome).rstrip()


def render_decision(decision: Decision, outcome: str = "") -> str:
    """Return the gate's decision as Markdown: whether it is passed, every check, and the reasons against it."""
    passed = f"**The gate is {'passed' if decision.passed else 'not passed'}.** {text(outcome)}".rstrip()
    rows = [
        (text(row.name), text(row.measured), text(row.needed), "yes" if row.passed else "no")
        for row in check_rows(decision)
    ]
    parts = [passed, table(("Check", "Measured", "Needed", "Passed"), rows)]
    parts += ["\n".join(f"- {text(reason)}" for reason in decision.reasons)] if decision.reasons else []
    return "\n\n".join(parts) + "\n"


def _scores(release: Release) -> str:
    rows = [
        (_name(row.model, release), *(_rate(cell) for cell in row.cells), row.mean_tokens, row.num_pairs)
        for row in score_rows(release)
    ]
    confidence = release.evidence.manifests["benchmark"].config.get("confidence")
    baseline = value_of(heldout_suite(release).get("longer_baseline"))
    notes = [f"In brackets the {confidence:.0%} interval."] if isinstance(confidence, float) else []
    notes += [text(protocol_text(release))] if protocol_text(release) else []
    if baseline is not None:
        notes.append(f"Always naming the longer answer is right in {percent(baseline)} of these pairs.")
    notes += [f"{name}: {meaning}." for _, name, meaning in COLUMNS]
    parts = [table(("Model", *(name for _, name, _ in COLUMNS), "Tokens", "Pairs"), rows), " ".join(notes)]
    headings = [text(row.heading) for row in score_rows(release)]
    categories = [(text(name), str(number), *values) for name, number, values in category_rows(release)]
    if categories:
        parts.append("By category:\n\n" + table(("Category", "Pairs", *headings), categories))
    suites = [_suite(row) for row in suite_rows(release)]
    if suites:
        parts.append("Benchmarks:\n\n" + table(("Suite", "Protocol", "Items", "Pairs", *headings), suites))
        parts.append(PROTOCOLS_TEXT)
    parts += _attacks(release)
    if benchmark_report(release):
        parts.append(f"{OWN_REPORT}: {code(benchmark_report(release))}")
    return "\n\n".join(parts)


def _name(model: str, release: Release) -> str:
    return text(heading(model)) + (" (released)" if model == release.config.judge else "")


def _rate(cell: tuple[str, str]) -> str:
    value, spread = cell
    return f"{value} ({spread})" if spread else value


def _suite(row: SuiteRow) -> tuple[str, ...]:
    name = f"{text(row.name)} ({row.note})" if row.note else text(row.name)
    return name, row.protocol, row.num_items, row.num_pairs, *(_rate(cell) for cell in row.cells)


def _attacks(release: Release) -> list[str]:
    rows = [
        (_name(row.model, release), _rate(row.flipped), _rate(row.control), _rate(row.lost), row.clean_right)
        for row in attack_rows(release)
    ]
    if not rows:
        return []
    notes = [f" {text(row.heading)}: {text(row.note)}." for row in attack_rows(release) if row.note]
    headings = ("Model", "Turned by an attack", "Turned by harmless text", "Verdict lost", "Right before")
    return [f"{ATTACKS_TEXT}{''.join(notes)}\n\n{table(headings, rows)}"]


def _data(release: Release) -> str:
    pairs, filtered = release.evidence.manifests["pairs"], release.evidence.manifests["distillation"]
    rows = [
        (code(source.get("uri", "unknown")), text(source.get("rows", NONE)), code(source.get("sha256", "unknown")))
        for source in sources(pairs)
    ]
    parts = [table(("Preference data", "Rows", "sha256"), rows) if rows else "The sources were not recorded."]
    numbers = counts(pairs)
    if numbers:
        parts.append(table(("Count", "Number"), [(text(name), str(number)) for name, number in numbers.items()]))
    parts += _renewal(pairs)
    earlier = _earlier_sources(release)
    if earlier:
        parts.append("Data of earlier runs that the model has learned from:")
        told = [(code(source["uri"]), code(source.get("sha256", "unknown"))) for source in earlier]
        parts.append(table(("Preference data", "sha256"), told))
    steps = waterfall(filtered)
    if steps:
        first, last = steps[0], steps[-1]
        offered = (first.get("kept") or 0) + (first.get("dropped") or 0)
        parts.append(f"The filter kept {last.get('kept')} of {offered} traces ({percent(_ratio(last, offered))}):")
        falls = [(text(s.get("step", "")), str(s.get("kept", "")), str(s.get("dropped", ""))) for s in steps]
        parts.append(table(("Step", "Kept", "Dropped"), falls))
    return "\n\n".join(parts)


def _renewal(pairs: Manifest) -> list[str]:
    parts = []
    rows = [(text(name), str(number)) for name, number in renewal_rows(pairs)]
    if rows:
        parts.append(f"The run went on from {code(renewed_from(pairs))}:\n\n{table(('Pairs', 'Number'), rows)}")
    drift = [
        (text(row.name), row.test, row.distance, row.p_value, row.found, text(row.old), text(row.new))
        for row in drift_rows(pairs)
    ]
    if drift:
        headings = ("Compared", "Test", "Distance", "p", "Result", "Before", "New")
        parts.append(f"{DRIFT_TEXT}\n\n{table(headings, drift)}")
    return parts


def _earlier_sources(release: Release) -> list[Mapping[str, Any]]:
    """Return the data of earlier runs, each version of it once, that this run did not read itself."""
    listed = {_version(source) for source in sources(release.evidence.manifests["pairs"])}
    ours = tuple(f"{made.uri}/" for made in release.evidence.earlier)
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for made in release.evidence.earlier:
        for source in sources(made):
            if _version(source) not in listed and not str(source.get("uri", "")).startswith(ours):
                found.setdefault(_version(source), source)
    return list(found.values())


def _version(source: Mapping[str, Any]) -> tuple[str, str]:
    return str(source.get("uri", "")), str(source.get("sha256", ""))


def _teachers(release: Release) -> str:
    traces = release.evidence.traces
    if traces is None:
        return "The manifest of the teacher's traces is gone: who wrote them, and at what cost, is not known."
    rows = teacher_rows(traces)
    if not rows:
        return "What each teacher wrote and cost was not recorded."
    headings = ("Teacher", "Asked", "Traces", "Right", "Tokens read", "Tokens written", "Cost")
    cells = [(code(row.name), row.asked, row.traces, row.right, row.read, row.written, row.cost) for row in rows]
    return f"{table(headings, cells)}\n\nIn all {teacher_cost(traces)}."


def _ratio(step: Mapping[str, Any], offered: float) -> float | None:
    return (step.get("kept") or 0) / offered if offered else None


def _training(release: Release) -> str:
    stages = ("sft", "grpo") if release.config.judge == "grpo" else ("sft",)
    parts = []
    for stage in stages:
        config = release.evidence.manifests[stage].config
        rows = [(code(name), code(json.dumps(value, ensure_ascii=False))) for name, value in sorted(config.items())]
        parts.append(f"{heading(stage)}:\n\n{table(('Setting', 'Value'), rows)}")
    return "\n\n".join(parts)


def _limits(release: Release) -> str:
    judge = release.config.judge
    scores = mapping(mapping(release.evidence.statistics.get("scores")).get(judge))
    turned = next((row.flipped[0] for row in attack_rows(release) if row.model == judge), NONE)
    first, consistent = value_of(scores.get("first_slot_rate")), value_of(scores.get("position_consistency"))
    partial = [text(row.name) for row in suite_rows(release) if row.note]
    limits = [f"Of these benchmarks only a part was judged: {', '.join(dict.fromkeys(partial))}."] if partial else []
    limits += [
        "The scores hold for held-out pairs of the same sources; other domains, languages and lengths are unmeasured.",
        f"Order matters: the two orders of a pair got the same verdict in {percent(consistent)} of the pairs, and the "
        f"answer shown first was chosen in {percent(first)} of the verdicts. Ask in both orders where it counts.",
        f"The scores come from {_num_pairs(scores)} held-out pairs; the intervals say how far chance can move them.",
        "It always names one of two answers: ties, and pairs in which both answers are bad, are not recognised.",
        "Its reasoning is text that led to a verdict, not proof of it; the labels and the teacher may be wrong too.",
        "A candidate answer can try to talk the judge round. Reserved marks in it are escaped; persuasion is not. "
        + ("That was not measured." if turned == NONE else f"Attacks turned {turned} of its right verdicts."),
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _num_pairs(scores: Mapping[str, Any]) -> str:
    number = scores.get("num_pairs")
    return str(number) if isinstance(number, int) else "an unknown number of"


def _loading(release: Release) -> str:
    config = release.evidence.manifests["benchmark"].config
    grammar = "think" if config.get("grammar") == "think" else "rubric"
    limit = config.get("max_tokens")
    uri = _one_line(release.model.uri)
    return LOADING.format(uri=uri, grammar=grammar, max_tokens=limit if isinstance(limit, int) else 8192).rstrip()


def _lineage(release: Release) -> str:
    rows = [(name, code(made.uri), code(made.digest)) for name, made in release.evidence.lineage.items()]
    return f"{table(('Stage', 'Artifact', 'Digest of its manifest'), rows)}\n\nRun key: {code(release.run_key)}"


def _licences(release: Release) -> str:
    evidence = release.evidence
    ours = tuple(f"{made.uri}/" for made in evidence.earlier)
    data = [*sources(evidence.manifests["pairs"]), *_earlier_sources(release)]
    read = [source for source in data if not str(source.get("uri", "")).startswith(ours)]
    known = dict.fromkeys(
        (code(source.get("uri", "unknown")), text(_licence(source, release.config.licences)))
        for source in (*evidence.base_sources, *read)
    )
    unknown = [] if evidence.base_sources else [("The base model, which is unknown", UNKNOWN)]
    rows = [*unknown, *known, ("The teacher's terms for what it wrote", UNKNOWN), ("reasrm, the code", "Apache-2.0")]
    return table(("Of what", "Licence"), rows)


def _licence(source: Mapping[str, Any], stated: Mapping[str, str]) -> str:
    """Return a source's licence: as it was recorded with it, or as the recipe states it for its uri's beginning."""
    recorded = source.get("license") or source.get("licence")
    uri = str(source.get("uri", "")).removeprefix("hf://")
    told = [licence for place, licence in sorted(stated.items(), key=lambda one: len(one[0])) if uri.startswith(place)]
    return str(recorded or (told[-1] if told else UNKNOWN))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the cells are Markdown already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text(value: Any) -> str:
    """Return untrusted text as one line of Markdown in which nothing is markup."""
    return _MARKS.sub(r"\\\1", html.escape(_one_line(value), quote=False))


def code(value: Any) -> str:
    """Return untrusted text as a code span that a table cell can hold."""
    return f"`{_one_line(value).replace('`', chr(39)).replace('|', chr(92) + '|') or ' '}`"


def _one_line(value: Any) -> str:
    return " ".join(plain(value).split())
