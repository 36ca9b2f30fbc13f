import json
import re
import sys
from datetime import UTC, datetime

import pytest

from components.core.errors import Damaged, InvalidInput
from components.core.manifest import Manifest, Parent
from pipeline.commands.lineage import go_deep
from pipeline.lineage import artifacts, chain, render
from pipeline.lineage.down import descendants
from pipeline.lineage.graph import layout
from pipeline.lineage.openlineage import events, to_json
from pipeline.lineage.page import render_html
from pipeline.lineage.walk import GONE


class Store:
    """Manifests in memory."""

    def __init__(self):
        self.manifests = {}

    def add(self, stage, parents=(), key="", **statistics):
        manifest = Manifest(
            kind=stage,
            stage=stage,
            uri=f"s3://bucket/{stage}{key}",
            run_key=stage[0] * 64,
            code_version="1",
            config={},
            files=(),
            parents={p.stage: Parent(uri=p.uri, digest=p.digest) for p in parents},
            statistics=statistics,
        )
        self.manifests[manifest.uri] = manifest
        return manifest

    def open(self, uri):
        return self.manifests.get(uri)


@pytest.fixture
def store():
    store = Store()
    sources = [{"uri": "s3://data/pairs.jsonl", "sha256": "ab" * 32, "rows": 128}]
    prepare = store.add("prepare", sources=sources, rows={"distil": 64, "rl": 32})
    traces = store.add("traces", [prepare], num_traces=60)
    filtered = store.add("filter", [traces, prepare], kept=50)
    sft = store.add("sft", [filtered], loss=0.25)
    grpo = store.add("grpo", [sft, prepare], reward=0.5)
    store.add("benchmark", [sft, grpo, prepare], accuracy=0.75)
    return store


def no_runs(digests):
    return {}


@pytest.fixture
def later(store):
    """A second run, whose data is what is new since the first's, and whose SFT starts from the first's model."""
    first, model = store.open("s3://bucket/prepare"), store.open("s3://bucket/grpo")
    new = {"uri": "s3://data/more.jsonl", "sha256": "cd" * 32}
    before = [{"uri": f"{first.uri}/{name}", "sha256": first.digest} for name in ("heldout.jsonl", "")]
    prepare = store.add(
        "prepare", sources=[*before, new], since={"uri": first.uri, "digest": first.digest, "new": {}}, key="later"
    )
    sft = store.add("sft", [prepare], sources=[{"uri": model.uri, "sha256": model.digest}], key="later")
    return store.add("grpo", [sft, prepare], key="later")


def flat(node):
    return [node, *(found for parent in node.parents for found in flat(parent))]


def test_a_model_leads_back_to_its_preference_data(store):
    tree = chain("s3://bucket/grpo/manifest.json", store, find_runs=no_runs)
    assert [(node.stage or node.name, node.repeated) for node in flat(tree)] == [
        ("grpo", False),
        ("sft", False),
        ("filter", False),
        ("traces", False),
        ("prepare", False),
        ("source", False),
        ("prepare", True),
        ("prepare", True),
    ]
    source = flat(tree)[5]
    assert (source.uri, source.digest, source.statistics) == ("s3://data/pairs.jsonl", "ab" * 32, {"rows": 128})
    assert not any(node.problem for node in flat(tree))
    assert flat(tree)[4].statistics == {"rows.distil": 64, "rows.rl": 32}


def test_run_ids_come_from_the_lookup_by_digest(store):
    asked = []

    def find_runs(digests):
        asked.extend(digests)
        return {digest: f"run-{digest}" for digest in digests}

    tree = chain("s3://bucket/sft", store, find_runs=find_runs)
    assert all(node.mlflow_run_id == f"run-{node.digest}" for node in flat(tree) if node.is_artifact)
    assert len(asked) == 4 and set(asked) == {
        store.open(f"s3://bucket/{stage}").digest for stage in ("sft", "filter", "traces", "prepare")
    }


def test_a_replaced_parent_is_reported_where_it_stands(store):
    read = store.open("s3://bucket/traces").digest
    replaced = store.add("traces", [store.open("s3://bucket/prepare")], num_traces=61)
    tree = chain("s3://bucket/sft", store, find_runs=no_runs)
    problems = {node.name: node.problem for node in flat(tree) if node.problem}
    assert problems == {"traces": f"its child read digest {read}, but the manifest here has {replaced.digest}"}
    assert "! its child read digest" in render(tree)


def test_a_missing_parent_is_reported_and_the_rest_still_shown(store):
    del store.manifests["s3://bucket/traces"]
    nodes = flat(chain("s3://bucket/filter", store, find_runs=no_runs))
    assert [(node.name, bool(node.problem)) for node in nodes] == [
        ("filter", False),
        ("traces", True),
        ("prepare", False),
        ("source", False),
    ]


