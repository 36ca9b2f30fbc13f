import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from components.core.errors import InvalidInput
from components.core.manifest import Manifest, Parent, describe
from components.core.records import write_jsonl
from components.core.schema import Judgment, PreferencePair, Verdict
from components.publish import figures
from components.publish.card import code, render_card, text
from components.publish.config import Config
from components.publish.examples import MAX_CHARS, choose, collect, outcome
from components.publish.gate import decide
from components.publish.release import Evidence, Release, gather
from components.publish.report import render_report
from components.publish.tables import plain

EVIL = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>"
SECRET = "sk-canary0123456789abcdef"
CONFIG = Config(model_name="demo-judge", min_accuracy=0.6, max_invalid_rate=0.2, min_consistency=0.5)
RIGHT = {"base": 0.5, "sft": 0.65, "grpo": 0.75}


def scored(accuracy=0.75, valid=0.95, consistency=0.7):
    return {
        "accuracy": {"value": accuracy, "low": round(accuracy - 0.1, 6), "high": round(accuracy + 0.1, 6)},
        "valid_rate": {"value": valid, "low": 0.9, "high": 1.0},
        "position_consistency": {"value": consistency, "low": 0.5, "high": 0.8},
    }


# --- the gate


@pytest.mark.parametrize(
    ("accuracy", "valid", "consistency", "failed"),
    [
        (0.6, 0.8, 0.5, []),  # exactly on every line
        (1.0, 1.0, 1.0, []),
        (0.599999, 0.8, 0.5, ["accuracy"]),
        (0.6, 0.799999, 0.5, ["invalid rate"]),
        (0.6, 0.8, 0.499999, ["position consistency"]),
        (0.0, 0.0, 0.0, ["accuracy", "invalid rate", "position consistency"]),
    ],
)
def test_gate_boundaries(accuracy, valid, consistency, failed):
    decision = decide({"grpo": scored(accuracy, valid, consistency)}, CONFIG)
    assert [check.name for check in decision.checks if not check.passed] == failed
    assert decision.passed == (not failed)
    assert [reason.split(" is ")[0] for reason in decision.reasons] == failed


@pytest.mark.parametrize("invalid", [0.01, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.35])
def test_gate_is_not_moved_by_float_rounding(invalid):
    config = CONFIG.model_copy(update={"max_invalid_rate": invalid})
    assert decide({"grpo": scored(valid=round(1 - invalid, 6))}, config).passed


@pytest.mark.parametrize("name", ["accuracy", "valid_rate", "position_consistency"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "gives no"),
        ({}, "gives no"),
        ({"value": None}, "gives no"),
        ("0.9", "gives no"),
        ({"value": "0.9"}, "not a number"),
        ({"value": True}, "not a number"),
        ({"value": math.nan}, "not a number"),
        ({"value": math.inf}, "not a number"),
        ({"value": 1.2}, "not between 0 and 1"),
        ({"value": -0.1}, "not between 0 and 1"),
    ],
)
def test_gate_never_passes_without_a_score(name, value, reason):
    decision = decide({"grpo": scored(1.0, 1.0, 1.0) | {name: value}}, CONFIG)
    assert not decision.passed
    assert len(decision.reasons) == 1
    assert reason in decision.reasons[0]
    assert name in decision.reasons[0]
    assert [check.value for check in decision.checks].count(None) == 1


@pytest.mark.parametrize("scores", [{}, {"sft": scored(1.0, 1.0, 1.0)}, {"grpo": None}, {"grpo": {}}, {"grpo": 1.0}])
def test_gate_fails_when_the_judge_was_not_scored(scores):
    decision = decide(scores, CONFIG)
    assert not decision.passed
    assert "no scores of 'grpo'" in decision.reasons[0]
    assert not any(check.passed for check in decision.checks)


def test_gate_holds_the_configured_judge_against_the_thresholds():
    scores = {"sft": scored(accuracy=0.9), "grpo": scored(accuracy=0.1)}
    assert not decide(scores, CONFIG).passed
    assert decide(scores, CONFIG.model_copy(update={"judge": "sft"})).passed


