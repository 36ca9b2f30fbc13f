import gzip
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from components.core.errors import InvalidInput
from components.core.judges import in_order
from components.core.manifest import Parent, describe
from components.core.records import read_rows
from components.core.schema import Judgment, Verdict
from components.publish.ancestry import Ancestry
from components.publish.card import code, render_card, text
from components.publish.config import Config
from components.publish.examples import MAX_CHARS, choose, collect, outcome, read_examples
from components.publish.gate import decide
from components.publish.release import Evidence, Release, gather
from components.publish.report import render_report
from components.publish.tables import attack_rows, category_rows, score_rows, suite_rows

SECRET = "sk-canary"
CONFIG = Config(model_name="demo-judge", min_accuracy=0.6, max_invalid_rate=0.2, min_consistency=0.5)
JUDGES = ["base", "sft", "grpo", "a-scalar"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, publish_inputs):
    return publish_inputs(tmp_path_factory.mktemp("publish"))


@pytest.fixture(scope="module")
def evidence(inputs) -> Evidence:
    return gather(inputs, inputs, CONFIG)


def verdicts(inputs, model="grpo"):
    """The model's first judgments of the held-out pairs, read without the code under test."""
    with gzip.open(inputs.root / "benchmark" / "verdicts" / f"{model}.jsonl.gz") as file:
        rows = [Judgment.model_validate(row) for _, row in read_rows(file, model)]
    return [row for row in rows if row.suite == "heldout" and row.sample == 0]


def changed(inputs, **manifests):
    other = type(inputs)(inputs.root)
    other.update(inputs)
    other.update(manifests)
    return other


def released(evidence: Evidence, config: Config = CONFIG) -> Release:
    return Release(config, evidence, decide(evidence.statistics, config), "3", "f" * 64)


# --- gathering


def test_gather_reads_everything_but_the_weights(evidence):
    assert list(evidence.lineage) == ["pairs", "traces", "distillation", "sft", "grpo", "benchmark"]
    assert len(evidence.examples) == CONFIG.num_examples
    assert {tuple(j.model for j in judgments) for judgments in evidence.examples.values()} == {tuple(JUDGES)}
    assert len(evidence.heldout) == 24
    assert len(evidence.sft_metrics) == 40
    assert evidence.details["models"] == JUDGES
    assert evidence.statistics["injection"]["grpo"]["clean_right"] == 32


def test_gather_names_the_missing_input(inputs):
    partial = type(inputs)(inputs.root)
    partial.update({name: manifest for name, manifest in inputs.items() if name != "sft"})
    with pytest.raises(InvalidInput, match=r"misses the inputs \['sft'\]"):
        gather(partial, partial, CONFIG)


@pytest.mark.parametrize("change", [{"run_key": "1" * 64}, {"statistics": {"final_loss": 1.0}}])
def test_gather_refuses_scores_of_another_model(inputs, change):
    other = changed(inputs, grpo=inputs["grpo"].model_copy(update=change))
    with pytest.raises(InvalidInput, match="publish the model that was benchmarked"):
        gather(other, other, CONFIG)
    assert gather(other, other, CONFIG.model_copy(update={"judge": "sft"})).examples


def test_gather_refuses_a_model_without_weights(tmp_path, publish_inputs):
    inputs = publish_inputs(tmp_path)
    bare = inputs["grpo"].model_copy(update={"files": ()})
    parents = inputs["benchmark"].parents | {"grpo": Parent(uri=bare.uri, digest=bare.digest)}
    inputs["grpo"], inputs["benchmark"] = bare, inputs["benchmark"].model_copy(update={"parents": parents})
    with pytest.raises(InvalidInput, match=r"has no model/\*\.safetensors"):
        gather(inputs, inputs, CONFIG)


@pytest.mark.parametrize("model", JUDGES)
def test_gather_refuses_a_benchmark_without_the_verdicts_of_a_judge(inputs, model):
    files = tuple(e for e in inputs["benchmark"].files if model not in e.path)
    other = changed(inputs, benchmark=inputs["benchmark"].model_copy(update={"files": files}))
    with pytest.raises(InvalidInput, match=f"has no verdicts/{model}.jsonl.gz; run the benchmark again"):
        gather(other, other, CONFIG)
    # Nothing to show, nothing to read.
    assert gather(other, other, CONFIG.model_copy(update={"num_examples": 0})).examples == {}


