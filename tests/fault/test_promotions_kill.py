"""A promotion and a rollback that die after any change they make in MLflow or S3, and are started again."""

import uuid
from dataclasses import replace

import pytest

from components.adapters import model_versions, tracking
from components.adapters.promotions import Promotions, find_log
from components.adapters.storage import Storage
from components.core.errors import Transient
from components.core.manifest import Manifest
from pipeline import cli

CHANGES = ("moving alias", "taking alias", "tagging")
MOST_CHANGES = 20
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own store


class Faults:
    """Counts what is changed outside; after the change that is `due` no answer comes.

    To die while reading is the same as to die after the change before it.
    """

    def __init__(self, monkeypatch):
        self.count = self.due = 0
        monkeypatch.setattr(Storage, "write_bytes", self.around(Storage.write_bytes, lambda *given: True))
        changes = lambda what, work: what.startswith(CHANGES)  # noqa: E731
        monkeypatch.setattr(model_versions, "call", self.around(model_versions.call, changes))

    def around(self, call, is_change):
        def called(*arguments, **named):
            answer = call(*arguments, **named)
            self.count += is_change(*arguments)
            if is_change(*arguments) and self.count == self.due:
                raise Transient("away")
            return answer

        return called

    def arm(self, due):
        self.count, self.due = 0, due


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """MLflow's registry in a file of its own, which answers faster than a server."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def promoted(s3, registry, monkeypatch):
    """A function that gives the log of a new model, of whose three versions the first so many were promoted in turn."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)

    def make(number):
        name = f"judge-{uuid.uuid4().hex[:8]}"
        client = tracking.load().MlflowClient()
        client.create_registered_model(name)
        for version in "123":
            made = Manifest(
                kind="model", stage="grpo", uri=f"{s3.prefix}/grpo/{version}", run_key=version * 64, code_version="1",
                config={}, files=(),
            )  # fmt: skip
            s3.storage.write_bytes(f"{made.uri}/manifest.json", made.to_bytes())
            tags = {"reasrm.manifest_uri": made.uri, "reasrm.manifest_digest": made.digest}
            client.create_model_version(name, f"{made.uri}/model", tags=tags)
        log = find_log(s3.storage, name, "champion", f"{s3.prefix}/promotions")
        for version in "123"[: number - 1]:  # as if the aliases had followed: it is much faster
            holder = log.holder(model_versions.get_version(name, version))
            assert log._write(log._next(log.read(), holder, "publish", "run", "it passed", version))
        if number > 1:
            log._follow()
        publish(log, str(number))
        return log

    return make


def publish(log, number):
    version = model_versions.get_version(log.model, number)
    former = model_versions.get_version(log.model, str(int(number) - 1)) if number != "1" else None
    compared = former.tags["reasrm.manifest_digest"] if former else "none"
    return log.move(version, kind="publish", by="run", why="it passed", key=number, compared=compared)


def state(log):
    """All that a reader of the registry sees, and whether anything is left to be done."""
    found = {alias: model_versions.get_alias(log.model, alias) for alias in ("champion", "previous")}
    tags = [model_versions.get_version(log.model, number).tags for number in "123"]
    kept = ("reasrm.former_version", "reasrm.promoted_by", "reasrm.promoted_why", "reasrm.rolled_back")
    return (
        {alias: version.version for alias, version in found.items() if version},
        [{key: one[key].replace(log.model, "judge") for key in kept if key in one} for one in tags],
        [(record.champion.version, record.replaces.version, record.kind) for record in log.read()],
        model_versions.model_tags(log.model)[log.mark],
        log.untold(),
    )


def test_a_promotion_that_dies_after_any_change_is_finished_by_the_next_attempt(promoted, monkeypatch):
    expected = state(promoted(2))
    assert (expected[0], expected[3]) == ({"champion": "2", "previous": "1"}, "2")
    faults = Faults(monkeypatch)
    for due in range(1, MOST_CHANGES):
        faults.arm(0)
        log = promoted(1)
        faults.arm(due)
        try:
            publish(log, "2")
            break
        except Transient:
            faults.arm(0)
            assert publish(log, "2").promoted
            assert state(log) == expected, due
    assert 4 < due < MOST_CHANGES - 1


@pytest.fixture
def rollback(capsys):
    """Roll back by the command line; gives exit code and all that it wrote."""

    def call(log, *more):
        with pytest.raises(SystemExit) as ended:
            cli.main(["rollback", log.model, "--by", "ann", "--reason", "wrong", *more])
        captured = capsys.readouterr()
        return ended.value.code, captured.out + captured.err

    return call


def test_a_rollback_that_dies_after_any_change_is_done_once(promoted, monkeypatch, rollback, caplog):
    """Also after the last one: whoever was not told that it is done asks again, whatever became of it meanwhile."""
    calm = promoted(3)
    assert rollback(calm)[0] == 0
    expected = state(calm)
    assert (expected[0], expected[3:]) == ({"champion": "2", "previous": "1"}, ("4", None))
    faults = Faults(monkeypatch)
    for due in range(1, MOST_CHANGES):
        faults.arm(0)
        log = promoted(3)
        faults.arm(due)
        code, words = rollback(log)
        if code == 0:  # it has told of the end of its work, and that it did was not noted
            assert f"{log.model}@champion is version 2 now" in words and "will tell of this one again" in caplog.text
            break
        assert code == 75
        faults.arm(0)
        if due % 2:  # another process finishes it first
            log.settle()
        code, words = rollback(log)
        assert (code, "finished the rollback that was interrupted" in words) == (0, True), words
        assert state(log) == expected, due
    assert 4 < due < MOST_CHANGES - 1
    faults.arm(0)
    assert state(log) == expected
    assert rollback(log)[0] == 0
    assert state(log)[0] == {"champion": "1"}, "a second one is one step more"


def test_a_rollback_that_died_does_not_take_the_place_of_who_came_since(promoted, rollback):
    log = promoted(2)
    one, two = (model_versions.get_version(log.model, number) for number in "12")
    log.move(one, kind="rollback", by="ann", why="wrong", key="the killed command")
    three = model_versions.get_version(log.model, "3")
    assert log.move(three, kind="publish", by="run", why="it passed", key="3", compared=log.holder(one).digest).promoted
    assert log.untold().key == "the killed command"
    code, words = rollback(log)
    assert code == 0
    assert "took effect, and" in words and "was version 1 (by ann: wrong); since then it has become version 3" in words
    assert model_versions.get_alias(log.model, "champion").version == "3"
    assert rollback(log)[0] == 0
    assert model_versions.get_alias(log.model, "champion").version == "1"
    assert two.version not in {record.champion.version for record in log.read()[2:]}


def test_who_was_overtaken_while_it_stood_still_does_not_set_the_alias_back(promoted, monkeypatch):
    log, pointed = promoted(1), []
    write, set_alias = Promotions._write, model_versions.set_alias

    def slowly(self, record):
        written = write(self, record)
        if record.key == "2":
            publish(replace(log), "3")  # of another process, from its begin to its end
        return written

    def noted(name, alias, version):
        pointed.append((alias, version))
        set_alias(name, alias, version)

    monkeypatch.setattr(Promotions, "_write", slowly)
    monkeypatch.setattr(model_versions, "set_alias", noted)
    publish(log, "2")
    champions = [version for alias, version in pointed if alias == "champion"]
    assert champions == sorted(champions) and champions[-1] == "3"
    assert [record.kind for record in log.settle()] == ["publish"] * 3
