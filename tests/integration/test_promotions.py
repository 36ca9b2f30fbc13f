"""Who is champion, on a real registry and a real S3: races, interruptions, hands that reach in, and the way back."""

import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from components.adapters import model_versions, tracking
from components.adapters.promotions import NONE, Holder, Promotion, find_log, former, log_places, taken_away
from components.adapters.registry import MODEL_TAG, find_artifact, grammar_of
from components.core.errors import Damaged, InvalidInput
from components.core.manifest import FileEntry, Manifest, Parent
from pipeline import cli
from pipeline.commands.promotion import change


@pytest.fixture
def log(s3):
    """The log of a new registered model with four versions; the model of the fourth was rejected."""
    name = f"judge-{uuid.uuid4().hex[:8]}"
    client = tracking.load().MlflowClient()
    client.create_registered_model(name)
    log = find_log(s3.storage, name, "champion", f"{s3.prefix}/promotions")
    for number in "1234":
        made = Manifest(
            kind="model", stage="grpo", uri=f"{s3.prefix}/grpo/{number}", run_key=number * 64, code_version="1",
            config={}, files=(),
        )  # fmt: skip
        s3.storage.write_bytes(f"{made.uri}/manifest.json", made.to_bytes())
        tags = {"reasrm.run_key": number * 64, "reasrm.manifest_uri": made.uri, "reasrm.manifest_digest": made.digest}
        tags |= {"reasrm.publish_uri": f"{s3.prefix}/publish/{number}"}
        tags |= {"reasrm.gate": "rejected", "reasrm.gate_reasons": "too weak"} if number == "4" else {}
        assert str(client.create_model_version(name, f"{made.uri}/model", tags=tags).version) == number
    return log


def move(log, number, compared=None, kind="publish", key=None):
    version = model_versions.get_version(log.model, number)
    return log.move(version, kind=kind, by="me", why="because", key=key or uuid.uuid4().hex, compared=compared)


def digest(log, number):
    return model_versions.get_version(log.model, number).tags["reasrm.manifest_digest"]


def aliases(log):
    found = {alias: model_versions.get_alias(log.model, alias) for alias in ("champion", "previous")}
    return {alias: version.version for alias, version in found.items() if version}


def test_of_runs_that_finish_together_one_promotes(log):
    together = Barrier(3)

    def publish(number):
        together.wait()
        return move(log, number, compared=NONE)

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(publish, "123"))
    (won,) = [str(place) for place, outcome in enumerate(outcomes, 1) if outcome.promoted]
    assert aliases(log) == {"champion": won}
    (record,) = log.read()
    assert (record.champion.version, record.champion.digest, record.replaces.digest) == (won, digest(log, won), NONE)
    reason = f"the champion changed meanwhile (it is version {won} now): benchmark again"
    assert [outcome.reason for outcome in outcomes if not outcome.promoted] == [reason] * 2


PROCESS = """
import sys
from components.adapters import model_versions
from components.adapters.promotions import Promotions
from components.adapters.storage import Storage
place, model, number = sys.argv[1:]
log = Promotions(Storage.from_env(), model, "champion", place)
version = model_versions.get_version(model, number)
print("ready", flush=True)
sys.stdin.readline()
print(log.move(version, kind="publish", by="me", why="it passed", key=number, compared="none").promoted)
"""