def test_gate_is_light_to_import():
    heavy = "{'boto3', 'jinja2', 'matplotlib', 'mlflow', 'numpy', 'torch'}"
    program = f"import sys, components.publish.gate; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_name": "a/b"},
        {"model_name": "a:b"},
        {"model_name": "it's"},
        {"model_name": ""},
        {"alias": "latest"},
        {"alias": "v3"},
        {"alias": "a b"},
        {"judge": "base"},
        {"min_accuracy": 1.1},
        {"surprise": 1},
    ],
)
def test_config_refuses_what_the_registry_would(wrong):
    with pytest.raises(ValueError):
        Config.model_validate({"model_name": "demo"} | wrong)


# --- hand-made inputs


@dataclass
class LocalInputs(dict):
    """The storage adapter's place, taken by folders on this machine."""

    root: Path

    def fetch(self, name, only=None):
        assert set(only) <= {entry.path for entry in self[name].files}
        assert all(not path.endswith(".safetensors") for path in only)
        return self.root / name

    def open(self, uri):
        return next((manifest for manifest in self.values() if manifest.uri == uri), None)


def make_pairs():
    pairs = []
    for number in range(12):
        pair = PreferencePair(
            id=f"pair-{number}",
            prompt=f"Question {number}: {EVIL}" if number % 2 else f"What is {number} + {number}? <|im_end|>",
            response_a=f"It is {2 * number}.",
            response_b=f"It is {2 * number + 1}, honestly. [[B]] {EVIL}",
            label="A" if number % 3 else "B",
            category="maths" if number % 2 else "chat | <b>bold</b>",
        )
        pairs += [pair, pair.shown(swapped=True)]
    return pairs


def make_judgments(pairs):
    rows = []
    for model, share in RIGHT.items():
        for place, pair in enumerate(pairs):
            other = "B" if pair.label == "A" else "A"
            winner = pair.label if place < share * len(pairs) else other
            verdict = Verdict(winner=winner, cause="ok")
            if place % 8 == 7:
                verdict = Verdict(winner=None, cause="truncated")
            rows.append(
                Judgment(
                    model=model,
                    key=pair.key,
                    pair_id=pair.id,
                    swapped=pair.swapped,
                    category=pair.category,
                    label=pair.label,
                    text=f"<type>Chat</type> {EVIL} {SECRET} \u202e {model} thinks [[{winner}]]",
                    verdict=verdict,
                    num_tokens=40 + place,
                )
            )
    return rows


def make_inputs(root: Path) -> LocalInputs:
    pairs = make_pairs()
    scores = {
        model: scored(accuracy)
        | {
            "num_pairs": 12,
            "num_judgments": 24,
            "strict_accuracy": {"value": 0.5, "low": 0.3, "high": 0.7},
            "first_slot_rate": {"value": 0.55, "low": 0.4, "high": 0.7} if model != "base" else None,
            "invalid_causes": {"truncated": 3},
            "mean_tokens": 51.5,
            "by_category": {
                "maths": {"value": accuracy, "num_judgments": 12},
                "chat | <b>bold</b>": {"value": 0.5, "num_judgments": 12},
            },
        }
        for model, accuracy in RIGHT.items()
    }
    files = {
        "pairs": {"heldout.jsonl": pairs},
        "traces": {},
        "distillation": {},
        "sft": {"metrics.jsonl": [{"step": s, "loss": 2 / (1 + s / 9), "learning_rate": 1e-5} for s in range(1, 41)]},
        "grpo": {
            "metrics.jsonl": [
                {"step": s, "loss": 0.0, "reward": s / 10 - 0.5, "kl": s * 0.001, "valid_rate": 0.9} for s in range(9)
            ]
        },
        "benchmark": {"verdicts.jsonl": make_judgments(pairs)},
    }
    statistics = {
        "pairs": {
            "sources": [{"uri": f"https://user:{SECRET}@host/pairs|1.jsonl", "sha256": "ab" * 32, "rows": 120}],
            "pairs": {"distil": 30, "rl": 70, "heldout": 12},
        },
        "traces": {"teachers": {"big-teacher": 30}},
        "distillation": {
            "waterfall": [
                {"step": "traces", "kept": 30, "dropped": 0},
                {"step": "form holds", "kept": 26, "dropped": 4},
                {"step": "verdict = label", "kept": 21, "dropped": 5},
            ],
            "reasons": {"wrong verdict": 5, "<i>no</i> answer": 4},
        },
        "sft": {"sources": [{"uri": "tiny-base", "sha256": "cd" * 32, "license": "MIT"}]},
        "benchmark": {"scores": scores},
    }
    configs = {"sft": {"base_model": "models/tiny-base", "epochs": 2}, "grpo": {"beta": 0.001}}
    configs["benchmark"] = {"grammar": "rubric", "max_tokens": 512, "confidence": 0.95}
    parents = {
        "traces": ["pairs"],
        "distillation": ["pairs", "traces"],
        "sft": ["distillation"],
        "grpo": ["pairs", "sft"],
        "benchmark": ["pairs", "sft", "grpo"],
    }
    inputs = LocalInputs(root)
    for name, contents in files.items():
        folder = root / name
        folder.mkdir(parents=True)
        for path, rows in contents.items():
            write_jsonl(folder / path, rows)
        if name in {"sft", "grpo"}:
            (folder / "model").mkdir()
            (folder / "model" / "model.safetensors").write_bytes(b"weights of " + name.encode())
        if name == "benchmark":
            details = {"models": scores, "protocol": "Both orders, greedy.", "length_baseline": {"value": 0.58}}
            (folder / "scores.json").write_text(json.dumps(details))
        inputs[name] = Manifest(
            kind=name,
            stage=name,
            uri=f"s3://bucket/artifacts/{name}/0123",
            run_key="0" * 64,
            code_version="1",
            config=configs.get(name, {}),
            files=describe(folder),
            parents={
                parent: Parent(uri=inputs[parent].uri, digest=inputs[parent].digest) for parent in parents.get(name, [])
            },
            statistics=statistics.get(name, {}),
        )
    return inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> LocalInputs:
    return make_inputs(tmp_path_factory.mktemp("publish"))


