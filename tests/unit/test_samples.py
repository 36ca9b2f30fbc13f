"""The sample data is what its builder makes, is balanced, and holds exactly the faults that its card declares."""

import gzip
import json
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from components.core.schema import PreferencePair, Trace
from components.core.verdict import grammar_faults, parse_verdict
from samples import build
from samples.card import chosen_is_longer
from samples.task import Params, words
from samples.traces import FAULTS, Case, fault_of, record

CHECKS = {kind.name: kind.check for kind in build.KINDS}
BOTH_ORDERS = (False, True)


def rows(name: str) -> list[dict[str, Any]]:
    text = build.read(name)
    assert text is not None, f"{name} is missing; run: python -m samples.build"
    return [json.loads(line) for line in text.splitlines()]


@cache
def pairs() -> list[PreferencePair]:
    return [PreferencePair.model_validate(row) for row in rows("pairs.jsonl.gz")]


@cache
def traces() -> dict[str, Trace]:
    return {row["key"]: Trace.model_validate(row) for row in rows("traces.jsonl.gz")}


@cache
def cases() -> dict[str, Case]:
    return {case.pair_id: case for case in build.build_cases()}


def shown() -> list[tuple[PreferencePair, Trace, str]]:
    """Return every pair in both orders with its trace and what is wrong with that."""
    both = [pair.shown(swapped) for pair in pairs() for swapped in BOTH_ORDERS]
    return [(pair, traces()[pair.key], fault_of(pair.key)) for pair in both]


def by_category() -> dict[str, list[PreferencePair]]:
    return {
        category: [pair for pair in pairs() if pair.category == category]
        for category in dict.fromkeys(pair.category for pair in pairs())
    }


def test_files_are_what_the_builder_makes() -> None:
    stale = [name for name, text in build.build_files().items() if build.read(name) != text]

    assert stale == [], "run: python -m samples.build"


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    build.write("pairs.jsonl.gz", "one\n")
    first = (tmp_path / "pairs.jsonl.gz").read_bytes()
    build.write("pairs.jsonl.gz", "one\n")

    assert (tmp_path / "pairs.jsonl.gz").read_bytes() == first
    assert first[4:8] == bytes(4), "the gzip header carries a time"
    assert build.read("pairs.jsonl.gz") == "one\n"


def test_check_fails_until_the_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["build", "--check"])
    with pytest.raises(SystemExit, match="not up to date"):
        build.main()
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr("sys.argv", ["build"])
    build.main()
    monkeypatch.setattr("sys.argv", ["build", "--check"])
    build.main()

    (tmp_path / "README.md").write_text("edited by hand")
    with pytest.raises(SystemExit, match=r"README\.md"):
        build.main()


@cache
def extended() -> dict[str, Case]:
    return {case.pair_id: case for case in build.build_cases(5000)}


def test_more_pairs_have_the_samples_among_them_and_are_all_distinct(tmp_path: Path) -> None:
    build.extend(1100, tmp_path / "new" / "folder")
    first = (tmp_path / "new" / "folder" / "traces.jsonl.gz").read_bytes()
    more = gzip.decompress((tmp_path / "new" / "folder" / "pairs.jsonl.gz").read_bytes()).decode().splitlines()
    made = [PreferencePair.model_validate_json(line) for line in more]

    assert len(made) == len({pair.id for pair in made}) == len({pair.prompt for pair in made}) == 1100
    assert set((build.read("pairs.jsonl.gz") or "").splitlines()) < set(more)
    keys = [json.loads(line)["key"] for line in gzip.decompress(first).decode().splitlines()]
    assert sorted(keys) == sorted(pair.shown(swapped).key for pair in made for swapped in BOTH_ORDERS)

    build.extend(1100, tmp_path)
    assert (tmp_path / "traces.jsonl.gz").read_bytes() == first


def test_five_thousand_pairs_are_checked_and_balanced_like_the_samples() -> None:
    counts = Counter(case.category for case in extended().values())
    assert extended().items() >= cases().items()
    assert len(extended()) == counts.total() == 5000
    assert {counts[name] for name in CHECKS} == {328, 329}
    assert len({(case.turns, case.prompt) for case in extended().values()}) == 5000
    for category, check in CHECKS.items():
        group = [case for case in extended().values() if case.category == category]
        assert all(check(case.params, case.right.text) for case in group), category
        assert not any(check(case.params, case.wrong.text) for case in group), category
        longer = sum(len(case.right.text) > len(case.wrong.text) for case in group) / len(group)
        assert 0.4 <= longer <= 0.6, f"{category}: the chosen answer is longer in {longer:.0%}"
        assert 0.45 <= sum(case.label == "A" for case in group) / len(group) <= 0.55, category


