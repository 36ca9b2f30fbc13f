import gzip
import json
import re
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest

from components.adapters import model_versions, tracking
from components.adapters.delivery import deliver
from components.adapters.promotions import find_log
from components.adapters.stage import describe_work, load_config, name_work
from components.adapters.storage import Storage
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest, Parent, describe, hash_file
from components.core.records import to_line, write_jsonl
from components.core.schema import Judgment, PreferencePair, Verdict
from pipeline import cli
from pipeline.lineage import artifacts, chain
from pipeline.lineage.diff import diff
from pipeline.lineage.down import descendants, manifests_below, starts_of
from pipeline.lineage.history import Histories
from pipeline.lineage.verify import bytes_to_read, verify
from pipeline.lineage.walk import GONE
from pipeline.services import BUCKET

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

    def version(self, parts, right, epochs, cost, votes=1, after=None):
        """Commit all artifacts of a model and register it; `right` names the held-out pairs judged right.

        `after` are those of the version that it goes on from.
        """

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
        going_on, base = {}, [{"uri": "b", "sha256": "b" * 64}]
        if after is not None:  # as `prepare` and `sft` record it
            before, model = after["prepare"], after["grpo"]
            places = [{"uri": f"{before.uri}/{name}", "sha256": before.digest} for name in ("heldout.jsonl", "")]
            counts = {"new": {"distil": 1, "rl": 1, "heldout": 0}, "replayed": {"distil": 0, "rl": 1}, "frozen": 12}
            going_on, read = {"since": {"uri": before.uri, "digest": before.digest, **counts}}, [*places, *read]
            settings |= {"since": before.uri}
            base = [{"uri": model.uri, "sha256": model.digest}]
        pairs = self.commit("prepare", kind="pairs", config=settings, write=data, sources=read, **going_on)
        traces = self.commit("traces", [pairs], cost=cost, teachers={"big": 4})
        config = {"epochs": epochs, "base_model": "b", "warm_start": after["grpo"].uri if after else ""}
        sft = self.commit("sft", [traces], kind="model", config=config, sources=base)
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
            "reasrm.benchmark_uri": benchmark.uri,
        }
        registered = model_versions.register_version(MODEL, f"{grpo.uri}/model", None, None, tags, "")
        made = {one.stage: one for one in (pairs, traces, sft, grpo, benchmark, publish)}
        return f"{MODEL}/{registered.version}", made


@pytest.fixture
def maker(s3, tmp_path):
    """For tests that write into artifacts: a root of their own."""
    return Maker(s3, tmp_path / "made")


@pytest.fixture
def one(maker):
    """A version whose artifacts may be changed."""
    return maker.version(*FIRST)


