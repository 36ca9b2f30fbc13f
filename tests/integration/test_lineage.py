import gzip
import json
import re
import uuid
from datetime import datetime
from typing import Any

import pytest

from components.adapters import tracking
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest, Parent, describe, hash_file
from components.core.records import to_line, write_jsonl
from components.core.schema import Judgment, PreferencePair, Verdict
from pipeline import cli
from pipeline.lineage import artifacts, chain
from pipeline.lineage.diff import diff
from pipeline.lineage.down import descendants, manifests_below, starts_of
from pipeline.lineage.verify import bytes_to_read, verify

NUM_HELDOUT = 12
MODEL = "judge-" + uuid.uuid4().hex[:8]


def pair(name, answer="2"):
    return PreferencePair(id=name, prompt=f"{name}?", response_a=answer, response_b="no", label="A")


class Maker:
    """Commits artifacts as the stages do, below one artifact root of its own."""

    def __init__(self, s3, folder):
        self.storage, self.root, self.folder = s3.storage, f"{s3.prefix}/artifacts", folder

    def commit(self, stage, parents=(), *, kind="x", config=None, code="1", write=lambda folder: None, **statistics):
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        (folder / "note.txt").write_text(stage)
        write(folder)
        key = uuid.uuid4().hex
        manifest = Manifest(
            kind=kind,
            stage=stage,
            uri=f"{self.root}/{stage}/{key[:20]}",
            run_key=key,
            code_version=code,
            config=config or {},
            files=describe(folder),
            parents={one.stage: Parent(uri=one.uri, digest=one.digest) for one in parents},
            statistics=statistics,
        )
        return self.storage.commit(manifest, folder)

    def version(self, parts, right, *, epochs, cost, votes=1):
        """Commit all artifacts of a model and register it; `right` names the held-out pairs judged right."""

        def data(folder):
            for part, pairs in parts.items():
                write_jsonl(folder / f"{part}.jsonl", pairs)

        def verdicts(folder):
            (folder / "verdicts").mkdir()
            rows = [
                Judgment(
                    model="grpo",
                    suite="heldout",
                    key=shown.key,
                    pair_id=shown.id,
                    swapped=shown.swapped,
                    category="",
                    label=shown.label,
                    text="",
                    verdict=Verdict(winner=shown.label if one.id in right else "A", cause="ok"),
                    num_tokens=1,
                )
                for one in parts["heldout"]
                for shown in (one.shown(False), one.shown(True))
            ]
            with gzip.open(folder / "verdicts" / "grpo.jsonl.gz", "wb") as file:
                file.writelines(map(to_line, rows))

        source = self.folder / "pairs.jsonl"
        self.folder.mkdir(exist_ok=True)
        source.write_text("{}\n")
        settings = {"sources": [{"uri": str(source)}]}
        read = [{"uri": str(source), "sha256": hash_file(source)}]
        pairs = self.commit("prepare", kind="pairs", config=settings, write=data, sources=read)
        traces = self.commit("traces", [pairs], cost=cost, teachers={"big": 4})
        sft = self.commit("sft", [traces], kind="model", config={"epochs": epochs, "base_model": "b"})
        grpo = self.commit("grpo", [sft, pairs], kind="model", code=f"code-{epochs}")
        rate = {"value": len(right) / len(parts["heldout"]), "low": 0.1, "high": 0.9}
        found = {"scores": {"grpo": {"accuracy": rate}}, "suites": {"RM-Bench": {"grpo": {"ours": 0.5}}}}
        benchmark = self.commit("benchmark", [grpo, pairs], config={"votes": votes}, write=verdicts, **found)
        publish = self.commit("publish", [benchmark, grpo], config={"judge": "grpo"})
        tags = {
            "reasrm.run_key": publish.run_key,
            "reasrm.manifest_uri": grpo.uri,
            "reasrm.manifest_digest": grpo.digest,
            "reasrm.publish_uri": publish.uri,
        }
        registered = tracking.register_version(MODEL, f"{grpo.uri}/model", None, None, tags, "")
        made = {one.stage: one for one in (pairs, traces, sft, grpo, benchmark, publish)}
        return f"{MODEL}/{registered.version}", made