def test_sound_judgments_of_five_thousand_pairs_keep_the_grammar_and_are_right() -> None:
    for case in extended().values():
        for swapped in BOTH_ORDERS:
            if not fault_of(case.key(swapped)):
                text = str(record(case, swapped)["text"])
                assert grammar_faults(text, "rubric") == [], case.key(swapped)
                assert parse_verdict(text).winner == case.winner(swapped), case.key(swapped)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "971", "--output", "new"], "971 pairs are fewer than the samples themselves; ask for 972"),
        (["--pairs", "20000", "--output", "new"], r"no new question in 1000 draws of \w+; ask for fewer pairs"),
    ],
)
def test_a_number_of_pairs_that_cannot_be_is_refused(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    with pytest.raises(SystemExit, match=words):
        build.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--pairs", "1000"], ["--output", "x"], ["--check", "--pairs", "1", "--output", "x"]]
)
def test_half_a_wish_for_more_pairs_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    with pytest.raises(SystemExit) as caught:
        build.main()
    assert caught.value.code == 2


def test_there_is_enough_of_each() -> None:
    groups = by_category()

    assert len(pairs()) >= 904
    assert sum(len(groups[name]) for name in CHECKS) >= 840
    assert len(CHECKS) >= 10
    assert len(groups["chat"]) + len(groups["safety"]) >= 64
    assert set(groups) == {*CHECKS, "chat", "safety"}
    assert sum(len(pair.prompt) > 1 for pair in pairs()) >= 40
    assert sorted(traces()) == sorted(pair.key for pair, _, _ in shown())


def test_ids_and_prompts_are_distinct() -> None:
    assert len({pair.id for pair in pairs()}) == len(pairs())
    assert len({pair.prompt for pair in pairs()}) == len(pairs())
    assert all(pair.id.startswith(f"{pair.category}-") and not pair.swapped for pair in pairs())


def test_neither_length_nor_place_tells_the_label() -> None:
    for category, group in by_category().items():
        longer = sum(chosen_is_longer(pair.model_dump()) for pair in group) / len(group)
        assert 0.4 <= longer <= 0.6, f"{category}: the chosen answer is longer in {longer:.0%}"
        label_a = sum(pair.label == "A" for pair in group) / len(group)
        assert 0.45 <= label_a <= 0.55, f"{category}: the label is A in {label_a:.0%}"


def test_openings_do_not_tell_the_label() -> None:
    """No phrase of the templates may go with right or with wrong answers alone."""
    chosen, rejected = Counter[str](), Counter[str]()
    for pair in pairs():
        if pair.category in CHECKS and pair.category != "constraints":
            right, wrong = responses(pair)
            chosen[" ".join(right.split()[:3])] += 1
            rejected[" ".join(wrong.split()[:3])] += 1
    common = [opening for opening, count in (chosen + rejected).items() if count >= 40]

    assert len(common) >= 6
    for opening in common:
        assert 0.3 <= chosen[opening] / (chosen[opening] + rejected[opening]) <= 0.7, opening


def responses(pair: PreferencePair) -> tuple[str, str]:
    """Return the chosen and the rejected answer."""
    both = (pair.response_a, pair.response_b)
    return both if pair.label == "A" else (both[1], both[0])


@pytest.mark.parametrize("category", sorted(CHECKS))
def test_a_program_tells_right_from_wrong(category: str) -> None:
    for pair in by_category()[category]:
        params: Any = pair.meta["params"]
        right, wrong = responses(pair)
        assert CHECKS[category](params, right), f"{pair.id}: {right!r} is refused"
        assert not CHECKS[category](params, wrong), f"{pair.id}: {wrong!r} is accepted"


CHECK_CASES: list[tuple[str, Params, str, str]] = [
    ("arithmetic", {"sum": [17, 26]}, "17 + 26 makes 43.", "17 + 26 makes 33."),
    ("percentages", {"rate": 75, "base": 80}, "$60", "$20"),
    ("sequences", {"rule": "last two", "shown": [2, 3, 5, 8]}, "13", "11"),
    ("comparison", {"ask": "larger", "options": ["9.8", "9.11"]}, "It is 9.8.", "It is 9.11."),
    ("counting", {"count": "r", "text": "strawberry"}, "There are 3.", "There are 2."),
    ("strings", {"work": "devowel", "text": "planet"}, 'It is "plnt".', 'It is "plnet".'),
    ("sorting", {"how": "down", "items": [5, 50, 15]}, "50, 15, 5", "50, 5, 15"),
    ("sorting", {"how": "words", "items": ["fig", "apple"]}, "apple, fig", "apple"),
    ("dates", {"ask": "date", "year": 2024, "month": 2, "day": 28, "days": 2}, "March 1", "March 2"),
    ("clock", {"ask": "end", "start": 1125, "length": 110}, "At 20:35.", "At 19:95."),
    ("lists", {"work": "unique", "items": [3, 1, 3]}, "[3, 1]", "[1, 3]"),
    ("python", {"code": 's = "kettle"\nprint(s[1:4])'}, "`ett`", "`kett`"),
    ("python", {"code": "n, k = 9, 0\nwhile n > 1:\n    n //= 2\n    k += 1\nprint(k)"}, "`3`", "`4`"),
    ("units", {"given": 7, "factor": 1000, "unit": "meters", "to": "small"}, "7000 meters", "7000 centimeters"),
    ("stories", {"story": "change", "numbers": [4, 3, 20]}, "$8", "$12"),
    ("logic", {"facts": ["Ana runs faster than Ben.", "Ben runs faster than Cleo."], "end": 1}, "Cleo.", "Ben."),
    ("constraints", {"rule": "without", "letter": "e"}, "Snow falls.", "It melts."),
    ("constraints", {"rule": "words", "count": 3}, "Rain falls softly.", "Rain falls."),
    ("constraints", {"rule": "json", "fields": ["city", "Rome"]}, '{"city": "Rome"}', 'Here: {"city": "Rome"}'),
]