@pytest.fixture(scope="module")
def kept(services, tmp_path_factory):
    """Makes what several tests read and none changes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment().items():
            patch.setenv(name, value)
        prefix = f"s3://{BUCKET}/test-{uuid.uuid4().hex[:12]}"

        @dataclass
        class Place:
            storage = Storage.from_env()
            prefix: str

        yield lambda name: Maker(Place(f"{prefix}/{name}"), tmp_path_factory.mktemp(name) / "made")


def heldout():
    return [pair(f"h{number}") for number in range(NUM_HELDOUT)]


FIRST = ({"distil": [pair("d1"), pair("d2")], "rl": [pair("r1")], "heldout": heldout()}, {"h0"}, 1, 1.5)


@dataclass(frozen=True)
class Made:
    """Two versions, each with its artifacts by stage, and who made them."""

    maker: Maker
    old: str
    before: dict[str, Manifest]
    new: str
    after: dict[str, Manifest]


@pytest.fixture(scope="module")
def _two(kept):
    maker = kept("two")
    parts = {"distil": [pair("d1", "two"), pair("r1")], "rl": [pair("new")], "heldout": heldout()}
    old = maker.version(*FIRST)
    return Made(maker, *old, *maker.version(parts, {one.id for one in heldout()[:9]}, epochs=2, cost=2.5, votes=3))


@pytest.fixture
def two(_two, served):
    """Two versions: the second has one more pair, one fewer, one moved, other settings, and judges better."""
    return _two


@pytest.fixture(scope="module")
def _weeks(kept):
    maker = kept("weeks")
    old, before = maker.version(*FIRST)
    parts = {"distil": [pair("d3")], "rl": [pair("r2"), pair("r1")], "heldout": heldout()}
    new, after = maker.version(parts, {"h0", "h1"}, epochs=1, cost=1.0, after=before)
    log = find_log(maker.storage, MODEL, "champion", f"{maker.root}/promotions")
    for version, by in ((old, "run 1"), (new, "ann")):
        number = version.rpartition("/")[2]
        log.move(model_versions.get_version(MODEL, number), kind="promote", by=by, why="it is good", key=by)
    log.move(
        model_versions.get_version(MODEL, old.rpartition("/")[2]), kind="rollback", by="bob", why="worse", key="bob"
    )
    return Made(maker, old, before, new, after)


@pytest.fixture
def weeks(_weeks, served):
    """A version, and one that goes on from its pairs and its model; a person promoted it, and another went back."""
    return _weeks


@pytest.fixture
def reasrm(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["lineage", *arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def compared(made):
    storage = made.maker.storage
    return diff(chain(made.old, storage), chain(made.new, storage), storage)


def test_two_versions_are_compared_in_all_that_made_them(two):
    found = compared(two)
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
    old = maker.version({"distil": [], "rl": [held[0]], "heldout": held[1:]}, set(), epochs=1, cost=0)
    new = maker.version({"distil": [], "rl": [], "heldout": held}, {"h0"}, epochs=1, cost=0)
    found = compared(Made(maker, *old, *new))
    assert found.paired is not None
    assert (found.paired.num_pairs, found.paired.only_new, found.paired.p_value) == (NUM_HELDOUT - 1, 0, 1.0)
    assert any(note.startswith("1 pairs that") and "were training data" in note for note in found.notes)


def test_a_version_that_went_on_from_another_is_compared_with_it(weeks):
    found = compared(weeks)
    before, model = weeks.before["prepare"].uri, weeks.before["grpo"].uri
    assert [(one.name, one.old, one.new) for one in found.started] == [
        ("prepare: since", None, f"{before} of {weeks.old}"),
        ("sft: warm start", None, f"{model} of {weeks.old}"),
    ]
    assert ("sft: b", "b" * 64, None) in [(one.name, one.old, one.new) for one in found.sources]
    assert not any(before in one.name or model in one.name for one in found.sources)
    assert not any("since" in one.name or "warm_start" in one.name for one in found.config)
    distil, rl, held = found.data
    assert (distil.added, distil.removed) == (("d3",), ("d1", "d2"))
    assert (rl.added, rl.removed, held.added, held.removed) == (("r2",), (), (), ())
    assert found.paired is not None and found.paired.num_pairs == NUM_HELDOUT
    (note,) = [note for note in found.notes if "goes on from" in note]
    assert "2 of the pairs to train on are new since then, 1 are taken again" in note
    assert f"what went out was learned by the model of {weeks.old}, from which it starts" in note


def test_what_a_version_went_on_from_is_in_its_tree_and_verified(weeks, reasrm):
    code, out, _ = reasrm(weeks.new, "--verify")
    assert code == 0, out
    assert "8 artifacts are as their manifests say" in out
    assert "since (prepare)" in out and "warm start (grpo)" in out and f"registered as={weeks.old}" in out
    assert "note:" not in out  # the run's own sources are compared with what was read of them
    inputs = {
        f"{event['outputs'][0]['namespace']}/{event['outputs'][0]['name']}": {one["name"] for one in event["inputs"]}
        for event in json.loads(reasrm(weeks.new, "--json")[1])["events"]
    }
    assert key_of(weeks.before["grpo"]) in inputs[weeks.after["sft"].uri]
    source = str(weeks.maker.folder / "pairs.jsonl")
    assert inputs[weeks.after["prepare"].uri] == {key_of(weeks.before["prepare"]), source}


def key_of(manifest):
    return manifest.uri.split("/", 3)[3]


def test_down_leads_on_to_the_version_that_went_on_from_it(weeks, reasrm):
    code, out, _ = reasrm("--down", weeks.before["prepare"].uri)
    assert code == 0 and "by since (prepare)" in out and "by warm start (sft)" in out
    assert weeks.after["prepare"].uri in out and weeks.new in out


def test_drift_of_what_a_version_went_on_from_is_drift_of_its_lineage(maker, one, reasrm):
    _, before = one
    new, _ = maker.version(*FIRST, after=before)
    maker.storage.write_bytes(f"{before['grpo'].uri}/note.txt", b"other")
    maker.storage.delete([f"{before['prepare'].uri}/manifest.json"])
    findings = {finding.uri: finding for finding in verify(chain(new, maker.storage), maker.storage)}
    assert "note.txt" in findings[before["grpo"].uri].drift[0]
    assert findings[before["prepare"].uri].drift == (GONE,)
    assert before["sft"].uri not in findings
    assert before["sft"].uri in {node.uri for node in artifacts(chain(new, maker.storage, generations=1))}


def test_a_version_says_who_promoted_it_why_and_in_whose_place(weeks, reasrm, tmp_path):
    told = json.loads(reasrm(weeks.new, "--json")[1])["tree"]["history"]
    assert [(one["took"], one["kind"], one["by"], one["why"], one["other"]) for one in told] == [
        (True, "promote", "ann", "it is good", weeks.old),
        (False, "rollback", "bob", "worse", weeks.old),
    ]
    assert all(datetime.fromisoformat(one["when"]).tzinfo for one in told)
    path = tmp_path / "page.html"
    code, out, _ = reasrm(weeks.new, "--html", str(path))
    lines = [re.sub(r" on [0-9: -]+ UTC", "", line) for line in out.splitlines()]
    assert code == 0
    assert f"champion by ann (promote): it is good, in place of {weeks.old}" in lines
    assert f"lost champion to {weeks.old} by bob (rollback): worse" in lines
    assert "by ann (promote): it is good, in place of" in path.read_text(encoding="utf-8")
    down = reasrm("--down", weeks.after["sft"].uri)[1]
    assert "by ann (promote)" in down


def test_without_a_log_the_tags_say_who_promoted_it(one, maker):
    name, _ = one
    tags = {"reasrm.promoted_by": "run 7", "reasrm.promoted_why": "it passed", "reasrm.former_version": "x/1"}
    version = replace(model_versions.get_version(MODEL, name.rpartition("/")[2]), tags=tags)
    assert [placing.words for placing in Histories(maker.storage).of(version)] == [
        "champion by run 7 (as its tags say): it passed, in place of x/1"
    ]
    assert Histories(maker.storage).of(replace(version, tags={})) == ()


def test_a_damaged_log_of_promotions_does_not_hide_the_lineage(weeks, caplog):
    number = weeks.old.rpartition("/")[2]
    storage = weeks.maker.storage
    uri = f"{find_log(storage, MODEL, 'champion').uri}/000009.json"
    storage.write_bytes(uri, b"no record")
    try:
        tree = chain(weeks.old, storage)
    finally:
        storage.delete([uri])
    assert tree.history[0].by == model_versions.get_version(MODEL, number).tags["reasrm.promoted_by"]
    assert "no record of a promotion" in caplog.text


def test_equal_bytes_are_no_drift_and_every_byte_is_read(two):
    tree, storage, read = chain(two.old, two.maker.storage), two.maker.storage, []
    findings = list(verify(tree, storage, read.append))
    assert [finding for finding in findings if finding.drift or finding.note] == []
    total = sum(entry.size for made in two.before.values() for entry in made.files)
    assert sum(read) == bytes_to_read(tree, storage) == total
    assert {finding.uri for finding in findings} >= {made.uri for made in two.before.values()}


def test_changed_missing_and_exchanged_bytes_are_drift(one, maker, reasrm):
    name, made = one
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
    code, out, _ = reasrm(name, "--json")
    assert code == 0 and "is not a manifest" in out


def test_a_version_whose_decision_or_model_is_gone_still_has_a_tree_and_a_page(one, maker, reasrm, tmp_path):
    name, made = one
    path = tmp_path / "page.html"
    maker.storage.delete([f"{made['publish'].uri}/manifest.json"])
    tree = chain(name, maker.storage)
    assert [(node.name, node.problem) for node in tree.parents] == [("publish", GONE), ("benchmark", "")]
    assert reasrm(name, "--verify")[0] == 1
    maker.storage.delete([f"{made[stage].uri}/manifest.json" for stage in ("grpo", "benchmark")])
    assert reasrm(name, "--html", str(path))[0] == 0
    assert GONE in path.read_text(encoding="utf-8")


def test_a_source_that_grew_is_a_note(one, maker):
    name, _ = one
    (maker.folder / "pairs.jsonl").write_text("{}\n{}\n")
    notes = [finding for finding in verify(chain(name, maker.storage), maker.storage) if finding.note]
    assert [finding.name for finding in notes] == ["source"]
    assert "other data than was read" in notes[0].note and not notes[0].drift


def test_a_server_that_is_away_is_no_drift(two, monkeypatch):
    tree = chain(two.old, two.maker.storage)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(Transient):
        list(verify(tree, Storage.from_env()))


def test_down_leads_from_pairs_to_versions(two):
    maker, name, made, other = two.maker, two.old, two.before, two.new
    manifests = manifests_below(maker.root, maker.storage)
    assert len(manifests) == 12
    (tree,) = descendants([made["prepare"].uri], manifests, maker.storage)
    assert {node.uri for node in artifacts(tree)} == {one.uri for one in made.values()}
    assert [node.name for node in tree.walk() if node.stage == "registry"] == [name]
    (source,) = descendants([str(maker.folder / "pairs.jsonl")], manifests, maker.storage)
    assert {node.name for node in source.walk() if node.stage == "registry"} == {name, other}
    model = starts_of(chain(other, maker.storage))
    assert [node.stage for node in descendants(model, manifests, maker.storage)[0].walk()] == [
        "grpo", "benchmark", "publish", "publish", "registry",
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="or was made from it"):
        descendants(["s3://nowhere/x"], manifests, maker.storage)


def test_a_child_that_read_another_parent_says_so_on_the_way_down(one, maker):
    _, made = one
    other = made["traces"].model_copy(update={"statistics": {"cost": 0}})
    maker.storage.write_bytes(f"{other.uri}/manifest.json", other.to_bytes())
    (tree,) = descendants([other.uri], manifests_below(maker.root, maker.storage), maker.storage)
    assert tree.children[0].problem.startswith(f"it read digest {made['traces'].digest}")


@contextmanager
def delivered(run_id, stage, experiment, workdir):
    """A stage's run that is delivered at the end, without a process of its own that loads MLflow first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")
        run = tracking.open_stage_run(
            run_id=run_id, run_name="r", stage=stage, experiment=experiment, workdir=workdir, tags={}
        )
        yield run
        run.finish("FINISHED")
    with (workdir / "nothing").open("w+") as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", nothing)
        assert deliver(workdir / "tracking", 60)


