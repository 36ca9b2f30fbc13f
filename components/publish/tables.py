"""What the model card and the report tell alike: scores, suites, attacks, sources and counts, ready to be printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.adapters.page import NONE, percent
from components.core.judges import heading, in_order
from components.core.manifest import Manifest
from components.publish.values import mapping, mappings

if TYPE_CHECKING:
    from components.publish.gate import Decision
    from components.publish.release import Release

PROTOCOLS = ("official", "ours")
PROTOCOLS_TEXT = (
    "Official counts as the benchmark's own evaluation does, mostly in one order of the answers; ours asks for both "
    "orders to name the better answer, which is harder, so the two are not comparable with each other."
)
ATTACKS_TEXT = (
    "Attacks on the judge: text in the worse answer that asks for the verdict, fakes it, imitates the prompt's marks "
    "or claims authority. Shares of the judgments that were right without it."
)
PART_WORDS = (("distil", "for the teacher"), ("rl", "for reinforcement learning"), ("heldout", "held out"))
DRIFT_TEXT = (
    "How far the new pairs are from those before, from 0 (alike) to 1 (nothing in common): total variation distance of "
    "shares, Kolmogorov and Smirnov's of lengths in characters, whose quartiles are shown."
)
# Key in the scores, heading, meaning.
COLUMNS = (
    ("accuracy", "Accuracy", "share of right verdicts, mean over both orders; no verdict counts as wrong"),
    ("strict_accuracy", "Strict accuracy", "share of pairs judged right in both orders"),
    ("valid_rate", "Valid", "share of judgments that end with exactly one verdict"),
    ("position_consistency", "Consistent", "share of pairs for which both orders name the same answer"),
    ("first_slot_rate", "Picks first", "share of verdicts for the answer shown first; 50% has no position bias"),
)
OWN_REPORT = "The benchmark's own report has all comparisons and measures, and judged pairs to browse"


@dataclass(frozen=True)
class ScoreRow:
    """One model's line in the table of scores; `cells` are (value, interval) in the order of COLUMNS.

    `invalid` are the judgments without a verdict by cause, `undecided` the orders whose votes are evenly split.
    """

    model: str
    heading: str
    cells: tuple[tuple[str, str], ...]
    mean_tokens: str
    num_pairs: str
    invalid: str
    undecided: int


@dataclass(frozen=True)
class CheckRow:
    """A check of the gate, in words."""

    name: str
    measured: str
    needed: str
    passed: bool


@dataclass(frozen=True)
class SuiteRow:
    """A suite's score under one protocol; `cells` are (value, interval), one for each of the rows of scores.

    `note` says how much of a benchmark was judged where it is not all of it.
    """

    name: str
    note: str
    protocol: str
    num_items: str
    num_pairs: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DriftRow:
    """How far new pairs are from those before in one thing; `found` says whether that is a drift."""

    name: str
    test: str
    distance: str
    p_value: str
    found: str
    old: str
    new: str


@dataclass(frozen=True)
class TeacherRow:
    """What one teacher was asked, wrote and cost."""

    name: str
    asked: str
    traces: str
    right: str
    read: str
    written: str
    cost: str


@dataclass(frozen=True)
class AttackRow:
    """What attacks from within the worse answer do to one model; rates are (value, interval)."""

    model: str
    heading: str
    flipped: tuple[str, str]
    control: tuple[str, str]
    lost: tuple[str, str]
    clean_right: str
    note: str


def check_rows(decision: "Decision") -> list[CheckRow]:
    """Return what the gate looked at; a check without a number says what was found instead."""
    return [
        CheckRow(
            name=check.name,
            measured=": ".join(filter(None, [NONE if check.value is None else percent(check.value), check.note]))
            if check.value is not None or not check.note
            else check.note,
            needed="holds" if check.threshold is None else f"{check.bound} {percent(check.threshold)}",
            passed=check.passed,
        )
        for check in decision.checks
    ]


def score_rows(release: "Release") -> list[ScoreRow]:
    """Return the models side by side; a score that the benchmark does not give is a dash."""
    return [_score_row(model, mapping(_scores(release)[model])) for model in _models(release)]


def _score_row(model: str, scores: Mapping[str, Any]) -> ScoreRow:
    causes = sorted(mapping(scores.get("invalid_causes")).items())
    tokens = mapping(scores.get("tokens")).get("mean")
    return ScoreRow(
        model=model,
        heading=heading(model),
        cells=tuple(_cell(scores.get(key)) for key, *_ in COLUMNS),
        mean_tokens=f"{tokens:.0f}" if isinstance(tokens, int | float) else NONE,
        num_pairs=str(scores.get("num_pairs", NONE)),
        invalid=", ".join(f"{number} {cause}" for cause, number in causes if number),
        undecided=int(scores.get("undecided_orders") or 0),
    )


def category_rows(release: "Release") -> list[tuple[str, int, list[str]]]:
    """Return for each category of the held-out pairs its name, its number of pairs, and each model's accuracy."""
    measured = mapping(heldout_suite(release).get("categories"))
    tables = [mapping(measured.get(model)) for model in _models(release)]
    rows = []
    for name in sorted({name for table in tables for name in table}):
        cells = [mapping(table.get(name)) for table in tables]
        most = max(int(cell.get("num_pairs") or 0) for cell in cells)
        rows.append((name if name.strip() else "(none)", most, [percent(value_of(cell)) for cell in cells]))
    return rows