def test_a_manifest_that_is_its_own_ancestor_does_not_loop(store):
    first = store.add("sft", [store.open("s3://bucket/grpo")])
    tree = chain("s3://bucket/grpo", store, find_runs=no_runs)
    assert first.digest in {node.digest for node in flat(tree)}
    assert [node.problem for node in flat(tree) if "its own ancestor" in node.problem]


def test_render_shows_every_artifact_once_with_its_facts(store):
    text = render(
        chain("s3://bucket/benchmark", store, find_runs=lambda digests: dict.fromkeys(digests, "0123456789abcdef"))
    )
    assert text.count("kept=50") == 1
    assert text.count("(see above)") == 4
    assert "accuracy=0.75" in text
    assert "run 0123456789abcdef" in text
    assert "source  abababababab  s3://data/pairs.jsonl" in text
    assert "\x1b" not in text


def test_markup_in_a_name_is_shown_as_it_is(store):
    odd = store.add("sft", note="[red]x[/red]")
    assert "[red]x[/red]" in render(chain(odd.uri, store, find_runs=no_runs))


def test_what_data_brings_in_cannot_steer_the_terminal_or_the_page(store):
    odd = store.add("sft", note="\x1b[2J<script>x</script>")
    tree = chain(odd.uri, store, find_runs=no_runs)
    assert "\x1b" not in render(tree) and "u001b[2J<script>" in render(tree)
    page = render_html(odd.uri, tree, [])
    assert "<script" not in page and "&lt;script&gt;" in page


def nobody(digests):
    return ()


def grown(store, later, generations=0):
    return chain(later.uri, store, generations=generations, find_runs=no_runs, find_versions=nobody)


def test_what_a_run_went_on_from_stands_in_the_tree_and_no_file_of_it_does(store, later):
    tree = grown(store, later)
    assert [(node.name, node.uri) for node in flat(tree)] == [
        ("grpo", "s3://bucket/grpolater"),
        ("sft", "s3://bucket/sftlater"),
        ("prepare", "s3://bucket/preparelater"),
        ("since", "s3://bucket/prepare"),
        ("source", "s3://data/more.jsonl"),
        ("warm start", "s3://bucket/grpo"),
        ("prepare", "s3://bucket/preparelater"),
    ]
    assert {node.uri for node in artifacts(tree) if node.earlier} == {"s3://bucket/prepare", "s3://bucket/grpo"}
    assert "--generations" in render(tree)


def test_earlier_runs_are_shown_as_far_as_they_are_asked_for(store, later):
    once = grown(store, later, generations=1)
    stages = [node.stage for node in artifacts(once)]
    assert stages == ["grpo", "sft", "prepare", "prepare", "grpo", "sft", "filter", "traces"]
    assert "--generations" not in render(once)
    model = later
    third = store.add("sft", sources=[{"uri": model.uri, "sha256": model.digest}], key="third")
    assert len(artifacts(grown(store, third))) == 2
    assert len(artifacts(grown(store, third, generations=1))) == 6
    assert len(artifacts(grown(store, third, generations=2))) == 9


def test_a_start_that_is_gone_or_exchanged_is_a_problem(store, later):
    store.add("grpo", reward=0.9)
    del store.manifests["s3://bucket/prepare"]
    problems = {node.name: node.problem for node in flat(grown(store, later)) if node.problem}
    assert problems["since"] == GONE
    assert problems["warm start"].startswith("its child read digest")


def test_a_model_in_s3_that_a_recipe_names_as_its_base_is_told_as_that(store):
    base = store.open("s3://bucket/grpo")
    made = store.add("sft", sources=[{"uri": base.uri, "sha256": base.digest}], key="other")
    made = made.model_copy(update={"config": {"base_model": base.uri}})
    store.manifests[made.uri] = made
    assert [node.name for node in grown(store, made).parents] == ["base model"]


def test_events_have_as_inputs_what_a_run_went_on_from(store, later):
    found = events([grown(store, later)], store.open, lambda uri: datetime(2026, 1, 1, tzinfo=UTC))
    inputs = {
        event["outputs"][0]["name"]: {
            (one["name"], one["facets"]["version"]["datasetVersion"]) for one in event["inputs"]
        }
        for event in found
    }
    assert ("prepare", store.open("s3://bucket/prepare").digest) in inputs["preparelater"]
    assert ("grpo", store.open("s3://bucket/grpo").digest) in inputs["sftlater"]
    assert len(inputs["preparelater"]) == 2


def test_the_champion_that_was_judged_too_is_told_by_its_digest(store):
    sources = [{"uri": "judge@champion", "sha256": "ef" * 32}]
    made = store.add("benchmark", sources=sources, key="too").model_copy(
        update={"config": {"champion": "judge@champion"}}
    )
    store.manifests[made.uri] = made
    (node,) = chain(made.uri, store, find_runs=no_runs).parents
    assert (node.uri, node.digest) == ("judge@champion", "ef" * 32) and "judged beside it" in render(node)
    (event,) = events([chain(made.uri, store, find_runs=no_runs)], store.open, lambda uri: datetime.now(UTC))
    assert [(one["namespace"], one["name"]) for one in event["inputs"]] == [("registry", "judge@champion")]
    nobody = made.model_copy(update={"statistics": {"sources": [{"uri": "judge@champion", "sha256": "none"}]}})
    store.manifests[made.uri] = nobody
    assert chain(made.uri, store, find_runs=no_runs).parents == ()


