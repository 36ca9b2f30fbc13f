"""Which error the statuses of pods stand for."""

import pytest

from components.adapters.kubernetes import event_time
from components.adapters.launch import Failure
from components.adapters.torchrun import LIMIT, decode, encode
from components.adapters.trainjob import ends
from components.adapters.trainjob.state import Phase, State, index
from components.core.errors import InvalidInput, ReasrmError, Transient

TIME = "2026-01-01T00:00:{:02}Z"
BASE = 1767225600.0
FAILED = {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "failed"}


def pod(number, *, code=None, at=9, message="", why="Error", state=None, said="", **status):
    ended = {"exitCode": code, "finishedAt": TIME.format(at), "message": message, "reason": why}
    container = {
        "name": "node",
        "state": {"terminated": ended} if code is not None else state or {"running": {"startedAt": TIME.format(2)}},
    }
    return {
        "metadata": {
            "uid": f"u{number}",
            "name": f"p{number}",
            "creationTimestamp": TIME.format(1),
            "labels": {"batch.kubernetes.io/job-completion-index": str(number)},
        },
        "spec": {"containers": [{"name": "node", "resources": {"limits": {"memory": "96Gi"}}}]},
        "status": {
            "phase": "Failed" if code else "Running",
            "containerStatuses": [container],
            "message": said,
            **status,
        },
    }


def told(rank, code, at, message=""):
    return encode(Failure(rank, code, BASE + at, message)).decode()


def disrupted(reason, at=9):
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": TIME.format(at)}
    return {"conditions": [condition]}


def state_of(pods, condition=None):
    state = State(len(pods))
    state.train_job = {
        "metadata": {"creationTimestamp": TIME.format(0)},
        "spec": {},
        "status": {"conditions": [condition or FAILED]},
    }
    state.pods = {item["metadata"]["uid"]: item for item in pods}
    return state


def deleted(item):
    item["metadata"]["deletionTimestamp"] = TIME.format(9)
    return item


LOST = "RuntimeError: Connection closed by peer"
STOPPED = "stopped by SIGTERM"
OVER = 'Usage of EmptyDir volume "reasrm-work" exceeds the limit "500Gi".'


@pytest.mark.parametrize(
    ("pods", "kind", "message"),
    [
        # The word of the process that failed first,
        ([pod(0, code=1, message=told(0, 1, 9.6, LOST)), pod(1, code=2, message=told(5, 2, 9.5, "raise it"))],
         InvalidInput, "[rank 5 of 8] raise it"),
        ([pod(0, code=75, message=told(0, 75, 9.5, "S3 is away")), pod(1, code=1)],
         Transient, "[rank 0 of 8] S3 is away"),
        # not of one that was asked to stop because of it, though only a second is known of the other's end;
        ([pod(0, code=143, message=told(0, 75, 9.7, STOPPED)), pod(1, code=1)],
         ReasrmError, "[rank 4 of 8] ended with exit code 1"),
        # a process that was killed or crashed has left its signal through torchrun.
        ([pod(0, code=1, message=told(0, 1, 9.5, LOST)), pod(1, code=137, message=told(6, -9, 9.9))],
         ReasrmError, "[rank 0 of 8] RuntimeError"),
        ([pod(0, code=143, message=told(0, 75, 9.9, STOPPED)), pod(1, code=139, message=told(6, -11, 9.5))],
         ReasrmError, "[rank 6 of 8] ended by signal 11"),
        # A container that is killed has no word.
        ([pod(0, code=137, why="OOMKilled"), pod(1, code=1, message=told(4, 1, 9.2, LOST))],
         InvalidInput, "[rank 0 of 8] the pod p0 ran out of memory and was killed (its limit is 96Gi"),
        ([pod(0, code=137), pod(1, code=143)], ReasrmError, "[rank 0 of 8] was killed (signal 9)"),
        ([pod(0, code=143), pod(1, code=143)], Transient, "[rank 0 of 8] was stopped by SIGTERM"),
        # What the cluster did to a pod weighs more than what its processes said of it.
        ([pod(0, code=75, message=told(0, 75, 9.4, STOPPED), **disrupted("PreemptionByScheduler")),
          pod(1, code=1, message=told(4, 1, 9.5, LOST))],
         Transient, "[rank 0 of 8] the pod p0 made room for a pod of higher priority"),
        ([pod(0, **disrupted("DeletionByTaintManager")), pod(1, code=1, message=told(4, 1, 9.5, LOST))],
         Transient, "[rank 0 of 8] the pod p0 had to leave its node"),
        ([pod(0, code=137, reason="Evicted", said="The node was low on resource: memory."), pod(1)],
         Transient, "[rank 0 of 8] the pod p0 was ended by its node: Evicted: The node was low on resource"),
        ([pod(0, code=137, reason="Evicted", said=OVER), pod(1)],
         InvalidInput, "[rank 0 of 8] the pod p0 was evicted: Usage of EmptyDir"),
        ([pod(0, phase="Failed", reason="NodeLost"), pod(1)],
         Transient, "[rank 0 of 8] the pod p0 was ended by its node: NodeLost"),
        ([pod(0, phase="Failed", reason="DeadlineExceeded"), pod(1)],
         Transient, "[rank 0 of 8] the pod p0 ran out of time"),
        ([deleted(pod(0, phase="Failed")), pod(1)],
         Transient, "[rank 0 of 8] stopped by SIGTERM: the pod p0 was deleted"),
        # A message that is not ours is no message.
        ([pod(0, code=3, message="Traceback ..."), pod(1)],
         ReasrmError, "[rank 0 of 8] ended with exit code 3 without a word"),
    ],
)  # fmt: skip
def test_the_user_is_told_what_the_others_follow_from(pods, kind, message):
    error = ends.error_of(state_of(pods), "job", 4)
    assert type(error) is kind
    assert str(error).startswith(message)