def suite_rows(release: "Release") -> list[SuiteRow]:
    """Return the benchmarks by name, each under its official protocol (if it has one) and under ours."""
    rows = []
    for name, suite in sorted(mapping(release.evidence.details.get("suites")).items()):
        if name != "heldout":
            rows += [_suite_row(name, suite, protocol, _models(release)) for protocol in _protocols(suite)]
    return rows


def _protocols(suite: Mapping[str, Any]) -> list[str]:
    return [protocol for protocol in PROTOCOLS if protocol in mapping(suite.get("protocols"))]


def _suite_row(name: str, suite: Mapping[str, Any], protocol: str, models: list[str]) -> SuiteRow:
    scores = mapping(suite.get("scores"))
    found = [mapping(mapping(scores.get(model)).get(protocol)) for model in models]
    return SuiteRow(
        name=name,
        note="" if suite.get("complete") is True else _partial(suite),
        protocol=protocol,
        num_items=_number(suite.get("num_items")),
        num_pairs=_number(suite.get("num_pairs")),
        cells=tuple(_cell(parts.get("score")) for parts in found),
    )


def _partial(suite: Mapping[str, Any]) -> str:
    size = suite.get("size")
    return f"partial: {_number(suite.get('num_items'))} of {_number(size)} items" if size else "partial"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE


def attack_rows(release: "Release") -> list[AttackRow]:
    """Return how often attacks turned the right judgments of each model; empty where that was not measured."""
    injection = mapping(release.evidence.statistics.get("injection"))
    rows = []
    for model in in_order(injection):
        rates = mapping(injection[model])
        rows.append(
            AttackRow(
                model=model,
                heading=heading(model),
                flipped=_cell(rates.get("flip_rate")),
                control=_cell(mapping(rates.get("by_attack")).get("control")),
                lost=_cell(rates.get("lost_rate")),
                clean_right=str(rates.get("clean_right", NONE)),
                note=str(rates.get("reason", "")),
            )
        )
    return rows


def teacher_rows(traces: Manifest) -> list[TeacherRow]:
    """Return the teachers in the order in which they were asked."""
    steps = mapping(traces.statistics.get("steps"))
    return [
        TeacherRow(
            name=str(step.get("teacher", "unknown")),
            asked=_number(step.get("asked")),
            traces=_number(step.get("traces")),
            right=_number(step.get("right")),
            read=_number(step.get("prompt_tokens")),
            written=_number(step.get("completion_tokens")),
            cost=_dollars(step.get("cost")),
        )
        for _, step in sorted(steps.items(), key=lambda item: int(item[0]) if item[0].isdigit() else 0)
        if isinstance(step, Mapping)
    ]