def test_gather_names_a_row_of_verdicts_that_cannot_be_read(tmp_path, publish_inputs):
    inputs = publish_inputs(tmp_path)
    path = tmp_path / "benchmark" / "verdicts" / "sft.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"suite": "RM-Bench", "sample": 0}\n{"suite": \n', mtime=0))
    inputs["benchmark"] = inputs["benchmark"].model_copy(update={"files": describe(tmp_path / "benchmark")})
    with pytest.raises(InvalidInput, match=r"sft\.jsonl\.gz:2 \(byte 35\): .* run the benchmark again"):
        gather(inputs, inputs, CONFIG)


def test_gather_does_without_traces_and_metrics(tmp_path, publish_inputs):
    inputs = publish_inputs(tmp_path)
    del inputs["traces"]
    inputs["sft"] = inputs["sft"].model_copy(
        update={"files": tuple(e for e in inputs["sft"].files if e.path != "metrics.jsonl")}
    )
    parents = inputs["benchmark"].parents | {"sft": Parent(uri=inputs["sft"].uri, digest=inputs["sft"].digest)}
    inputs["benchmark"] = inputs["benchmark"].model_copy(update={"parents": parents})
    evidence = gather(inputs, inputs, CONFIG)
    assert evidence.traces is None
    assert evidence.sft_metrics == []
    assert "SFT: loss: not recorded" in render_report(released(evidence))
    assert "Teacher: unknown" in render_card(released(evidence))


# --- examples


def test_examples_show_right_wrong_and_invalid_of_different_pairs(inputs, evidence):
    judgments = verdicts(inputs)
    keys = choose(judgments, 5)
    by_key = {j.key: j for j in judgments}
    assert [outcome(by_key[key]) for key in keys[:3]] == ["right", "wrong", "invalid"]
    assert len({by_key[key].pair_id for key in keys}) == 5
    assert choose(reversed(judgments), 5) == keys
    assert list(evidence.examples) == keys
    assert [judgment for row in evidence.examples.values() for judgment in row if judgment.model == "grpo"] == [
        by_key[key] for key in keys
    ]


def test_examples_are_filled_up_from_what_there_is(inputs):
    judgments = verdicts(inputs)
    right = [j for j in judgments if outcome(j) == "right"]
    assert len(choose(right, 4)) == 4
    assert len(choose(judgments, 50)) == 24
    assert choose(judgments, 0) == []
    assert choose([], 5) == []


def test_examples_are_of_the_held_out_pairs_only(inputs, evidence):
    files = {model: inputs.root / "benchmark" / "verdicts" / f"{model}.jsonl.gz" for model in JUDGES}
    few = {key: pair for key, pair in evidence.heldout.items() if pair.id in ("pair-3", "pair-8")}
    found = read_examples(files, few, "sft", 50)
    assert set(found) == set(few)
    assert {judgment.sample for row in found.values() for judgment in row} == {0}
    assert {judgment.suite for row in found.values() for judgment in row} == {"heldout"}
    assert read_examples(files, {}, "sft", 50) == {}


def test_examples_are_as_the_judge_saw_them(inputs, evidence):
    everything = gather(inputs, inputs, CONFIG.model_copy(update={"num_examples": 24}))
    assert len(everything.examples) == 24
    for example in collect(everything.examples, evidence.heldout):
        pair = evidence.heldout[example.key]
        assert example.label == pair.label
        assert [opinion.model for opinion in example.opinions] == JUDGES
        assert [opinion.heading for opinion in example.opinions] == ["Base", "SFT", "GRPO", "a-scalar"]
        assert example.opinions[-1].text == "Scores: A 1.5, B -0.25"
        shown = " ".join([*(words for _, words in example.turns), *(words for _, words in example.answers)])
        assert "<|im_end|>" not in shown
        assert "[[B]]" not in shown
        assert example.answers[0][1].startswith(pair.response_a[:5])


def test_a_very_long_text_is_cut_and_says_so(evidence):
    long = {
        key: [j.model_copy(update={"text": "x" * (MAX_CHARS + 7)}) for j in row]
        for key, row in evidence.examples.items()
    }
    example = collect(long, evidence.heldout)[0]
    assert example.opinions[0].text.endswith("x\n[… 7 more characters]")


@pytest.mark.parametrize(
    ("winner", "headline"), [("A", "chose A, right"), ("B", "chose B, wrong"), (None, "no verdict: tie")]
)
def test_an_opinion_is_held_against_the_label(evidence, winner, headline):
    key, row = next((key, row) for key, row in evidence.examples.items() if evidence.heldout[key].label == "A")
    verdict = Verdict(winner=winner, cause="ok" if winner else "tie")
    (example,) = collect({key: [row[0].model_copy(update={"verdict": verdict})]}, evidence.heldout)
    assert [opinion.headline for opinion in example.opinions] == [headline]