def test_what_trainer_itself_says():
    unknown = FAILED | {"reason": "TrainingRuntimeNotSupported", "message": "unsupported runtime: X"}
    assert isinstance(ends.error_of(state_of([], unknown), "job", 4), InvalidInput)
    late = FAILED | {"reason": "DeadlineExceeded"}
    assert isinstance(ends.error_of(state_of([pod(0, code=1)], late), "job", 4), Transient)


def test_secrets_of_a_process_do_not_come_through(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "very-secret-value")
    error = ends.error_of(state_of([pod(0, code=1, message=told(0, 1, 9, "refused very-secret-value"))]), "job", 1)
    assert "[rank 0 of 1] refused ***" in str(error)


def test_a_failure_survives_the_termination_log():
    failure = Failure(3, -9, 12.25, 'ü "quoted"')
    assert decode(encode(failure).decode()) == failure
    long = encode(Failure(3, 1, 12.25, "begin " + "ü" * 9000 + " end"))
    assert len(long) <= LIMIT
    message = decode(long.decode()).message
    assert message.startswith("begin")
    assert message.endswith(" end")
    assert len(long) > LIMIT * 0.9
    for text in ("", "{}", "[]", "3", '{"rank": "x", "exit_code": 1, "moment": 1, "message": ""}'):
        assert decode(text) is None


@pytest.mark.parametrize(
    ("pods", "phase"),
    [
        ([], Phase.CREATED),
        (
            [pod(0, state={"waiting": {}}, phase="Pending"), pod(1, state={"waiting": {}}, phase="Pending")],
            Phase.PENDING,
        ),
        ([pod(0), pod(1, state={"waiting": {}}, phase="Pending")], Phase.PENDING),
        ([pod(0), pod(1)], Phase.RUNNING),
        ([pod(0, code=0, phase="Succeeded"), pod(1)], Phase.RUNNING),
    ],
)
def test_phases(pods, phase):
    state = state_of(pods)
    state.num_nodes = 2
    state.train_job["status"] = {}
    assert state.phase() is phase
    for item in pods:
        item["spec"]["nodeName"] = "n"
    if phase is Phase.PENDING:
        assert state.phase() is Phase.STARTING
    state.train_job["spec"]["suspend"] = True
    assert state.phase() is Phase.QUEUED
    state.train_job["metadata"]["deletionTimestamp"] = TIME.format(3)
    assert state.phase() is Phase.ENDING
    state.train_job = None
    assert state.phase() is Phase.GONE


def test_pods_of_an_earlier_job_do_not_count():
    state = state_of([pod(0, code=1, message=told(0, 1, 9, "of the earlier one"))])
    state.train_job["metadata"]["creationTimestamp"] = TIME.format(2)
    assert "none of its pods is left to say why" in str(ends.error_of(state, "job", 1))


def test_pods_of_before_a_suspension_do_not_count():
    """Kueue ends all pods, and later others are made: what those end with is the failure."""
    before = [deleted(pod(0)), deleted(pod(1))]
    after = [pod(0, code=2, message=told(0, 2, 50, "max_tokens is wrong")), pod(1)]
    for number, item in enumerate(after):
        item["metadata"] |= {"uid": f"after{number}", "creationTimestamp": TIME.format(40)}
    state = state_of([*before, after[0]])
    state.num_nodes, state.gone_pods = 2, {"u0"}  # the end of the other old one is not known yet
    assert [item["metadata"]["uid"] for item in state.own_pods()] == ["after0"]
    state.pods["after1"] = after[1]
    assert str(ends.error_of(state, "job", 4)).startswith("[rank 0 of 8] max_tokens is wrong")


def test_times_of_events_are_compared_whatever_their_form():
    def event(**values):
        return {"metadata": {"creationTimestamp": TIME.format(0)}, **values}

    times = (
        event(),
        event(eventTime="2026-01-01T00:00:00.250000Z"),
        event(series={"lastObservedTime": "2026-01-01T01:00:00.9+01:00"}),
        event(lastTimestamp=TIME.format(1)),
    )
    moments = [event_time(one).timestamp() - BASE for one in times]
    assert moments == pytest.approx([0, 0.25, 0.9, 1], abs=1e-5)


def test_older_clusters_say_the_index_in_an_annotation():
    item = pod(3)
    item["metadata"]["annotations"] = item["metadata"].pop("labels")
    assert index(item) == 3