@pytest.fixture
def maker(s3, tmp_path):
    return Maker(s3, tmp_path / "made")


def heldout():
    return [pair(f"h{number}") for number in range(NUM_HELDOUT)]


@pytest.fixture
def two(maker):
    """Two versions: the second has one more pair, one fewer, one moved, other settings, and judges better."""
    held = heldout()
    old = maker.version(
        {"distil": [pair("d1"), pair("d2")], "rl": [pair("r1")], "heldout": held}, {"h0"}, epochs=1, cost=1.5
    )
    parts = {"distil": [pair("d1", "two"), pair("r1")], "rl": [pair("new")], "heldout": held}
    new = maker.version(parts, {one.id for one in held[:9]}, epochs=2, cost=2.5, votes=3)
    return old, new


@pytest.fixture
def reasrm(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["lineage", *arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def test_two_versions_are_compared_in_all_that_made_them(two, maker):
    (old, _), (new, _) = two
    found = diff(chain(old, maker.storage), chain(new, maker.storage), maker.storage)
    distil, rl, held = found.data
    assert (distil.num_old, distil.num_new, distil.removed, distil.changed) == (2, 2, ("d2",), ("d1",))
    assert (rl.added, rl.removed) == (("new",), ())
    assert (held.num_old, held.added, held.removed, held.changed) == (NUM_HELDOUT, (), (), ())
    assert [(move.old, move.new, move.ids) for move in found.moved] == [("rl", "distil", ("r1",))]
    assert [(one.name, one.old, one.new) for one in found.config] == [("sft.epochs", 1, 2), ("benchmark.votes", 1, 3)]
    assert [(one.name, one.old, one.new) for one in found.code] == [("grpo", "code-1", "code-2")]
    assert [(one.name, one.old, one.new) for one in found.teacher] == [("cost", 1.5, 2.5)]
    assert ("held-out accuracy", (1 / 12, 0.1, 0.9), (9 / 12, 0.1, 0.9)) in [
        (score.name, score.old, score.new) for score in found.scores
    ]
    paired = found.paired
    assert paired is not None
    assert (paired.num_pairs, paired.only_new, paired.only_old) == (12, 8, 0)
    assert paired.p_value == pytest.approx(2 / 2**8, abs=1e-6)
    assert paired.interval is not None and 0 < paired.interval[0] < paired.difference < paired.interval[1]
    assert any("(votes)" in note for note in found.notes)


def test_a_pair_that_was_trained_on_before_it_was_held_out_is_told_and_not_compared(maker):
    held = heldout()
    old, _ = maker.version({"distil": [], "rl": [held[0]], "heldout": held[1:]}, set(), epochs=1, cost=0)
    new, _ = maker.version({"distil": [], "rl": [], "heldout": held}, {"h0"}, epochs=1, cost=0)
    found = diff(chain(old, maker.storage), chain(new, maker.storage), maker.storage)
    assert found.paired is not None
    assert (found.paired.num_pairs, found.paired.only_new, found.paired.p_value) == (NUM_HELDOUT - 1, 0, 1.0)
    assert any(note.startswith("1 pairs that") and "were training data" in note for note in found.notes)


def test_equal_bytes_are_no_drift_and_every_byte_is_read(two, maker):
    (name, made), _ = two
    tree, read = chain(name, maker.storage), []
    findings = list(verify(tree, maker.storage, read.append))
    assert [finding for finding in findings if finding.drift or finding.note] == []
    assert sum(read) == bytes_to_read(tree, maker.storage) == sum(e.size for one in made.values() for e in one.files)
    assert {finding.uri for finding in findings} >= {one.uri for one in made.values()}


def test_changed_missing_and_exchanged_bytes_are_drift(two, maker, reasrm):
    (name, made), _ = two
    maker.storage.write_bytes(f"{made['prepare'].uri}/rl.jsonl", b"{}\n")
    maker.storage.delete([f"{made['benchmark'].uri}/verdicts/grpo.jsonl.gz"])
    other = made["traces"].model_copy(update={"statistics": {"cost": 0}})
    maker.storage.write_bytes(f"{other.uri}/manifest.json", other.to_bytes())
    maker.storage.write_bytes(f"{made['sft'].uri}/manifest.json", b"no manifest")
    drift = {finding.uri: " ".join(finding.drift) for finding in verify(chain(name, maker.storage), maker.storage)}
    assert "rl.jsonl: 3 bytes" in drift[made["prepare"].uri]
    assert "grpo.jsonl.gz" in drift[made["benchmark"].uri] and "missing" in drift[made["benchmark"].uri]
    assert "is not a manifest" in drift[made["sft"].uri]
    assert drift[made["grpo"].uri] == ""
    tree = chain(made["traces"].uri, maker.storage)
    assert [finding.drift for finding in verify(tree, maker.storage) if finding.name == "traces"] == [()]
    code, out, _ = reasrm(name, "--verify")
    assert code == 1
    assert "3 have drifted" in out


def test_a_source_that_grew_is_a_note(two, maker):
    (name, _), _ = two
    (maker.folder / "pairs.jsonl").write_text("{}\n{}\n")
    notes = [finding for finding in verify(chain(name, maker.storage), maker.storage) if finding.note]
    assert [finding.name for finding in notes] == ["source"]
    assert "other data than was read" in notes[0].note and not notes[0].drift


def test_a_server_that_is_away_is_no_drift(two, maker, monkeypatch):
    (name, _), _ = two
    tree = chain(name, maker.storage)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(Transient):
        list(verify(tree, type(maker.storage).from_env()))


def test_down_leads_from_pairs_to_versions(two, maker):
    (name, made), (other, _) = two
    manifests = manifests_below(maker.root, maker.storage)
    assert len(manifests) == 12
    (tree,) = descendants([made["prepare"].uri], manifests)
    assert {node.uri for node in artifacts(tree)} == {one.uri for one in made.values()}
    assert [node.name for node in tree.walk() if node.stage == "registry"] == [name]
    (source,) = descendants([str(maker.folder / "pairs.jsonl")], manifests)
    assert {node.name for node in source.walk() if node.stage == "registry"} == {name, other}
    model = starts_of(chain(other, maker.storage))
    assert [node.stage for node in descendants(model, manifests)[0].walk()] == [
        "grpo", "benchmark", "publish", "publish", "registry",
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="or was made from it"):
        descendants(["s3://nowhere/x"], manifests)


def test_a_child_that_read_another_parent_says_so_on_the_way_down(two, maker):
    (_, made), _ = two
    other = made["traces"].model_copy(update={"statistics": {"cost": 0}})
    maker.storage.write_bytes(f"{other.uri}/manifest.json", other.to_bytes())
    (tree,) = descendants([other.uri], manifests_below(maker.root, maker.storage))
    assert tree.children[0].problem.startswith(f"it read digest {made['traces'].digest}")


def test_a_run_of_the_pipeline_leads_to_what_its_stages_made(two, maker, tmp_path, monkeypatch):
    (_, made), _ = two
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    run_id, experiment = str(uuid.uuid4()), f"lineage-{uuid.uuid4().hex[:6]}"
    for stage in ("traces", "sft"):
        run = tracking.open_stage_run(
            run_id=run_id, run_name="r", stage=stage, experiment=experiment, workdir=tmp_path / stage, tags={}
        )
        run.log_output(made[stage])
        if stage == "traces":
            run.set_tags({"reasrm.reused": "true"})
        assert run.finish("FINISHED")
    tree = chain(run_id, maker.storage)
    assert (tree.stage, [node.uri for node in tree.parents]) == ("run", [made["sft"].uri])
    assert tree.statistics == {"used again": "traces"}
    parent = tracking.run_tags(tree.parents[0].mlflow_run_id)["mlflow.parentRunId"]
    again = chain(parent, maker.storage)
    assert (again.name, again.mlflow_run_id) == (run_id, parent)
    with pytest.raises(InvalidInput, match="no stage of run"):
        chain(str(uuid.uuid4()), maker.storage)


def test_a_file_of_an_artifact_stands_for_the_artifact(two, maker):
    (_, made), _ = two
    tree = chain(f"{made['benchmark'].uri}/verdicts/grpo.jsonl.gz", maker.storage)
    assert tree.uri == made["benchmark"].uri


def test_json_has_openlineage_events_in_the_order_of_the_work(two, reasrm):
    (name, made), _ = two
    code, out, err = reasrm(name, "--json")
    assert code == 0
    assert "MLFLOW_TRACKING_URI" in err
    found = json.loads(out)
    events = found["events"]
    assert {event["job"]["name"] for event in events} == set(made)
    times = [datetime.fromisoformat(event["eventTime"]) for event in events]
    assert times == sorted(times)
    for event in events:
        required(event)
    by_job = {event["job"]["name"]: event for event in events}
    (output,) = by_job["prepare"]["outputs"]
    inputs = by_job["grpo"]["inputs"]
    same = ("namespace", "name")
    assert {key: output[key] for key in same} in [{key: one[key] for key in same} for one in inputs]
    assert output["facets"]["version"]["datasetVersion"] == made["prepare"].digest
    assert f"{output['namespace']}/{output['name']}" == made["prepare"].uri


def required(event: dict[str, Any]) -> None:
    """Check what OpenLineage 2-0-2 requires of a run event and of all facets."""
    assert {"eventTime", "producer", "schemaURL", "run", "job"} <= event.keys()
    assert re.match(r"^[a-z]+:", event["producer"])
    uuid.UUID(event["run"]["runId"])
    things = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
    facets = [facet for one in things for kind in ("facets", "outputFacets") for facet in one.get(kind, {}).values()]
    assert facets
    assert all(facet["_producer"] and facet["_schemaURL"].startswith("https://") for facet in facets)


def test_the_page_is_whole_and_shows_a_problem_where_it_is(two, maker, reasrm, tmp_path):
    (name, made), _ = two
    path = tmp_path / "page.html"
    assert reasrm(name, "--html", str(path))[0] == 0
    page = path.read_text(encoding="utf-8")
    assert all(one.digest in page and one.uri in page for one in made.values())
    assert page.count("<article") == page.count("<rect") == len(made) + 2
    assert 'class="bad"' not in page and "were not hashed again" in page
    assert not re.search(r"<script|<link|<img|src=|url\(h|@import", page)
    maker.storage.delete([f"{made['sft'].uri}/note.txt"])
    assert reasrm(name, "--verify", "--html", str(path))[0] == 1
    page = path.read_text(encoding="utf-8")
    assert page.count('class="bad"') == 1 and "note.txt" in page


def test_the_command_compares_and_goes_down(two, maker, reasrm):
    (old, made), (new, _) = two
    code, out, _ = reasrm("--diff", old, new)
    assert code == 0
    assert "sft.epochs" in out and "p = 0.00781" in out and "1 pairs moved from rl to distil" in out
    code, out, _ = reasrm("--diff", old, new, "--json")
    assert json.loads(out)["paired"]["only_new"] == 8
    code, out, _ = reasrm("--down", made["sft"].uri)
    assert code == 0 and old in out
    code, out, _ = reasrm("--down", str(maker.folder / "pairs.jsonl"), "--root", maker.root)
    assert code == 0 and old in out and new in out
    assert reasrm("--diff", old)[0] == 2
