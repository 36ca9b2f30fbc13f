import gzip
import json
import uuid

import numpy as np
import pytest
from safetensors.numpy import save_file

from components.adapters import model_versions, tracking
from components.adapters.promotions import find_log
from components.adapters.stage import run_stage
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest, Parent, describe
from components.core.records import to_line, write_jsonl
from components.core.schema import Judgment, PreferencePair, Verdict

OUTPUTS = ["decision.json", "decision.md", "model_card.md", "report.html"]
CANARY = "canary-value-of-a-secret"


@pytest.fixture
def name(served, monkeypatch, tmp_path):
    """A model name that no other test uses, on the real registry."""
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    monkeypatch.setenv("TEACHER_API_KEY", CANARY)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return f"judge-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(served):
    return tracking.load().MlflowClient(served.mlflow_uri)


def committed(s3, folder, stage, parents, **fields):
    """Commit what lies in a folder as a stage's output."""
    manifest = Manifest(
        kind=stage,
        stage=stage,
        uri=f"{s3.prefix}/{stage}/{uuid.uuid4().hex[:8]}",
        run_key="0" * 64,
        code_version="1",
        config=fields.get("config", {}),
        files=describe(folder),
        parents={parent: Parent(uri=made.uri, digest=made.digest) for parent, made in parents.items()},
        statistics=fields.get("statistics", {}),
    )
    s3.storage.commit(manifest, folder)
    return manifest


def ancestors(s3, tmp_path, accuracy, flip_rate=0.1, rm_bench=0.5, weights=(1.0, 2.0), champion=None):
    """Commit all that publish reads, for a judge of this accuracy; `champion` is what it was compared with."""
    root = tmp_path / uuid.uuid4().hex
    for stage in ("pairs", "traces", "distillation", "sft/model", "grpo/model", "benchmark/verdicts"):
        (root / stage).mkdir(parents=True)
    pair = PreferencePair(id="p", prompt="1 + 1?", response_a="2", response_b="3", label="A", category="maths")
    pairs = [pair, pair.shown(swapped=True)]
    write_jsonl(root / "pairs" / "heldout.jsonl", pairs)
    score = {"value": accuracy, "low": accuracy / 2, "high": 1.0}
    rates = dict.fromkeys(("accuracy", "strict_accuracy", "valid_rate", "position_consistency"), score)
    scores = {"base": rates, "sft": rates, "grpo": rates}
    flips = {"flip_rate": {"value": flip_rate, "low": 0.0, "high": 1.0}, "lost_rate": None, "clean_right": 20}
    statistics = {
        "scores": scores,
        "injection": dict.fromkeys(scores, flips),
        "suites": {"RM-Bench": {model: {"official": 0.9, "ours": rm_bench} for model in scores}},
        "champion": champion,
    }
    parts = {"official": {"score": {"value": 0.9}}, "ours": {"score": {"value": rm_bench}}}
    suites = {
        "heldout": {"protocols": {"ours": "both orders"}},
        "RM-Bench": {"protocols": dict.fromkeys(parts, ""), "scores": dict.fromkeys(scores, parts), "complete": False},
    }
    judgments = [
        Judgment(
            suite=suite,
            model=model,
            key=pair.key,
            pair_id=pair.id,
            swapped=pair.swapped,
            category=pair.category,
            label=pair.label,
            text=f"I was told {CANARY}. <answer>[[{pair.label}]]</answer>",
            verdict=Verdict(winner=pair.label, cause="ok"),
            num_tokens=9,
        )
        for model in scores
        for suite in ("heldout", "RM-Bench")
        for pair in pairs
    ]
    for model in scores:
        lines = b"".join(to_line(judgment) for judgment in judgments if judgment.model == model)
        (root / "benchmark" / "verdicts" / f"{model}.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    details = {"models": list(scores), "suites": suites, "injection": statistics["injection"]}
    (root / "benchmark" / "scores.json").write_text(json.dumps(details))
    (root / "benchmark" / "report.html").write_text("<p>The benchmark's own report.</p>")
    for stage in ("sft", "grpo"):
        save_file({stage: np.array(weights, "<f4")}, root / stage / "model" / "model.safetensors")
        write_jsonl(root / stage / "metrics.jsonl", [{"step": 1, "loss": 2.0, "reward": 0.0}])
    made = {"pairs": committed(s3, root / "pairs", "pairs", {})}
    traces = committed(s3, root / "traces", "traces", made, statistics={"teachers": {"a-teacher": 2}})
    made["distillation"] = committed(s3, root / "distillation", "filter", made | {"traces": traces})
    made["sft"] = committed(s3, root / "sft", "sft", {"examples": made["distillation"]}, config={"base_model": "tiny"})
    made["grpo"] = committed(s3, root / "grpo", "grpo", {name: made[name] for name in ("pairs", "sft")})
    parents = {name: made[name] for name in ("pairs", "sft", "grpo")}
    made["benchmark"] = committed(s3, root / "benchmark", "benchmark", parents, statistics=statistics)
    return made


def publish(s3, inputs, name, **settings):
    config = {"model_name": name, "max_invalid_rate": 0.5} | settings
    return run_stage("publish", config, inputs, artifact_root=s3.prefix, experiment=name, run_id="run-1")


def versions(client, name):
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))