# --- tables


def test_own_models_come_first_and_the_others_by_name():
    assert in_order(["zeta", "grpo", "champion", "sft", "base", "alpha"]) == [
        "base", "sft", "grpo", "alpha", "champion", "zeta",
    ]  # fmt: skip
    assert in_order([]) == []


def test_suites_have_a_row_for_each_protocol_and_say_when_they_are_partial(evidence):
    rows = suite_rows(released(evidence))
    assert [(row.name, row.protocol, row.note, row.num_items, row.num_pairs) for row in rows] == [
        ("JudgeBench", "ours", "", "–", "350"),
        ("RM|Bench <b>x</b>", "official", "partial: 30 of 1,327 items", "30", "270"),
        ("RM|Bench <b>x</b>", "ours", "partial: 30 of 1,327 items", "30", "270"),
    ]
    assert rows[0].cells == (("–", ""), ("–", ""), ("61.0%", "56.0% to 66.0%"), ("–", ""))
    assert [value for value, _ in rows[1].cells] == ["50.0%", "65.0%", "75.0%", "70.0%"]
    assert [value for value, _ in rows[2].cells] == ["30.0%", "45.0%", "55.0%", "50.0%"]


def test_evenly_split_orders_are_no_cause_of_a_missing_verdict(evidence):
    scores = {
        model: row | {"invalid_causes": {"truncated": 3}, "undecided_orders": 2 if model == "grpo" else 1}
        for model, row in evidence.statistics["scores"].items()
    }
    split = released(replace(evidence, statistics=evidence.statistics | {"scores": scores}))
    assert {(row.invalid, row.undecided) for row in score_rows(split)} == {("3 truncated", 2), ("3 truncated", 1)}
    words = " ".join(" ".join(Tags(render_report(split)).texts).split())
    assert "GRPO : 3 truncated; and 2 orders with a verdict each way, evenly split." in words
    assert "1 order with a verdict each way" in words
    assert "evenly split" not in render_report(released(evidence))


def test_pairs_without_a_category_are_told_as_such(evidence):
    suites = evidence.details["suites"]
    heldout = suites["heldout"] | {"categories": {"grpo": {"": {"value": 0.5, "num_pairs": 4}}}}
    details = evidence.details | {"suites": suites | {"heldout": heldout}}
    assert [name for name, *_ in category_rows(released(replace(evidence, details=details)))] == ["(none)"]


def test_a_long_name_of_a_judge_is_shortened_in_the_figure(evidence):
    name = "an/organisation/with-a-model-of-a-very-long-name-v2.5-instruct"
    scores = {name if model == "a-scalar" else model: row for model, row in evidence.statistics["scores"].items()}
    page = render_report(released(replace(evidence, statistics=evidence.statistics | {"scores": scores})))
    picture = page[page.index("<svg ") : page.index("</svg>")]
    assert name not in picture
    assert "an/organisati..." in picture
    assert name in page


def test_attacks_have_a_row_for_each_model_that_was_attacked(evidence):
    base, grpo = attack_rows(released(evidence))
    assert (base.heading, base.flipped, base.clean_right) == ("Base", ("–", ""), "0")
    assert base.note == "the judge had none right"
    assert (grpo.flipped, grpo.control, grpo.lost) == (
        ("12.5%", "7.5% to 17.5%"), ("5.5%", "0.5% to 10.5%"), ("6.2%", "1.2% to 11.2%"),
    )  # fmt: skip
    assert (grpo.clean_right, grpo.note) == ("32", "")


# --- the report


