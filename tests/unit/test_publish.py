import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from components.core.errors import InvalidInput
from components.core.manifest import Parent
from components.publish.card import code, render_card, text
from components.publish.config import Config
from components.publish.examples import MAX_CHARS, choose, collect, outcome
from components.publish.gate import decide
from components.publish.release import Evidence, Release, gather
from components.publish.report import render_report

SECRET = "sk-canary"
CONFIG = Config(model_name="demo-judge", min_accuracy=0.6, max_invalid_rate=0.2, min_consistency=0.5)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, publish_inputs):
    return publish_inputs(tmp_path_factory.mktemp("publish"))


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
    partial = type(inputs)(inputs.root)
    partial.update({name: manifest for name, manifest in inputs.items() if name != "sft"})
    with pytest.raises(InvalidInput, match=r"misses the inputs \['sft'\]"):
        gather(partial, partial, "grpo")


@pytest.mark.parametrize("change", [{"run_key": "1" * 64}, {"statistics": {"final_loss": 1.0}}])
def test_gather_refuses_scores_of_another_model(inputs, change):
    other = type(inputs)(inputs.root)
    other.update(inputs)
    other["grpo"] = inputs["grpo"].model_copy(update=change)
    with pytest.raises(InvalidInput, match="publish the model that was benchmarked"):
        gather(other, other, "grpo")
    assert gather(other, other, "sft").scores


def test_gather_refuses_a_model_without_weights(tmp_path, publish_inputs):
    inputs = publish_inputs(tmp_path)
    bare = inputs["grpo"].model_copy(update={"files": ()})
    parents = inputs["benchmark"].parents | {"grpo": Parent(uri=bare.uri, digest=bare.digest)}
    inputs["grpo"], inputs["benchmark"] = bare, inputs["benchmark"].model_copy(update={"parents": parents})
    with pytest.raises(InvalidInput, match=r"has no model/\*\.safetensors"):
        gather(inputs, inputs, "grpo")


def test_gather_does_without_traces_and_metrics(tmp_path, publish_inputs):
    inputs = publish_inputs(tmp_path)
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