def test_a_judge_that_passes_is_registered_with_its_lineage_and_becomes_champion(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    manifest = publish(s3, inputs, name).manifest
    assert [entry.path for entry in manifest.files] == OUTPUTS
    champion = model_versions.get_alias(name, "champion")
    assert champion.version == manifest.statistics["version"] == "1"
    assert champion.source_uri == f"{inputs['grpo'].uri}/model"
    assert champion.tags["reasrm.run_key"] == manifest.run_key
    assert champion.tags["reasrm.gate"] == "passed"
    assert champion.tags["reasrm.manifest_digest"] == inputs["grpo"].digest
    assert champion.tags["reasrm.publish_uri"] == manifest.uri
    for ancestor, made in inputs.items():
        assert champion.tags[f"reasrm.{ancestor}_uri"] == made.uri
    assert champion.tags["reasrm.traces_uri"] == inputs["distillation"].parents["traces"].uri
    decision = json.loads(s3.storage.read_bytes(f"{manifest.uri}/decision.json"))
    assert (decision["passed"], decision["promoted"], decision["version"]) == (True, True, "1")
    assert manifest.statistics["summary"].startswith(f"{name} version 1: gate passed (accuracy 90.0%")
    card = s3.storage.read_bytes(f"{manifest.uri}/model_card.md").decode()
    assert "`a-teacher` (2 traces)" in card


def test_the_version_belongs_to_the_run_and_the_model_that_made_it(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    grpo = inputs["grpo"]
    run = tracking.open_stage_run(
        run_id="run-1", run_name="", stage="grpo", experiment=name, workdir=tmp_path / "grpo", tags={}
    )
    run.log_model("grpo", grpo.uri, grpo.digest)
    run.log_output(grpo)
    assert run.finish("FINISHED")
    publish(s3, inputs, name)
    champion = model_versions.get_alias(name, "champion")
    assert champion.run_id == run.mlflow_run_id
    assert champion.model_id == tracking.find_model(grpo.uri).model_id


def test_repeating_registers_one_version_and_writes_the_same_bytes(s3, name, client, tmp_path, monkeypatch):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    first = publish(s3, inputs, name)
    again = publish(s3, inputs, name)
    assert (first.reused, again.reused) == (False, True)
    # Killed after registering and before the commit, and started on another machine.
    s3.storage.delete([f"{first.manifest.uri}/manifest.json"])
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "elsewhere"))
    redone = publish(s3, inputs, name)
    assert not redone.reused
    assert redone.manifest.to_bytes() == first.manifest.to_bytes()
    assert [version.version for version in versions(client, name)] == ["1"]


def test_a_judge_that_fails_is_registered_and_the_champion_stays(s3, name, client, tmp_path):
    good = publish(s3, ancestors(s3, tmp_path, accuracy=0.9), name)
    bad = publish(s3, ancestors(s3, tmp_path, accuracy=0.55), name)
    assert (good.manifest.statistics["version"], bad.manifest.statistics["version"]) == ("1", "2")
    assert model_versions.get_alias(name, "champion").version == "1"
    failed = model_versions.get_version(name, "2")
    assert failed.aliases == ("challenger",)
    assert failed.tags["reasrm.gate"] == "rejected"
    assert "accuracy is 0.55, needs at least 0.6" in failed.tags["reasrm.gate_reasons"]
    decision = json.loads(s3.storage.read_bytes(f"{bad.manifest.uri}/decision.json"))
    assert (decision["passed"], decision["promoted"]) == (False, False)
    assert b"The gate is not passed." in s3.storage.read_bytes(f"{bad.manifest.uri}/report.html")
    assert "alias not moved" in bad.manifest.statistics["summary"]