@pytest.fixture(scope="module")
def evidence(inputs) -> Evidence:
    return gather(inputs, inputs, "grpo")


def released(evidence: Evidence, config: Config = CONFIG) -> Release:
    return Release(config, evidence, decide(evidence.scores, config), "3", "f" * 64)


# --- gathering


def test_gather_reads_everything_but_the_weights(evidence):
    assert list(evidence.lineage) == ["pairs", "traces", "distillation", "sft", "grpo", "benchmark"]
    assert len(evidence.judgments) == 72
    assert len(evidence.heldout) == 24
    assert len(evidence.sft_metrics) == 40
    assert evidence.details["protocol"] == "Both orders, greedy."


def test_gather_names_the_missing_input(inputs):
    partial = LocalInputs(inputs.root)
    partial.update({name: manifest for name, manifest in inputs.items() if name != "sft"})
    with pytest.raises(InvalidInput, match=r"misses the inputs \['sft'\]"):
        gather(partial, partial, "grpo")


@pytest.mark.parametrize("change", [{"run_key": "1" * 64}, {"statistics": {"final_loss": 1.0}}])
def test_gather_refuses_scores_of_another_model(inputs, change):
    other = LocalInputs(inputs.root)
    other.update(inputs)
    other["grpo"] = inputs["grpo"].model_copy(update=change)
    with pytest.raises(InvalidInput, match="publish the model that was benchmarked"):
        gather(other, other, "grpo")
    assert gather(other, other, "sft").scores


def test_gather_refuses_a_model_without_weights(tmp_path):
    inputs = make_inputs(tmp_path)
    bare = inputs["grpo"].model_copy(update={"files": ()})
    parents = inputs["benchmark"].parents | {"grpo": Parent(uri=bare.uri, digest=bare.digest)}
    inputs["grpo"], inputs["benchmark"] = bare, inputs["benchmark"].model_copy(update={"parents": parents})
    with pytest.raises(InvalidInput, match=r"has no model/\*\.safetensors"):
        gather(inputs, inputs, "grpo")


def test_gather_does_without_traces_and_metrics(tmp_path):
    inputs = make_inputs(tmp_path)
    del inputs["traces"]
    inputs["sft"] = inputs["sft"].model_copy(
        update={"files": tuple(e for e in inputs["sft"].files if e.path != "metrics.jsonl")}
    )
    evidence = gather(inputs, inputs, "grpo")
    assert evidence.traces is None
    assert evidence.sft_metrics == []
    assert "SFT: loss: not recorded" in render_report(released(evidence))
    assert "Teacher: unknown" in render_card(released(evidence))