@pytest.mark.parametrize(("category", "params", "right", "wrong"), CHECK_CASES)
def test_checks_know_answers_worked_out_by_hand(category: str, params: Params, right: str, wrong: str) -> None:
    assert CHECKS[category](params, right)
    assert not CHECKS[category](params, wrong)


def test_a_parameter_of_the_wrong_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="items is 3"):
        words({"items": 3}, "items")


def test_everything_is_short() -> None:
    prompts = [trace.prompt_tokens for trace in traces().values()]
    sound = [trace.completion_tokens for _, trace, fault in shown() if not fault]

    assert median(prompts) <= 70
    assert max(prompts) <= 220
    assert median(sound) <= 110
    assert max(trace.completion_tokens for trace in traces().values()) <= 180


def test_only_rejected_answers_carry_injections() -> None:
    marks = ("[[A]]", "[[B]]", "<answer>", "</eval>")
    injected = [pair for pair in pairs() if any(mark in pair.response_a + pair.response_b for mark in marks)]

    assert len(injected) == 6
    for pair in injected:
        assert pair.category in {"chat", "safety"}
        assert not any(mark in responses(pair)[0] for mark in marks), pair.id


def test_sound_traces_keep_the_grammar_and_find_the_label() -> None:
    sound = [(pair, trace) for pair, trace, fault in shown() if not fault]

    assert len(sound) > 1500
    for pair, trace in sound:
        assert grammar_faults(trace.text, "rubric") == [], pair.key
        assert parse_verdict(trace.text).winner == pair.label, pair.key
        assert trace.finish_reason == "stop"


def test_sound_traces_quote_word_for_word() -> None:
    for pair, trace, fault in shown():
        if not fault:
            for letter, response in (("A", pair.response_a), ("B", pair.response_b)):
                quote = trace.text.split(f"<quote_{letter}>")[1].split(f"</quote_{letter}>")[0]
                assert quote and quote in response, f"{pair.key}: {quote!r}"


def test_sound_reasoning_ends_at_the_right_answer() -> None:
    """The solution names what the chosen answer claims; a mistaken one names what the rejected answer claims."""
    for pair, trace, fault in shown():
        case = cases()[pair.id]
        if case.right.claim and fault in {"", "wrong verdict"}:
            solution = trace.text.split("<solution>")[1].split("</solution>")[0]
            believed = case.wrong if fault else case.right
            for joint in (" > ", " < ", " before "):
                solution = solution.replace(joint, ", ")
            end = believed.claim.strip('"`')
            assert solution.endswith(f" {end}."), f"{pair.key}: {solution!r}"


def test_share_and_kinds_of_faults() -> None:
    faults = Counter(fault for _, _, fault in shown() if fault)

    assert 0.12 <= faults.total() / len(traces()) <= 0.18
    assert set(faults) == set(FAULTS)
    assert min(faults.values()) >= 20


def test_every_fault_is_caught() -> None:
    for pair, trace, fault in shown():
        truncated = trace.finish_reason == "length"
        verdict = parse_verdict(trace.text, truncated=truncated)
        broken = grammar_faults(trace.text, "rubric")
        match fault:
            case "wrong verdict":
                assert broken == [] and verdict.winner not in {pair.label, None}, pair.key
            case "two verdicts":
                assert broken and verdict.winner is None, pair.key
            case "cut off":
                assert truncated and broken and verdict.cause == "truncated", pair.key
            case "wrong tags":
                assert broken and verdict.winner is None, pair.key
            case "no reasoning":
                assert broken and verdict.winner == pair.label, pair.key


def test_the_card_counts_what_is_there() -> None:
    card = build.read("README.md") or ""
    faults = Counter(fault for _, _, fault in shown() if fault)

    for category, group in by_category().items():
        assert f"| {category} | {len(group)} |" in card
    for fault, count in faults.items():
        assert f"| {fault} | {count} |" in card