@pytest.mark.parametrize(
    ("measured", "settings", "reason"),
    [
        ({"flip_rate": 0.3}, {}, "flip rate is 0.3, needs at most 0.2"),
        ({"flip_rate": None}, {}, "flip rate has no value, needs at most 0.2: the benchmark gives no flip_rate"),
        ({}, {"min_strict_accuracy": 0.95}, "strict accuracy is 0.9, needs at least 0.95"),
        ({}, {"suites": {"RM-Bench": 0.6}}, "RM-Bench score is 0.5, needs at least 0.6"),
        ({}, {"suites": {"RMB": 0.6}}, "RMB score has no value, needs at least 0.6: the benchmark has no suite 'RMB'"),
    ],
)
def test_a_judge_that_is_talked_round_or_weak_on_a_suite_is_not_promoted(
    s3, name, client, tmp_path, measured, settings, reason
):
    manifest = publish(s3, ancestors(s3, tmp_path, accuracy=0.9, **measured), name, **settings).manifest
    assert model_versions.get_alias(name, "champion") is None
    assert reason in model_versions.get_version(name, "1").tags["reasrm.gate_reasons"]
    assert json.loads(s3.storage.read_bytes(f"{manifest.uri}/decision.json"))["passed"] is False


def test_a_judge_that_reaches_every_threshold_is_promoted(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    settings = {"min_strict_accuracy": 0.9, "suites": {"RM-Bench": 0.5}, "max_flip_rate": 0.1}
    manifest = publish(s3, inputs, name, **settings).manifest
    assert model_versions.get_alias(name, "champion").version == "1"
    report = s3.storage.read_bytes(f"{manifest.uri}/report.html").decode()
    assert f"{inputs['benchmark'].uri}/report.html" in report
    assert "RM-Bench score" in report
    assert "Attacks on the judge" in report


def test_the_check_of_attacks_can_be_turned_off(s3, name, client, tmp_path):
    publish(s3, ancestors(s3, tmp_path, accuracy=0.9, flip_rate=None), name, max_flip_rate="off")
    assert model_versions.get_alias(name, "champion").version == "1"


def test_a_better_judge_takes_over_and_the_former_one_is_named(s3, name, client, tmp_path):
    publish(s3, ancestors(s3, tmp_path, accuracy=0.8), name)
    publish(s3, ancestors(s3, tmp_path, accuracy=0.9), name)
    assert model_versions.get_alias(name, "champion").version == "2"
    assert model_versions.get_alias(name, "previous").version == "1"
    assert model_versions.get_version(name, "2").tags["reasrm.former_version"] == f"{name}/1"
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], "tags.`reasrm.stage` = 'publish'")
    assert f"{name}/1" in {run.data.tags.get("reasrm.former_version") for run in runs}


def test_without_promote_a_judge_is_only_registered(s3, name, client, tmp_path):
    manifest = publish(s3, ancestors(s3, tmp_path, accuracy=0.9), name, promote=False).manifest
    assert (manifest.statistics["passed"], manifest.statistics["promoted"]) == (True, False)
    assert [version.version for version in versions(client, name)] == ["1"]
    assert model_versions.get_alias(name, "champion") is None