def test_in_mlflow_too_the_model_that_sft_starts_from_is_an_input(two, tmp_path, monkeypatch):
    maker, model = two.maker, two.before["grpo"]
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    settings = load_config("sft", {"base_model": f"some/model@{'0' * 40}", "warm_start": model.uri})
    work = name_work("sft", settings, {"examples": two.before["traces"]}, maker.root)
    experiment = f"start-{uuid.uuid4().hex[:6]}"
    with delivered("start", "sft", experiment, tmp_path / "sft") as run:
        describe_work(work, run)
    client = tracking.load().MlflowClient()
    place = client.get_experiment_by_name(experiment).experiment_id
    (found,) = client.search_runs([place], "tags.`reasrm.role` = 'stage'")
    told = client.get_run(found.info.run_id)
    read = [tracking.find_logged_model(one.model_id) for one in told.inputs.model_inputs]
    assert [(one.uri, one.digest) for one in read] == [(model.uri, model.digest)]


def test_a_run_of_the_pipeline_leads_to_what_its_stages_made(two, tmp_path, monkeypatch):
    maker, made = two.maker, two.before
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    run_id, experiment = str(uuid.uuid4()), f"lineage-{uuid.uuid4().hex[:6]}"
    for stage in ("traces", "sft"):
        with delivered(run_id, stage, experiment, tmp_path / stage) as run:
            run.log_output(made[stage])
            if stage == "traces":
                run.set_tags({"reasrm.reused": "true"})
    tree = chain(run_id, maker.storage)
    assert (tree.stage, [node.uri for node in tree.parents]) == ("run", [made["sft"].uri])
    assert tree.statistics == {"used again": "traces"}
    parent = tracking.run_tags(tree.parents[0].mlflow_run_id)["mlflow.parentRunId"]
    again = chain(parent, maker.storage)
    assert (again.name, again.mlflow_run_id) == (run_id, parent)
    with pytest.raises(InvalidInput, match="no stage of run"):
        chain(str(uuid.uuid4()), maker.storage)