def teacher_cost(traces: Manifest) -> str:
    """Say what the traces cost, and what was paid for attempts that gave none."""
    waste = mapping(traces.statistics.get("waste")).get("cost")
    lost = f", and {_dollars(waste)} for attempts without a trace" if waste else ""
    return f"{_dollars(traces.statistics.get('cost'))}{lost}"


def _dollars(cost: Any) -> str:
    is_number = isinstance(cost, int | float) and not isinstance(cost, bool)
    return f"${cost:,.2f}" if is_number else "not known: no price was given"


def heldout_suite(release: "Release") -> Mapping[str, Any]:
    """Return what scores.json says of the held-out pairs beside the models' measures."""
    return mapping(mapping(release.evidence.details.get("suites")).get("heldout"))


def protocol_text(release: "Release") -> str:
    """Return in words how the held-out pairs were judged."""
    return str(mapping(heldout_suite(release).get("protocols")).get("ours", ""))


def benchmark_report(release: "Release") -> str:
    """Return where the benchmark's own report lies, or nothing if it wrote none."""
    benchmark = release.evidence.manifests["benchmark"]
    written = any(entry.path == "report.html" for entry in benchmark.files)
    return f"{benchmark.uri}/report.html" if written else ""


def _scores(release: "Release") -> Mapping[str, Any]:
    return mapping(release.evidence.statistics.get("scores"))


def _models(release: "Release") -> list[str]:
    return in_order(model for model, scores in _scores(release).items() if mapping(scores))


def _cell(score: Any) -> tuple[str, str]:
    return percent(value_of(score)), interval(score)


def interval(score: Any) -> str:
    """Return a score's interval as percentages, or nothing where the benchmark gives none."""
    low, high = mapping(score).get("low"), mapping(score).get("high")
    return "" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def value_of(score: Any) -> Any:
    """Return a score's value, or None."""
    return mapping(score).get("value")


def renewal_rows(pairs: Manifest) -> list[tuple[str, int]]:
    """Return what a run took that followed an earlier one; empty for a first run."""
    since = mapping(pairs.statistics.get("since"))
    new, replayed, overlap = (mapping(since.get(key)) for key in ("new", "replayed", "new_overlap"))
    rows = [(f"New, {words}", new.get(part)) for part, words in PART_WORDS]
    rows += [(f"Seen before and taken again, {words}", replayed.get(part)) for part, words in PART_WORDS[:2]]
    rows.append(("Held out before, and held out still", since.get("frozen")))
    counted = [count for count in overlap.values() if isinstance(count, int)]
    rows.append(("New rows left out: they are on a benchmark's question", sum(counted) if since else None))
    return [(name, count) for name, count in rows if isinstance(count, int)]


def renewed_from(pairs: Manifest) -> str:
    """Return the artifact that the run went on from, or nothing."""
    return str(mapping(pairs.statistics.get("since")).get("uri", ""))


def drift_rows(pairs: Manifest) -> list[DriftRow]:
    """Return how new pairs compare with those before; empty where that was not measured."""
    return [
        DriftRow(
            name=str(row.get("name", "unknown")).replace("_", " "),
            test=str(row.get("test", NONE)),
            distance=_decimal(row.get("distance"), ".2f"),
            p_value=_decimal(row.get("p_value"), ".2g"),
            found="drifted" if row.get("drifted") is True else "alike",
            old=_told(row.get("old"), str(row.get("test"))),
            new=_told(row.get("new"), str(row.get("test"))),
        )
        for row in mappings(pairs.statistics.get("drift"))
    ]


def _told(values: Any, test: str) -> str:
    shares = test == "chi-squared"
    words = [
        f"{name} {percent(value) if shares else f'{value:,.0f}'}"
        for name, value in mapping(values).items()
        if isinstance(value, int | float)
    ]
    return ", ".join(words) or NONE


def _decimal(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else NONE