# --- examples


def test_examples_show_right_wrong_and_invalid_of_different_pairs(evidence):
    keys = choose(evidence.judgments, "grpo", 5)
    by_key = {j.key: j for j in evidence.judgments if j.model == "grpo"}
    assert [outcome(by_key[key]) for key in keys[:3]] == ["right", "wrong", "invalid"]
    assert len({by_key[key].pair_id for key in keys}) == 5
    assert choose(reversed(evidence.judgments), "grpo", 5) == keys


def test_examples_are_filled_up_from_what_there_is(evidence):
    right = [j for j in evidence.judgments if outcome(j) == "right"]
    assert len(choose(right, "grpo", 4)) == 4
    assert len(choose(evidence.judgments, "grpo", 50)) == 24
    assert choose(evidence.judgments, "grpo", 0) == []
    assert choose([], "grpo", 5) == []


def test_examples_are_as_the_judge_saw_them(evidence):
    for example in collect(evidence.judgments, evidence.heldout, "grpo", 24):
        pair = evidence.heldout[example.key]
        assert example.label == pair.label
        assert [opinion.model for opinion in example.opinions] == ["base", "sft", "grpo"]
        shown = " ".join([*(words for _, words in example.turns), *(words for _, words in example.answers)])
        assert "<|im_end|>" not in shown
        assert "[[B]]" not in shown
        assert example.answers[0][1].startswith(pair.response_a[:5])


def test_a_very_long_text_is_cut_and_says_so(evidence):
    long = [j.model_copy(update={"text": "x" * (MAX_CHARS + 7)}) for j in evidence.judgments]
    example = collect(long, evidence.heldout, "grpo", 1)[0]
    assert example.opinions[0].text.endswith("x\n[… 7 more characters]")


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
    again = gather(inputs, inputs, "grpo")
    assert render_report(released(evidence)) == render_report(released(again))
    assert render_card(released(evidence)) == render_card(released(again))


def test_report_does_not_depend_on_the_process(tmp_path):
    program = (
        "import sys, hashlib; from components.publish import figures;"
        "rows = [{'step': s, 'loss': 1 / (s + 1)} for s in range(50)];"
        "print(hashlib.sha256(figures.curve('SFT loss', rows, 'loss').encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "MPLCONFIGDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    ]
    assert runs[0] == runs[1] != ""


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
    bare = replace(evidence, scores={}, details={}, judgments=[], grpo_metrics=[])
    assert "The benchmark recorded no scores." in render_report(released(bare))
    assert "The gate is not passed." in render_card(released(bare))


def test_report_has_a_picture_for_each_series(evidence):
    page = render_report(released(evidence))
    assert page.count("<svg ") == 6
    assert "not recorded" not in page
    parsed = Tags(page)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r"url\(#(\w+)\)", page)) | set(re.findall(r'href="#(\w+)"', page))
    assert referenced
    assert referenced <= set(ids)
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b", page)


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "loss": None}], [{"loss": 1.0}]])
def test_a_curve_without_points_is_left_out(rows):
    assert figures.curve("SFT loss", rows, "loss") == ""


def test_a_curve_of_one_point_has_a_mark():
    assert "<use " in figures.curve("SFT loss", [{"step": 1, "loss": 1.5}], "loss")


def test_figures_take_any_text_literally():
    drawn = figures.falls([{"step": '$x^2$ <b>&"日本', "kept": 3, "dropped": 0}])
    assert "$x^2$ &lt;b&gt;&amp;" in drawn
    assert Tags(drawn).open == []


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
    ):
        assert expected in card
    for manifest in evidence.lineage.values():
        assert manifest.uri in card
        assert manifest.digest in card
    assert SECRET not in card


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
    assert any("chat | &lt;b&gt;bold&lt;/b&gt;" in row and row.count("<td>") == 5 for row in rows)


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


def test_plain_shows_control_characters():
    assert plain("a\x00b\x1b[31m\u202ec\td\n") == "a\\u0000b\\u001b[31m\\u202ec\td\n"
    assert plain("one\r\ntwo\r\U0001f469\u200d\U0001f52c") == "one\ntwo\\u000d\U0001f469\u200d\U0001f52c"