def test_of_processes_that_finish_together_one_promotes(log):
    command = [sys.executable, "-c", PROCESS, log.place, log.model]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, number], **pipes) for number in "12"]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        answers = [(process.stdin.write("go\n"), process.stdin.flush()) for process in processes]
        answers = sorted(process.communicate(timeout=180)[0].strip() for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert answers == ["False", "True"]
    assert aliases(log) == {"champion": log.read()[-1].champion.version}
    assert len(log.read()) == 1


def write(log, number, champion, replaces, kind="publish", key="k"):
    """Leave what a process leaves that is killed between its record and the alias."""
    record = Promotion(
        number=number, model=log.model, alias=log.alias, champion=champion, replaces=replaces, kind=kind, by="me",
        why="because", key=key,
    )  # fmt: skip
    assert log._write(record)


def test_a_promotion_that_was_killed_before_the_alias_moved_is_finished_by_the_next(log):
    move(log, "1")
    one, two = (Holder(version=number, digest=digest(log, number)) for number in "12")
    write(log, 2, two, one, key="the killed run")
    assert aliases(log) == {"champion": "1"}
    assert not move(log, "3", compared=one.digest).promoted, "it was compared with the one before"
    assert aliases(log) == {"champion": "2", "previous": "1"}
    assert model_versions.get_version(log.model, "2").tags["reasrm.former_version"] == f"{log.model}/1"
    again = move(log, "2", compared=one.digest, key="the killed run")
    assert (again.promoted, again.moved, again.replaces) == (True, False, f"{log.model}/1")
    assert len(log.read()) == 2


def test_an_alias_that_was_moved_or_taken_away_by_hand_is_taken_note_of(log):
    model_versions.set_alias(log.model, "champion", "2")  # before there was a log
    assert [record.champion.version for record in log.settle()] == ["2"]
    assert move(log, "3", compared=digest(log, "2")).promoted
    model_versions.set_alias(log.model, "champion", "1")
    assert not move(log, "2", compared=digest(log, "3")).promoted
    model_versions.delete_alias(log.model, "champion")
    assert move(log, "2", compared=NONE).promoted
    kinds = [(record.kind, record.champion.version) for record in log.read()]
    assert kinds == [("by hand", "2"), ("publish", "3"), ("by hand", "1"), ("by hand", ""), ("publish", "2")]
    assert former(log.read()) == Holder()
    assert taken_away(log.read(), Holder(version="1")).kind == "by hand"


def test_an_alias_that_was_moved_by_hand_after_an_interrupted_promotion_stays_where_it_is(log):
    move(log, "1")
    one, two = (Holder(version=number, digest=digest(log, number)) for number in "12")
    write(log, 2, two, one)
    model_versions.set_alias(log.model, "champion", "3")
    assert [record.champion.version for record in log.settle()] == ["1", "2", "3"]
    assert aliases(log)["champion"] == "3"


def test_an_alias_that_was_moved_back_by_hand_is_a_rollback(log):
    for number in "12":
        move(log, number)
    model_versions.set_alias(log.model, "champion", "1")
    log.settle()
    assert aliases(log) == {"champion": "1"}, "a rollback must not lead to the version that was taken away"
    assert model_versions.get_version(log.model, "2").tags["reasrm.rolled_back"] == "by unknown: moved in MLflow itself"


def test_a_model_that_was_rolled_back_is_known_again_under_another_number(log):
    for number in "12":
        move(log, number)
    move(log, "1", kind="rollback")
    assert taken_away(log.read(), Holder(version="9", digest=digest(log, "2"))).kind == "rollback"
    assert taken_away(log.read(), Holder(version="9", digest="unknown")) is None
    move(log, "2", kind="promote")
    assert taken_away(log.read(), Holder(version="2", digest=digest(log, "2"))) is None


def test_a_renamed_model_keeps_its_log_and_one_that_takes_over_the_name_begins_its_own(log):
    for number in "12":
        move(log, number)
    client, old, new = tracking.load().MlflowClient(), log.model, f"{log.model}-renamed"
    client.rename_registered_model(old, new)
    client.create_registered_model(old)
    root = log.place.rpartition("/")[0]
    renamed, other = find_log(log.storage, new, "champion", root), find_log(log.storage, old, "champion", root)
    assert [record.champion.version for record in renamed.settle()] == ["1", "2"]
    assert aliases(renamed) == {"champion": "2", "previous": "1"}
    assert (renamed.place, other.place) == (log.place, f"{log.place}+2")
    assert other.settle() == []
    assert find_log(log.storage, old, "champion", root).place == other.place
    places = log_places()
    assert (places[new], places[old]) == (log.place, other.place)
    assert move(renamed, "3").replaces == f"{new}/2"


def test_aliases_of_one_model_do_not_share_previous(log):
    for number in "12":
        move(log, number)
    staging = find_log(log.storage, log.model, "staging")
    for number in "31":
        move(staging, number)
    assert aliases(log) == {"champion": "2", "previous": "1"}
    assert model_versions.get_alias(log.model, "previous-staging").version == "3"


class Forgetful:
    """The storage, but the answer to the first writing of a record is lost, and the client asks again."""

    def __init__(self, storage):
        self.storage, self.lost = storage, False

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def write_bytes(self, uri, data, *, if_absent=False):
        written = self.storage.write_bytes(uri, data, if_absent=if_absent)
        if not self.lost:
            self.lost = True
            written = self.storage.write_bytes(uri, data, if_absent=if_absent)
        return written


def test_a_record_whose_answer_was_lost_counts_once(log):
    move(log, "1")
    forgetful = replace(log, storage=Forgetful(log.storage))
    outcome = move(forgetful, "2")
    assert (outcome.promoted, outcome.moved, outcome.replaces) == (True, True, f"{log.model}/1")
    assert len(log.read()) == 2


def test_a_record_under_another_number_is_told(log):
    move(log, "1")
    log.storage.write_bytes(f"{log.uri}/000007.json", log.storage.read_bytes(f"{log.uri}/000001.json"))
    with pytest.raises(Damaged, match=r"000007\.json is no record of a promotion \(it says that it is number 1\)"):
        log.read()


def test_a_champion_that_was_deleted_from_the_registry_leaves_the_place_empty(log):
    move(log, "1")
    tracking.load().MlflowClient().delete_model_version(log.model, "1")
    assert move(log, "2", compared=NONE).promoted
    assert aliases(log) == {"champion": "2"}


@pytest.fixture
def reasrm(capsys):
    """Run the command line in this process; gives exit code and all that it wrote."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return ended.value.code, captured.out + captured.err

    return call


def test_rollback_goes_back_step_by_step_and_says_who_and_why(log, reasrm):
    for number in "123":
        move(log, number)
    code, words = reasrm("rollback", log.model, "--reason", "wrong on code", "--by", "ann")
    assert (code, words) == (0, f"{log.model}@champion is version 2 now, before it was {log.model}/3\n")
    assert model_versions.get_version(log.model, "3").tags["reasrm.rolled_back"] == "by ann: wrong on code"
    assert model_versions.get_version(log.model, "2").tags["reasrm.promoted_by"] == "ann"
    assert aliases(log) == {"champion": "2", "previous": "1"}
    assert reasrm("rollback", log.model)[0] == 0
    assert aliases(log) == {"champion": "1"}
    code, words = reasrm("rollback", log.model)
    assert code == 2
    assert "version 1 of" in words and "replaced no other one; say which with --to VERSION" in words
    code, words = reasrm("promote", f"{log.model}/3", "--reason", "it was the data")
    assert (code, aliases(log)) == (0, {"champion": "3", "previous": "1"})
    assert "reasrm.rolled_back" not in model_versions.get_version(log.model, "3").tags


def test_a_rejected_version_is_taken_only_by_force(log, reasrm):
    move(log, "1")
    for command in (["rollback", log.model, "--to", "4"], ["promote", f"{log.model}/4", "--reason", "x"]):
        code, words = reasrm(*command)
        assert code == 2
        assert f"{log.model}/4 was rejected (too weak); --force takes it all the same" in words
    assert reasrm("rollback", log.model, "--to", "4", "--force")[0] == 0
    assert aliases(log)["champion"] == "4"


def test_a_way_back_where_nobody_is_champion_blocks_nothing(log, reasrm):
    assert reasrm("rollback", log.model, "--to", "2")[0] == 0
    assert aliases(log) == {"champion": "2"}
    assert log.untold() is None
    assert move(log, "3", compared=digest(log, "2")).promoted
    tracking.load().MlflowClient().delete_model_version(log.model, "3")
    code, words = reasrm("rollback", log.model)
    assert code == 2
    assert "has no champion any more (it was version 3)" in words and "--to VERSION" in words


def test_a_rollback_means_the_champion_that_was_there_when_it_was_asked_for(log):
    for number in "12":
        move(log, number)
    seen = log.settle()
    move(log, "3", compared=digest(log, "2"))
    with pytest.raises(InvalidInput, match=f"has changed meanwhile, to {log.model}/3; nothing was done"):
        change(log, model_versions.get_version(log.model, "1"), "rollback", "ann", "why", key="k", seen=seen)
    assert aliases(log) == {"champion": "3", "previous": "2"}
    assert "reasrm.rolled_back" not in model_versions.get_version(log.model, "3").tags


def test_a_version_whose_artifact_holds_another_model_now_is_refused(log, reasrm):
    version = model_versions.get_version(log.model, "2")
    uri = version.tags["reasrm.manifest_uri"]
    other = log.storage.open(uri).model_copy(update={"statistics": {"final_loss": 1.0}})
    log.storage.write_bytes(f"{uri}/manifest.json", other.to_bytes())
    code, words = reasrm("promote", f"{log.model}/2", "--reason", "x")
    assert code == 2
    assert f"at {uri} there is another model now" in words
    model_versions.set_alias(log.model, "champion", "2")
    with pytest.raises(InvalidInput, match="is version 2, registered with digest"):
        find_artifact(f"{log.model}@champion", log.storage, MODEL_TAG)


def test_a_version_whose_weights_are_gone_is_refused(log, reasrm):
    """Somebody made room in the bucket and left the manifest."""
    version = model_versions.get_version(log.model, "1")
    uri = version.tags["reasrm.manifest_uri"]
    weights = (FileEntry(path="model/model.safetensors", size=4, sha256="0" * 64),)
    made = log.storage.open(uri).model_copy(update={"files": weights})
    log.storage.write_bytes(f"{uri}/manifest.json", made.to_bytes())
    log.storage.write_bytes(f"{uri}/model/model.safetensors", b"abcd")
    model_versions.tag_version(log.model, "1", {"reasrm.manifest_digest": made.digest})
    for number in "12":
        move(log, number)
    log.storage.delete([f"{uri}/model/model.safetensors"])
    for command in (["rollback", log.model], ["promote", f"{log.model}/1", "--reason", "x"]):
        code, words = reasrm(*command)
        assert code == 2
        assert f"{log.model}/1 is {uri}, of which 1 of 1 files are gone or not whole" in words
    assert aliases(log) == {"champion": "2", "previous": "1"}


def test_what_is_not_there_is_refused_and_nothing_moves(log, reasrm, s3):
    assert "has no champion" in reasrm("rollback", log.model)[1]
    assert "has no model 'nobody'" in reasrm("rollback", "nobody")[1]
    move(log, "1")
    assert f"has no {log.model}/9" in reasrm("rollback", log.model, "--to", "9")[1]
    s3.storage.delete([f"{s3.prefix}/grpo/2/manifest.json"])
    code, words = reasrm("promote", f"{log.model}/2", "--reason", "x")
    assert code == 2
    assert f"leads to {s3.prefix}/grpo/2, but there is no artifact (any more)" in words
    assert aliases(log) == {"champion": "1"}
    assert "is version 1 already" in reasrm("promote", f"{log.model}/1", "--reason", "x")[1]


def test_a_rollback_that_was_interrupted_is_finished_and_not_done_twice(log, reasrm, monkeypatch, served):
    for number in "123":
        move(log, number)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code, words = reasrm("rollback", log.model)
    assert code == 75
    assert "does not answer; check the server, then run this again" in words
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.mlflow_uri)
    assert len(log.read()) == 3
    two, three = (Holder(version=number, digest=digest(log, number)) for number in "23")
    write(log, 4, two, three, kind="rollback")
    code, words = reasrm("rollback", log.model)
    assert code == 0
    assert words.endswith(f"finished the rollback that was interrupted: {log.model}@champion is version 2 now "
                          "(by me: because)\n")  # fmt: skip
    assert aliases(log) == {"champion": "2", "previous": "1"}
    assert model_versions.get_version(log.model, "3").tags["reasrm.rolled_back"] == "by me: because"


def test_a_model_of_sft_is_asked_in_the_form_that_its_examples_taught(s3):
    def committed(stage, config, **parents):
        links = {name: Parent(uri=made.uri, digest=made.digest) for name, made in parents.items()}
        made = Manifest(
            kind=stage, stage=stage, uri=f"{s3.prefix}/{stage}/g", run_key="0" * 64, code_version="1", config=config,
            files=(), parents=links,
        )  # fmt: skip
        s3.storage.write_bytes(f"{made.uri}/manifest.json", made.to_bytes())
        return made

    examples = committed("filter", {"grammar": "think"})
    tuned = committed("sft", {}, examples=examples)
    assert grammar_of(tuned, s3.storage) == "think"
    assert grammar_of(committed("grpo", {"grammar": "rubric"}, examples=examples), s3.storage) == "rubric"
    s3.storage.delete([f"{examples.uri}/manifest.json"])
    assert grammar_of(tuned, s3.storage) is None