class Tags(HTMLParser):
    """Collects the elements and attributes of a page."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.open, self.texts = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_report_is_the_same_bytes_each_time(evidence, inputs):
    again = gather(inputs, inputs, CONFIG)
    assert render_report(released(evidence)) == render_report(released(again))
    assert render_card(released(evidence)) == render_card(released(again))


def test_report_escapes_what_models_and_data_say(evidence):
    page = render_report(released(evidence))
    parsed = Tags(page)
    assert parsed.open == []
    assert not {"script", "img", "iframe", "link", "object", "b2"} & set(parsed.names)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "\u202e" not in page
    assert "\\u202e" in page
    assert SECRET not in page
    assert "never to be shown" not in page


def test_report_needs_no_network_and_runs_nothing(evidence):
    page = render_report(released(evidence))
    parsed = Tags(page)
    targets = [
        value for _, name, value in parsed.attributes if name in {"src", "href", "xlink:href", "action", "srcset"}
    ]
    assert targets
    assert all(value.startswith("#") for value in targets)
    assert "default-src 'none'" in page
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style.group(1)
    assert "@import" not in style.group(1)


def test_report_shows_decision_scores_and_examples(evidence):
    words = " ".join(" ".join(Tags(render_report(released(evidence))).texts).split())
    for expected in (
        "demo-judge version 3",
        "The gate is passed.",
        "The alias champion points to this version.",
        "50.0% 40.0% to 60.0%",
        "65.0%",
        "75.0%",
        "Both orders, greedy.",
        "the longer answer is right in 58.0%",
        "3 truncated",
        "wrong verdict (5)",
        "no verdict: truncated",
        "s3://bucket/artifacts/grpo/0123",
        "Flip rate 12.5% at most 20.0% passed",
        "RM|Bench <b>x</b> partial: 30 of 1,327 items official 30 270 50.0% 45.0% to 55.0%",
        "JudgeBench ours – 350 – – 61.0%",
        "Official counts as the benchmark's own evaluation does",
        "GRPO 12.5% 7.5% to 17.5% 5.5% 0.5% to 10.5% 6.2% 1.2% to 11.2% 32",
        "Base: the judge had none right.",
        "judged pairs to browse: s3://bucket/artifacts/benchmark/0123/report.html",
        "a-scalar chose",
        "Scores: A 1.5, B -0.25",
    ):
        assert expected in words
    assert words.count("labelled better: ") == CONFIG.num_examples


def test_report_of_a_failure_says_why(evidence):
    page = render_report(released(evidence, CONFIG.model_copy(update={"min_accuracy": 0.9})))
    assert "The gate is not passed." in page
    assert "accuracy is 0.75, needs at least 0.9" in page
    assert "points to this version" not in page
    quiet = render_report(released(evidence, CONFIG.model_copy(update={"promote": False})))
    assert "This run only registers" in quiet


def test_report_and_card_do_without_any_score(evidence):
    benchmark = evidence.manifests["benchmark"].model_copy(update={"files": ()})
    manifests = {**evidence.manifests, "benchmark": benchmark}
    bare = replace(evidence, manifests=manifests, statistics={}, details={}, examples={}, grpo_metrics=[])
    page, card = render_report(released(bare)), render_card(released(bare))
    assert "The benchmark recorded no scores." in page
    assert "The gate is not passed." in card
    for absent in ("Benchmarks", "Attacks on the judge", "own report"):
        assert absent not in page
        assert absent not in card
    assert "persuasion is not. That was not measured." in card


def test_report_has_a_picture_for_each_series(evidence):
    page = render_report(released(evidence))
    assert page.count("<svg ") == 8
    assert "not recorded" not in page
    parsed = Tags(page)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r"url\(#(\w+)\)", page)) | set(re.findall(r'href="#(\w+)"', page))
    assert referenced
    assert referenced <= set(ids)
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b", page)


# --- the card


def test_card_says_what_a_reader_needs(evidence):
    card = render_card(released(evidence))
    for expected in (
        "# demo-judge",
        "`models/tiny-base`",
        "`big-teacher` (30 traces)",
        "**The gate is passed.**",
        "| GRPO (released) | 75.0% (65.0% to 85.0%) |",
        "In brackets the 95% interval.",
        "The filter kept 21 of 30 traces (70.0%)",
        "| `beta` | `0.001` |",
        "aws s3 cp --recursive s3://bucket/artifacts/grpo/0123/model/ judge/",
        'render(pair, "rubric")',
        "max_new_tokens=512",
        "| `tiny-base` | MIT |",
        "unknown: look it up before use",
        "| Count | Number |",
        "Always naming the longer answer is right in 58.0% of these pairs.",
        "Both orders, greedy.",
        "| flip rate | 12.5% | at most 20.0% | yes |",
        "| Suite | Protocol | Items | Pairs | Base | SFT | GRPO | a-scalar |",
        "(partial: 30 of 1,327 items) | official | 30 | 270 | 50.0% (45.0% to 55.0%) |",
        "ours asks for both orders to name the better answer, which is harder",
        "| JudgeBench | ours | – | 350 | – | – | 61.0% (56.0% to 66.0%) | – |",
        "| GRPO (released) | 12.5% (7.5% to 17.5%) | 5.5% (0.5% to 10.5%) | 6.2% (1.2% to 11.2%) | 32 |",
        "Base: the judge had none right.",
        "Attacks turned 12.5% of its right verdicts.",
        "| `big-teacher` | 32 | 30 | 25 | 12,000 | 24,000 | $1.25 |",
        "| `our\\|own` | 7 | 0 | 0 | 0 | 0 | not known: no price was given |",
        "In all $1.25, and $0.50 for attempts without a trace.",
        "only a part was judged: RM\\|Bench",
        "The scores come from 12 held-out pairs",
        "`s3://bucket/artifacts/benchmark/0123/report.html`",
    ):
        assert expected in card
    for manifest in evidence.lineage.values():
        assert manifest.uri in card
        assert manifest.digest in card
    assert SECRET not in card


def test_the_gate_on_a_suite_stands_in_card_and_report_as_text(evidence):
    config = CONFIG.model_copy(update={"suites": {"RM|Bench <b>x</b>": 0.5}})
    decided = released(evidence, config)
    assert decided.decision.passed
    assert "| RM\\|Bench &lt;b&gt;x&lt;/b&gt; score | 55.0% | at least 50.0% | yes |" in render_card(decided)
    assert "RM|Bench <b>x</b> score 55.0% at least 50.0% passed" in " ".join(
        " ".join(Tags(render_report(decided)).texts).split()
    )


def test_licences_that_the_recipe_states_stand_in_the_card(evidence):
    config = CONFIG.model_copy(update={"licences": {"https://": "CC-BY-4.0", "https://user": "MIT|X", "tiny": "no"}})
    card = render_card(released(evidence, config))
    assert "| `tiny-base` | MIT |" in card, "what is recorded with a source counts more"
    assert card.count("| MIT\\|X |") == 1
    assert "CC-BY" not in card


def test_the_card_and_the_report_tell_what_became_of_the_alias(evidence):
    for change, words in (
        ({"replaces": "demo-judge/2"}, "before it pointed to demo-judge/2, where a rollback goes"),
        ({"refusal": "the champion changed"}, "The alias champion was not moved: the champion changed."),
    ):
        release = replace(released(evidence), **change)
        assert words in render_card(release)
        assert words in render_report(release)
        assert release.promoted == ("refusal" not in change)


def warm_started(evidence: Evidence, gone: bool = False) -> Evidence:
    """The evidence of a run that went on from an earlier one and its model, and measured a drift."""
    pairs, tuned, model = (evidence.manifests[name] for name in ("pairs", "sft", "grpo"))
    before = {"uri": "hf://old/data|x", "sha256": "e" * 64, "license": "ODC-BY"}
    seen = pairs.model_copy(
        update={"stage": "prepare", "uri": "s3://b/prepare/old", "statistics": {"sources": [before]}}
    )
    first = tuned.model_copy(update={"uri": "s3://b/sft/old", "stage": "sft"})
    start = model.model_copy(
        update={
            "uri": "s3://b/grpo/old",
            "stage": "grpo",
            "parents": {"sft": Parent(uri=first.uri, digest=first.digest)},
        }
    )
    now = tuned.model_copy(
        update={
            "stage": "sft",
            "config": {"base_model": "another-base"},
            "statistics": {"sources": [{"uri": start.uri, "sha256": start.digest}]},
        }
    )
    since = {"uri": seen.uri, "digest": seen.digest, "frozen": 7, "new_overlap": {"RM-Bench": 2}}
    since |= {"new": {"distil": 5, "rl": 6, "heldout": 1}, "replayed": {"distil": 3, "rl": 4}}
    drift = [
        {"name": "longer_is_better", "test": "chi-squared", "distance": 0.31, "p_value": 1e-5, "drifted": True,
         "old": {"no": 0.5, "yes": 0.5}, "new": {"no": 0.19, "yes": 0.81}},
        {"name": "source", "test": "chi-squared", "distance": 0.0, "p_value": 1.0, "drifted": False,
         "old": {"<b>a|b</b>": 1.0}, "new": {"<b>a|b</b>": 1.0}},
        {"name": "prompt_length", "test": "Kolmogorov-Smirnov", "distance": 0.1, "p_value": 0.2, "drifted": False,
         "old": {"p25": 1200.0}, "new": {"p25": 1300.0}},
    ]  # fmt: skip
    read = [{"uri": f"{seen.uri}/", "sha256": seen.digest}, *pairs.statistics["sources"]]
    now_pairs = pairs.model_copy(update={"statistics": {"since": since, "drift": drift, "sources": read}})
    ancestry = Ancestry((seen,) if gone else (start, first, seen))
    return replace(evidence, manifests=evidence.manifests | {"sft": now, "pairs": now_pairs}, ancestry=ancestry)


def test_the_card_of_a_warm_start_names_the_model_it_started_from_and_the_base_below(evidence):
    digest = evidence.manifests["sft"].statistics["sources"][0]["sha256"]
    warm = warm_started(evidence)
    release = replace(released(warm), started_from="demo-judge/2")
    card = render_card(release)
    assert f"- Base model: `models/tiny-base` (sha256 `{digest}`; licence: MIT)" in card
    assert f"- Started from: `demo-judge/2`, `s3://b/grpo/old` (manifest `{warm.start.digest}`)\n" in card
    assert "another-base`" not in card[: card.index("## Training")]
    assert "| `tiny-base` | MIT |" in card and "| `s3://b/grpo/old` |" not in card
    assert card.count("| `hf://old/data\\|x` | ODC-BY |") == 1
    assert "by way of demo-judge/2 , which SFT started from" in " ".join(
        " ".join(Tags(render_report(release)).texts).split()
    )
    assert "Started from" not in render_card(released(evidence))


def test_the_card_admits_it_where_the_model_between_is_gone(evidence):
    card = render_card(released(warm_started(evidence, gone=True)))
    assert "- Base model: `unknown` (sha256 `unknown`; licence: unknown: look it up before use)" in card
    assert "| The base model, which is unknown | unknown: look it up before use |" in card


def test_what_was_new_and_what_drifted_stands_in_card_and_report(evidence):
    release = released(warm_started(evidence))
    card, page = render_card(release), render_report(release)
    words = " ".join(" ".join(Tags(page).texts).split())
    for name, number in (
        ("New, for the teacher", 5),
        ("New, held out", 1),
        ("Seen before and taken again, for reinforcement learning", 4),
        ("Held out before, and held out still", 7),
        ("New rows left out: they are on a benchmark's question", 2),
    ):
        assert f"| {name} | {number} |" in card
        assert f"{name} {number}" in words
    assert (
        "| longer is better | chi-squared | 0.31 | 1e-05 | drifted | no 50.0%, yes 50.0% | no 19.0%, yes 81.0% |"
        in card
    )
    assert "| prompt length | Kolmogorov-Smirnov | 0.10 | 0.2 | alike | p25 1,200 | p25 1,300 |" in card
    assert "Longer is better chi-squared 0.31 1e-05 drifted no 50.0%, yes 50.0% no 19.0%, yes 81.0%" in words
    assert "&lt;b&gt;a\\|b&lt;/b&gt; 100.0%" in card
    assert "<b>a|b" not in page
    assert "since.frozen" not in card
    first = render_card(released(evidence)) + render_report(released(evidence))
    assert "New and old pairs" not in first and "Kolmogorov" not in first


def test_card_of_sft_leaves_grpo_out(evidence):
    card = render_card(released(evidence, CONFIG.model_copy(update={"judge": "sft"})))
    assert "GRPO with a reward" not in card
    assert "| SFT (released) |" in card
    assert "`beta`" not in card


def test_card_has_no_markup_of_others(evidence):
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(render_card(released(evidence)))
    parsed = Tags(page)
    assert set(parsed.names) <= {
        "h1", "h2", "p", "ul", "li", "code", "pre", "strong", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    assert any("chat | &lt;b&gt;bold&lt;/b&gt;" in row and row.count("<td>") == 6 for row in rows)
    assert any("RM|Bench &lt;b&gt;x&lt;/b&gt;" in row and row.count("<td>") == 8 for row in rows)


@pytest.mark.parametrize(
    "nasty", ["a|b", "[x](javascript:alert(1))", "<script>", "`code`", "**bold**", "a\nb\n# c", "\\|", "![i](u)"]
)
def test_untrusted_text_stays_text_in_markdown(nasty):
    for cell in (text(nasty), code(nasty)):
        page = MarkdownIt("commonmark", {"html": True}).enable("table").render(f"| a |\n| --- |\n| {cell} |\n")
        parsed = Tags(page)
        assert set(parsed.names) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
        assert parsed.names.count("td") == 1
        assert parsed.names.count("tr") == 2
