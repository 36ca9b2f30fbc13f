import json

import pytest

from components.core.errors import InvalidInput
from components.core.manifest import Manifest, Parent
from pipeline.lineage import chain, render
from pipeline.lineage.graph import layout
from pipeline.lineage.openlineage import to_json
from pipeline.lineage.page import render_html


class Store:
    """Manifests in memory."""

    def __init__(self):
        self.manifests = {}

    def add(self, stage, parents=(), **statistics):
        manifest = Manifest(
            kind=stage,
            stage=stage,
            uri=f"s3://bucket/{stage}",
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


def no_runs(digest):
    return None


def flat(node):
    return [node, *(found for parent in node.parents for found in flat(parent))]


def test_a_model_leads_back_to_its_preference_data(store):
    tree = chain("s3://bucket/grpo/manifest.json", store, find_run=no_runs)
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
    asked = {}
    tree = chain("s3://bucket/sft", store, find_run=lambda digest: asked.setdefault(digest, f"run-{len(asked)}"))
    assert tree.mlflow_run_id == "run-0"
    assert set(asked) == {store.open(f"s3://bucket/{stage}").digest for stage in ("sft", "filter", "traces", "prepare")}


def test_a_replaced_parent_is_reported_where_it_stands(store):
    read = store.open("s3://bucket/traces").digest
    replaced = store.add("traces", [store.open("s3://bucket/prepare")], num_traces=61)
    tree = chain("s3://bucket/sft", store, find_run=no_runs)
    problems = {node.name: node.problem for node in flat(tree) if node.problem}
    assert problems == {"traces": f"its child read digest {read}, but the manifest here has {replaced.digest}"}
    assert "! its child read digest" in render(tree)


def test_a_missing_parent_is_reported_and_the_rest_still_shown(store):
    del store.manifests["s3://bucket/traces"]
    nodes = flat(chain("s3://bucket/filter", store, find_run=no_runs))
    assert [(node.name, bool(node.problem)) for node in nodes] == [
        ("filter", False),
        ("traces", True),
        ("prepare", False),
        ("source", False),
    ]


def test_a_manifest_that_is_its_own_ancestor_does_not_loop(store):
    first = store.add("sft", [store.open("s3://bucket/grpo")])
    tree = chain("s3://bucket/grpo", store, find_run=no_runs)
    assert first.digest in {node.digest for node in flat(tree)}
    assert [node.problem for node in flat(tree) if "its own ancestor" in node.problem]


def test_render_shows_every_artifact_once_with_its_facts(store):
    text = render(chain("s3://bucket/benchmark", store, find_run=lambda digest: "0123456789abcdef"))
    assert text.count("kept=50") == 1
    assert text.count("(see above)") == 4
    assert "accuracy=0.75" in text
    assert "run 0123456789abcdef" in text
    assert "source  abababababab  s3://data/pairs.jsonl" in text
    assert "\x1b" not in text


def test_markup_in_a_name_is_shown_as_it_is(store):
    odd = store.add("sft", note="[red]x[/red]")
    assert "[red]x[/red]" in render(chain(odd.uri, store, find_run=no_runs))


def test_what_data_brings_in_cannot_steer_the_terminal_or_the_page(store):
    odd = store.add("sft", note="\x1b[2J<script>x</script>")
    tree = chain(odd.uri, store, find_run=no_runs)
    assert "\x1b" not in render(tree) and "u001b[2J<script>" in render(tree)
    page = render_html(odd.uri, tree, [])
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_graph_has_a_box_for_each_artifact_and_columns_in_the_order_of_the_work(store):
    graph = layout([chain("s3://bucket/benchmark", store, find_run=no_runs)])
    names = ["source", "prepare", "traces", "filter", "sft", "grpo", "benchmark"]
    assert [heading for _, heading in graph.headings] == names
    assert [box.node.stage or box.node.name for box in graph.boxes] == names
    assert [box.x for box in graph.boxes] == sorted({box.x for box in graph.boxes})
    assert len(graph.arrows) == 10
    assert all(box.x + 132 <= graph.width and box.y + 46 <= graph.height for box in graph.boxes)


def test_json_holds_the_whole_tree(store):
    tree = json.loads(to_json(chain("s3://bucket/sft", store, find_run=no_runs), (), ()))["tree"]
    assert tree["parents"][0]["parents"][0]["stage"] == "traces"


def test_an_unknown_uri_says_what_to_check(store):
    with pytest.raises(InvalidInput, match="no manifest at s3://bucket/nothing; check the name"):
        chain("s3://bucket/nothing", store, find_run=no_runs)


def test_a_malformed_version_is_refused_before_mlflow_is_asked(store):
    with pytest.raises(InvalidInput, match="write name, name/3, name@champion or an s3:// uri"):
        chain("name@a@b", store, find_run=no_runs)


def test_a_version_without_a_tracking_server_says_so(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InvalidInput, match="MLFLOW_TRACKING_URI is not set"):
        chain("reasrm-demo@champion", store)