def test_a_file_of_an_artifact_stands_for_the_artifact(two):
    tree = chain(f"{two.before['benchmark'].uri}/verdicts/grpo.jsonl.gz", two.maker.storage)
    assert tree.uri == two.before["benchmark"].uri


def test_the_run_that_made_an_artifact_is_told_and_not_one_that_used_it_again(two):
    client, digest = tracking.load().MlflowClient(), uuid.uuid4().hex
    place = client.create_experiment(f"makers-{digest[:6]}")
    tags = {"reasrm.output_digest": digest, "reasrm.reused": "true"}
    client.create_run(place, start_time=2000, tags=tags)
    maker = client.create_run(place, start_time=1000, tags={"reasrm.output_digest": digest}).info.run_id
    client.create_run(place, start_time=3000, tags=tags)
    assert tracking.find_run(digest) == maker
    assert tracking.find_runs([digest, "none"]) == {digest: maker}


def test_listed_versions_have_their_aliases(two):
    for alias in ("mine", "yours"):
        model_versions.set_alias(MODEL, alias, two.new.rpartition("/")[2])
    listed = {f"{one.name}/{one.version}": one for one in model_versions.list_versions()}
    assert listed[two.new].aliases == ("mine", "yours")
    by_digest = model_versions.list_versions({two.after["grpo"].digest})
    assert by_digest == [listed[two.new]] and listed[two.old].aliases == ()
    assert listed[two.new] == model_versions.get_version(MODEL, two.new.rpartition("/")[2])
    for alias in ("mine", "yours"):
        model_versions.delete_alias(MODEL, alias)