def test_events_leave_out_what_cannot_be_read(store):
    def opened(uri):
        if uri.endswith("traces"):
            raise Damaged("no manifest")
        return store.open(uri)

    found = events([chain("s3://bucket/sft", store, find_runs=no_runs)], opened, lambda uri: datetime.now(UTC))
    assert {event["job"]["name"] for event in found} == {"prepare", "filter", "sft"}


def test_down_leads_on_to_the_runs_that_went_on_from_it(store, later):
    (tree,) = descendants(
        ["s3://bucket/prepare"], store.manifests.values(), None, find_runs=no_runs, find_versions=nobody
    )
    assert {node.uri for node in artifacts(tree)} == set(store.manifests)
    assert [node.name for node in tree.walk() if node.name.startswith("by ")] == ["by warm start", "by since"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("s3://new/weeks/dt=2026-11-16/part-0.jsonl", ["s3://new/weeks/"]),
        ("s3://new/weeks", ["s3://new/weeks/"]),
        ("s3://new", ["s3://new/more.jsonl", "s3://new/weeks/"]),
    ],
)
def test_a_file_of_a_folder_that_was_read_leads_down_and_so_does_a_folder_of_files(store, asked, found):
    for number, uri in enumerate(("s3://new/weeks/", "s3://new/more.jsonl", "s3://newest/more.jsonl")):
        store.add("prepare", sources=[{"uri": uri, "sha256": f"{number:02d}" * 32}], key=f"p{number}")
    trees = descendants([asked], store.manifests.values(), None, find_runs=no_runs, find_versions=nobody)
    assert [tree.uri for tree in trees] == found
    assert all(tree.children for tree in trees)
    told = f"{asked} lies in it; whether it was there when a run read this, no manifest says"
    assert [tree.problem for tree in trees] == [told if asked.endswith(".jsonl") else ""] * len(found)
    with pytest.raises(InvalidInput, match="no manifest below the artifact root is at s3://new/other"):
        descendants(["s3://new/other.jsonl"], store.manifests.values(), None, find_runs=no_runs, find_versions=nobody)


@pytest.fixture
def deep():
    before = sys.getrecursionlimit()
    yield go_deep()
    sys.setrecursionlimit(before)


def test_years_of_weekly_runs_can_be_shown(store, later, deep):
    for week in range(110):
        later = store.add("sft", sources=[{"uri": later.uri, "sha256": later.digest}], key=f"sft{week}")
        later = store.add("grpo", [later], key=f"grpo{week}")
    tree = grown(store, later, generations=1000)
    (below,) = descendants(
        ["s3://bucket/prepare"], store.manifests.values(), None, find_runs=no_runs, find_versions=nobody
    )
    shown = json.loads(to_json(tree, [below], ()))
    assert shown["tree"]["uri"] == later.uri
    assert render(tree) and render_html(later.uri, tree, [below])


def test_arrows_between_runs_do_not_leave_the_picture(store, later):
    graph = layout([grown(store, later, generations=1)])
    places = [float(number) for arrow in graph.arrows for number in re.findall(r"-?[0-9]+", arrow)]
    assert min(places) >= 0 and len(graph.arrows) == 13


def test_a_graph_has_a_box_for_each_artifact_and_columns_in_the_order_of_the_work(store):
    graph = layout([chain("s3://bucket/benchmark", store, find_runs=no_runs)])
    names = ["source", "prepare", "traces", "filter", "sft", "grpo", "benchmark"]
    assert [heading for _, heading in graph.headings] == names
    assert [box.node.stage or box.node.name for box in graph.boxes] == names
    assert [box.x for box in graph.boxes] == sorted({box.x for box in graph.boxes})
    assert len(graph.arrows) == 10
    assert all(box.x + 132 <= graph.width and box.y + 46 <= graph.height for box in graph.boxes)


def test_json_holds_the_whole_tree(store):
    tree = json.loads(to_json(chain("s3://bucket/sft", store, find_runs=no_runs), (), ()))["tree"]
    assert tree["parents"][0]["parents"][0]["stage"] == "traces"


def test_an_unknown_uri_says_what_to_check(store):
    with pytest.raises(InvalidInput, match="no manifest at s3://bucket/nothing; check the name"):
        chain("s3://bucket/nothing", store, find_runs=no_runs)


def test_a_malformed_version_is_refused_before_mlflow_is_asked(store):
    with pytest.raises(InvalidInput, match="is no registered model; write name@champion, name/3"):
        chain("name@a@b", store, find_runs=no_runs)


def test_a_version_without_a_tracking_server_says_so(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InvalidInput, match="MLFLOW_TRACKING_URI is not set"):
        chain("reasrm-demo@champion", store)