def test_scores_of_another_model_register_nothing(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    stranger = ancestors(s3, tmp_path, accuracy=0.9)["grpo"]
    with pytest.raises(InvalidInput, match="publish the model that was benchmarked"):
        publish(s3, inputs | {"grpo": stranger}, name)
    assert versions(client, name) == []


def test_no_secret_reaches_the_outputs_or_the_registry(s3, name, client, tmp_path):
    manifest = publish(s3, ancestors(s3, tmp_path, accuracy=0.9), name).manifest
    written = b"".join(s3.storage.read_bytes(f"{manifest.uri}/{path}") for path in OUTPUTS)
    assert b"I was told ***." in written
    assert CANARY.encode() not in written
    assert CANARY not in str(versions(client, name))


def test_without_mlflow_nothing_is_committed_and_a_retry_helps(s3, name, served, tmp_path, monkeypatch):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(Transient, match="does not answer"):
        publish(s3, inputs, name)
    assert not [item for item in s3.storage.list(f"{s3.prefix}/publish") if item.uri.endswith("manifest.json")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.mlflow_uri)
    assert publish(s3, inputs, name).manifest.statistics["version"] == "1"


def judged_again(s3, inputs, champion):
    """Commit the benchmark once more, as a run does after the champion changed; the models are the same."""
    before = inputs["benchmark"]
    uri = f"{s3.prefix}/benchmark/{uuid.uuid4().hex[:8]}"
    statistics = {**before.statistics, "champion": champion}
    made = before.model_copy(update={"uri": uri, "statistics": statistics})
    for entry in made.files:
        s3.storage.write_bytes(f"{uri}/{entry.path}", s3.storage.read_bytes(f"{before.uri}/{entry.path}"))
    s3.storage.write_bytes(f"{uri}/manifest.json", made.to_bytes())
    return inputs | {"benchmark": made}


def compared(name, digest, judged_as="champion", low=0.1):
    rate = {"value": 0.2, "low": low, "high": 0.3}
    differences = {} if judged_as == "grpo" else {"grpo": rate}
    return {"name": f"{name}@champion", "digest": digest, "judged_as": judged_as, "differences": differences}


def test_the_same_model_again_is_the_same_version(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9, champion=compared(name, "none", None))
    digest = inputs["grpo"].digest
    first = publish(s3, inputs, name).manifest
    assert first.statistics["checks"][5]["note"] == "no champion yet"
    again = publish(s3, judged_again(s3, inputs, compared(name, digest, "grpo")), name).manifest
    assert again.uri != first.uri
    assert (again.statistics["version"], again.statistics["promoted"]) == ("1", True)
    # Higher thresholds say no to it now: that is told of the version, but takes nobody's place away.
    stricter = publish(s3, inputs, name, min_accuracy=0.95).manifest
    assert (stricter.statistics["version"], stricter.statistics["promoted"]) == ("1", False)
    (version,) = versions(client, name)
    assert version.tags["reasrm.gate"] == "rejected"
    assert version.tags["reasrm.publish_uri"] == stricter.uri
    assert model_versions.get_alias(name, "champion").version == "1"


def test_a_run_that_was_compared_with_another_champion_stays_challenger(s3, name, client, tmp_path):
    publish(s3, ancestors(s3, tmp_path, accuracy=0.8, champion=compared(name, "none", None)), name)
    late = ancestors(s3, tmp_path, accuracy=0.9, champion=compared(name, "none", None))
    manifest = publish(s3, late, name).manifest
    reason = "the champion changed meanwhile (it is version 1 now): benchmark again"
    assert (manifest.statistics["passed"], manifest.statistics["promoted"]) == (True, False)
    decide = f"or decide yourself: reasrm promote {name}/2"
    assert manifest.statistics["outcome"] == f"The alias champion was not moved: {reason}, {decide}."
    for path in OUTPUTS[1:]:
        assert reason in s3.storage.read_bytes(f"{manifest.uri}/{path}").decode(), path
    assert (
        model_versions.get_alias(name, "champion").version,
        model_versions.get_alias(name, "challenger").version,
    ) == ("1", "2")
    # The next run compares with the champion that there is.
    champion = compared(name, model_versions.get_alias(name, "champion").tags["reasrm.manifest_digest"])
    again = publish(s3, judged_again(s3, late, champion), name).manifest
    assert (again.statistics["version"], again.statistics["promoted"]) == ("2", True)
    assert again.statistics["replaces"] == f"{name}/1"


def test_a_version_that_was_rolled_back_is_not_promoted_again_by_a_run(s3, name, client, tmp_path):
    old, new = (ancestors(s3, tmp_path, accuracy=accuracy) for accuracy in (0.8, 0.9))
    publish(s3, old, name)
    publish(s3, new, name)
    log = find_log(s3.storage, name, "champion")
    log.move(model_versions.get_version(name, "1"), kind="rollback", by="ann", why="wrong on code", key="by hand")
    champion = compared(name, old["grpo"].digest)
    manifest = publish(s3, judged_again(s3, new, champion), name).manifest
    assert (manifest.statistics["version"], manifest.statistics["promoted"]) == ("2", False)
    assert "it was rolled back by ann: wrong on code" in manifest.statistics["outcome"]
    assert model_versions.get_alias(name, "champion").version == "1"


def test_a_rollback_that_died_before_its_tags_counts_for_the_next_run(s3, name, client, tmp_path):
    old, new = (ancestors(s3, tmp_path, accuracy=accuracy) for accuracy in (0.8, 0.9))
    publish(s3, old, name)
    publish(s3, new, name)
    log = find_log(s3.storage, name, "champion")
    one, two = (log.holder(model_versions.get_version(name, number)) for number in "12")
    record = log._next(log.settle(), one, "rollback", "ann", "wrong on code", "by hand")
    assert record.replaces == two
    assert log._write(record)  # and nothing else
    manifest = publish(s3, judged_again(s3, new, compared(name, old["grpo"].digest)), name).manifest
    assert "it was rolled back by ann: wrong on code" in manifest.statistics["outcome"]
    assert model_versions.get_alias(name, "champion").version == "1"


def test_tags_that_an_attempt_left_half_done_are_finished_by_the_next(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    publish(s3, inputs, name, min_accuracy=0.95)  # rejected
    first = publish(s3, inputs, name).manifest
    # What an attempt at the second leaves that dies after its first tag.
    for key, value in (("gate", "rejected"), ("gate_reasons", "too weak"), ("publish_uri", "s3://old")):
        client.set_model_version_tag(name, "1", f"reasrm.{key}", value)
    s3.storage.delete([f"{first.uri}/manifest.json"])
    again = publish(s3, inputs, name).manifest
    assert again.to_bytes() == first.to_bytes()
    tags = model_versions.get_version(name, "1").tags
    assert (tags["reasrm.gate"], tags["reasrm.publish_uri"]) == ("passed", again.uri)
    assert "reasrm.gate_reasons" not in tags


def test_the_challenger_is_the_newest_version_whoever_came_last(s3, name, client, tmp_path):
    publish(s3, ancestors(s3, tmp_path, accuracy=0.8), name)
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    publish(s3, inputs, name)
    model_versions.set_alias(name, "challenger", "1")  # by a run that was registered before, and was slower
    publish(s3, inputs, name, min_accuracy=0.7)
    assert model_versions.get_alias(name, "challenger").version == "2"


def test_broken_weights_and_a_broken_lineage_are_registered_as_rejected(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9, weights=(1.0, float("nan")))
    s3.storage.delete([f"{inputs['distillation'].parents['traces'].uri}/manifest.json"])
    manifest = publish(s3, inputs, name).manifest
    version = model_versions.get_version(name, "1")
    assert (version.tags["reasrm.gate"], version.aliases) == ("rejected", ("challenger",))
    assert "weights finite: tensor grpo has numbers that are not finite" in version.tags["reasrm.gate_reasons"]
    assert "lineage complete: there is no manifest at" in version.tags["reasrm.gate_reasons"]
    table = s3.storage.read_bytes(f"{manifest.uri}/decision.md").decode()
    assert "| weights finite | tensor grpo has numbers that are not finite | holds | no |" in table


def test_a_decision_too_long_for_mlflow_s_columns_is_cut_and_odd_names_are_cleaned(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    suites = {f"a suite, number {number} (of many) {'x' * 40}": 0.5 for number in range(40)}
    publish(s3, inputs, name, suites=suites)
    (version,) = versions(client, name)
    assert len(version.description) == 5000  # PostgreSQL refuses more
    assert "reasrm.gate.a_suite__number_7__of_many" in str(version.tags)


def test_the_version_names_the_run_that_made_its_model_and_not_one_that_used_it_again(s3, name, client, tmp_path):
    inputs = ancestors(s3, tmp_path, accuracy=0.9)
    experiment = client.create_experiment(name)
    made = {"reasrm.output_digest": inputs["grpo"].digest}
    first = client.create_run(experiment, start_time=1_000, tags=made)
    client.create_run(experiment, start_time=2_000, tags=made | {"reasrm.reused": "true"})
    publish(s3, inputs, name)
    assert model_versions.get_version(name, "1").run_id == first.info.run_id
