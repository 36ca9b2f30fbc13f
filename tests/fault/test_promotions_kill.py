"""A promotion and a rollback that die after any change they make in MLflow or S3, and are started again."""

import uuid

import pytest

from components.adapters import model_versions, tracking
from components.adapters.promotions import find_log
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
        for version in "123"[:number]:
            publish(log, version)
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
        log.pending(),
    )


def test_a_promotion_that_dies_after_any_change_is_finished_by_the_next_attempt(promoted, monkeypatch):
    expected = state(done := promoted(2))
    assert (expected[0], done.pending()) == ({"champion": "2", "previous": "1"}, None)
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


def test_a_rollback_that_dies_after_any_change_is_done_once(promoted, monkeypatch, capsys):
    def rollback(log):
        with pytest.raises(SystemExit) as ended:
            cli.main(["rollback", log.model, "--by", "ann", "--reason", "wrong"])
        return ended.value.code

    calm = promoted(3)
    assert rollback(calm) == 0
    expected = state(calm)
    assert expected[0] == {"champion": "2", "previous": "1"}
    faults = Faults(monkeypatch)
    for due in range(1, MOST_CHANGES):
        faults.arm(0)
        log = promoted(3)
        faults.arm(due)
        if rollback(log) == 0:
            break
        faults.arm(0)
        if log.pending() is not None:  # else it was the last change: there is nothing left to be finished
            assert rollback(log) == 0, capsys.readouterr()
        assert state(log) == expected, due
    assert 4 < due < MOST_CHANGES - 1