def test_json_has_openlineage_events_in_the_order_of_the_work(two, reasrm):
    name, made = two.old, two.before
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


def test_the_page_is_whole_and_shows_a_problem_where_it_is(one, maker, reasrm, tmp_path):
    name, made = one
    path = tmp_path / "page.html"
    assert reasrm(name, "--html", str(path))[0] == 0
    page = path.read_text(encoding="utf-8")
    assert all(one.digest in page and one.uri in page for one in made.values())
    assert page.count("<article") == page.count("<rect") == len(made) + 3
    assert 'class="bad"' not in page and "were not hashed again" in page
    assert not re.search(r"<script|<link|<img|src=|url\(h|@import", page)
    maker.storage.delete([f"{made['sft'].uri}/note.txt"])
    assert reasrm(name, "--verify", "--html", str(path))[0] == 1
    page = path.read_text(encoding="utf-8")
    assert page.count('class="bad"') == 1 and "note.txt" in page


def test_the_command_compares(two, reasrm):
    old, new = two.old, two.new
    code, out, _ = reasrm("--diff", old, new)
    assert code == 0
    assert "sft.epochs" in out and "p = 0.00781" in out and "1 pairs moved from rl to distil" in out
    code, out, _ = reasrm("--diff", old, new, "--json")
    assert json.loads(out)["paired"]["only_new"] == 8
    assert reasrm("--diff", old)[0] == 2


def test_the_command_goes_down(two, reasrm):
    maker, old, made, new = two.maker, two.old, two.before, two.new
    code, out, _ = reasrm("--down", made["sft"].uri)
    assert code == 0 and old in out
    code, out, _ = reasrm("--down", str(maker.folder / "pairs.jsonl"), "--root", maker.root)
    assert code == 0 and old in out and new in out
