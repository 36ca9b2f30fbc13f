"""The launcher against an API server; the tests play Trainer's controllers and the nodes."""

import logging
import os
import signal
import time

import pytest

from components.adapters import kubernetes
from components.adapters.kubernetes import CONFIG_MAPS, PODS, TRAIN_JOBS, TRAINING_RUNTIMES
from components.adapters.stage import stopping_cleanly
from components.adapters.trainjob.claim import Claim
from components.adapters.trainjob.spec import HASH, build
from components.core.errors import InvalidInput, ReasrmError, Transient

EMPTY = {"metadata": {}}


def owner_names(item):
    return [owner["name"] for owner in item["metadata"].get("ownerReferences") or ()]


def owner_uids(item):
    return [owner["uid"] for owner in (item or EMPTY)["metadata"].get("ownerReferences") or ()]


def earlier(world, *, owner=None, **settings):
    """Make the objects of an earlier attempt at this work, whose pod is `owner`."""
    made = build(
        world.job(run_arguments=("--run-id", "run-0")), world.settings(**settings), world.cluster.namespace, {}
    )
    made.train_job["metadata"]["ownerReferences"] = [owner] if owner else []
    job = world.cluster.create(TRAIN_JOBS, made.train_job)
    uid = job["metadata"]["uid"]
    made.files["metadata"]["ownerReferences"] = [
        {"apiVersion": TRAIN_JOBS.api_version, "kind": "TrainJob", "name": world.name, "uid": uid}
    ]
    world.cluster.create(CONFIG_MAPS, made.files)
    return job


def test_a_job_runs_to_its_end_and_leaves_nothing_behind(world, caplog):
    caplog.set_level(logging.INFO)
    seen = {}

    def play(trainer):
        seen["job"] = trainer.job()
        seen["files"] = world.until(world.files)
        trainer.run()
        world.until(lambda: "runs (2 of 2 machines" in caplog.text)
        trainer.complete()

    world.launch(play)
    assert seen["job"]["metadata"]["name"] == "reasrm-sft-0123456789ab"
    assert seen["job"]["spec"]["trainer"]["numNodes"] == 2
    assert seen["files"]["data"] == {"config.json": '{"nodes": 2}'}
    assert owner_names(seen["job"]) == ["task-1"]
    assert seen["job"]["metadata"]["ownerReferences"][0]["uid"] == world.me["uid"]
    assert owner_uids(seen["files"]) == [seen["job"]["metadata"]["uid"]]  # they go with it
    assert world.there() is None


def test_a_retry_waits_for_the_job_of_the_first_attempt(world):
    gone = world.trainer.waiting_pod("task-0", phase="Failed")
    first = earlier(world, owner=gone)

    def play(trainer):
        world.until(lambda: owner_names(world.there()) == ["task-1"])
        assert world.there()["metadata"]["uid"] == first["metadata"]["uid"]
        trainer.run()
        trainer.complete()

    world.launch(play)
    assert world.there() is None


@pytest.mark.parametrize("what", ["missing", "of an earlier job"])
def test_files_that_a_job_lacks_are_made(world, what):
    first = earlier(world)
    if what == "missing":
        world.cluster.delete(CONFIG_MAPS, world.name)
    else:
        world.cluster.patch(CONFIG_MAPS, world.name, {"metadata": {"ownerReferences": None}})

    def play(trainer):
        world.until(lambda: owner_uids(world.files()) == [first["metadata"]["uid"]])
        world.cluster.delete(CONFIG_MAPS, world.name)  # while its pods are still to come
        world.until(world.files)
        trainer.run()
        trainer.complete()

    world.launch(play)


@pytest.mark.parametrize("what", ["failed", "complete", "other settings", "being deleted"])
def test_a_job_that_cannot_be_waited_for_is_made_anew(world, what):
    owner = world.trainer.waiting_pod("task-0", phase="Failed")
    first = earlier(world, owner=owner, **({"memory": "1Gi"} if what == "other settings" else {}))
    world.trainer.run()
    if what == "failed":
        world.trainer.condition("Failed", "FailedJobs", "no more")
    if what == "complete":  # and yet somebody asks for the work: its result is gone
        world.trainer.complete()
    if what == "being deleted":
        world.cluster.delete(TRAIN_JOBS, world.name, propagation="Foreground")

    def play(trainer):
        trainer.collect(first["metadata"]["uid"])
        second = world.until(world.there)
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        assert second["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"] == "96Gi"
        assert owner_names(second) == ["task-1"]
        trainer.run()
        trainer.complete()

    world.launch(play)


def test_a_job_of_other_settings_that_another_run_waits_for_is_shared(world):
    other = world.trainer.waiting_pod("task-0")
    first = earlier(world, owner=other, memory="1Gi")

    def play(trainer):
        world.until(lambda: len(owner_names(world.there())) == 2)
        trainer.run()
        trainer.complete()

    world.launch(play)
    left = world.there()  # the other one has to see that it is complete
    assert left["metadata"]["uid"] == first["metadata"]["uid"]
    assert owner_names(left) == ["task-0"]


def test_pods_of_an_earlier_job_are_waited_for(world):
    world.trainer.run()
    for number in range(2):
        world.cluster.patch(PODS, world.trainer.pod(number), {"metadata": {"finalizers": ["test/held"]}})
        world.cluster.delete(PODS, world.trainer.pod(number))

    def play(trainer):
        time.sleep(0.1)
        assert world.there() is None
        for number in range(2):
            world.cluster.patch(PODS, trainer.pod(number), {"metadata": {"finalizers": []}})
        trainer.job()
        trainer.complete()

    world.launch(play)


def stop_when(world, ready):
    def play(trainer):
        trainer.job()
        trainer.run()
        world.until(ready)
        os.kill(os.getpid(), signal.SIGTERM)

    return play


@pytest.mark.parametrize("others", [False, True])
def test_sigterm_ends_the_job_unless_another_run_waits_for_it(world, caplog, others):
    caplog.set_level(logging.INFO)
    world.others = others
    if others:
        earlier(world, owner=world.trainer.waiting_pod("task-0"))
    else:  # one that has ended is none
        earlier(world, owner=world.trainer.waiting_pod("task-0", phase="Failed"))
    words = "goes on for another run" if others else "is being ended; run again to go on from the last checkpoint"
    with pytest.raises(Transient, match=f"stopped by SIGTERM; the TrainJob {world.name} {words}"), stopping_cleanly():
        world.launch(stop_when(world, lambda: "runs (2 of 2" in caplog.text))
    if others:
        assert owner_names(world.there()) == ["task-0"]
    else:
        assert world.there()["metadata"]["deletionTimestamp"]  # its processes write their checkpoints
        world.trainer.collect()


def test_the_first_request_after_sigterm_ends_the_job(faulty, caplog):
    """A pod of KFP's has less than a second for it."""
    caplog.set_level(logging.INFO)
    before = []

    def play(trainer):
        trainer.job()
        trainer.run()
        faulty.until(lambda: "runs (2 of 2" in caplog.text)
        before.extend(faulty.server.requests)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Transient, match="is being ended"), stopping_cleanly():
        faulty.launch(play, launcher=faulty.launcher({"look": 60.0}))
    asked = [one for one in faulty.server.requests[len(before) :] if "/log" not in one[1] and "watch=" not in one[1]]
    [(method, path)] = asked
    assert method == "DELETE"
    assert path.endswith(f"/trainjobs/{faulty.name}")
    faulty.trainer.collect()


def test_a_sigterm_before_there_is_a_job_ends_none(world, monkeypatch):
    other = earlier(world, owner=world.trainer.waiting_pod("task-0"), memory="1Gi")
    monkeypatch.setattr(Claim, "_why_anew", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Transient, match="no TrainJob was begun"), stopping_cleanly():
        world.launch(lambda trainer: None)
    assert world.there() == other


def test_a_job_that_does_not_end_is_not_waited_for_for_ever(world, monkeypatch):
    monkeypatch.setattr("components.adapters.trainjob.claim.GRACE_SECONDS", -1.9)
    earlier(world)
    world.cluster.patch(TRAIN_JOBS, world.name, {"metadata": {"finalizers": ["test/held"]}})
    world.cluster.delete(TRAIN_JOBS, world.name)
    with pytest.raises(Transient, match=r"deleted, but not gone after .*test/held"):
        world.launch(lambda trainer: None)
    world.trainer.collect()


def fail_by_the_user(trainer):
    trainer.job()
    trainer.run()
    trainer.end(0, 2, '{"rank": 0, "exit_code": 2, "moment": 5.0, "message": "raise max_tokens"}')
    trainer.end(1, 143)
    trainer.condition("Failed", "FailedJobs")


def test_a_retry_gets_what_only_the_user_can_mend_at_once(world):
    with pytest.raises(InvalidInput, match="raise max_tokens"):
        world.launch(fail_by_the_user)
    first = world.there()
    with pytest.raises(InvalidInput, match=r"raise max_tokens.* failed so already.*delete trainjob reasrm-sft-"):
        world.launch(lambda trainer: None)
    assert world.there()["metadata"]["uid"] == first["metadata"]["uid"]


@pytest.mark.parametrize("what", ["another run", "later"])
def test_what_only_the_user_can_mend_is_tried_again(world, what):
    with pytest.raises(InvalidInput, match="raise max_tokens"):
        world.launch(fail_by_the_user)
    first = world.there()["metadata"]["uid"]

    def play(trainer):
        trainer.collect(first)
        trainer.job()
        trainer.complete()

    job = world.job(run_arguments=("--run-id", "run-2")) if what == "another run" else world.job()
    world.launch(play, job=job, launcher=world.launcher({"again": 0.0} if what == "later" else {}))


def test_the_error_of_the_process_that_failed_first_is_raised(world):
    def play(trainer):
        trainer.job()
        trainer.run()
        trainer.end(1, 2, '{"rank": 3, "exit_code": 2, "moment": 5.0, "message": "raise max_tokens"}')
        trainer.end(0, 1, '{"rank": 0, "exit_code": 1, "moment": 5.5, "message": "RuntimeError: peer is gone"}')
        trainer.condition("Failed", "FailedJobs", "jobset failed due to one or more job failures")

    pod = world.trainer.pod(1)
    with pytest.raises(InvalidInput) as raised:
        world.launch(play)
    assert str(raised.value) == f"[rank 3 of 4] raise max_tokens (pod {pod} of the TrainJob {world.name})"
    assert owner_names(world.there()) == ["task-1"]  # for whoever looks for the reason


def test_a_pod_that_is_deleted_after_its_end_still_tells_why(world, caplog):
    caplog.set_level(logging.INFO)

    def play(trainer):
        trainer.job()
        trainer.run()
        world.until(lambda: "runs (2 of 2" in caplog.text)
        trainer.end(0, 75, '{"rank": 0, "exit_code": 75, "moment": 5.0, "message": "S3 is away"}')
        world.cluster.delete(PODS, trainer.pod(1), grace_seconds=0)
        world.cluster.delete(PODS, trainer.pod(0), grace_seconds=0)
        trainer.condition("Failed", "FailedJobs")

    with pytest.raises(Transient, match=r"\[rank 0 of 4\] S3 is away"):
        world.launch(play)


def test_a_failure_without_pods_is_told_by_its_condition(world):
    def play(trainer):
        trainer.job()
        trainer.condition("Failed", "FailedJobs", "nothing could be made")

    with pytest.raises(ReasrmError, match="none of its pods is left to say why: FailedJobs: nothing could be made"):
        world.launch(play)


def test_running_out_of_time_is_told(world):
    def play(trainer):
        trainer.job()
        trainer.condition("Failed", "DeadlineExceeded", "TrainJob exceeded its active deadline")

    with pytest.raises(Transient, match="was ended after the 96 hours that one attempt has"):
        world.launch(play)


def test_a_deadline_that_nobody_enforces_is_enforced(world):
    def play(trainer):
        trainer.job()
        trainer.run()

    with pytest.raises(Transient, match=r"is older than the 1 s that one attempt has; the TrainJob .* is being ended"):
        world.launch(play, launcher=world.launcher(timeout_hours=1 / 3600))
    world.trainer.collect()


def test_a_job_that_somebody_deletes_is_transient(world):
    def play(trainer):
        trainer.job()
        trainer.run()
        world.cluster.delete(TRAIN_JOBS, world.name)

    with pytest.raises(Transient, match="was deleted while it was waited for"):
        world.launch(play)


def test_a_job_that_is_replaced_is_not_ours(world):
    def play(trainer):
        trainer.job()
        world.cluster.delete(TRAIN_JOBS, world.name)
        world.cluster.create(TRAIN_JOBS, world.wanted().train_job)

    with pytest.raises(Transient, match="was deleted while it was waited for"):
        world.launch(play)
    assert world.there() is not None


def test_two_runs_of_the_same_work_come_to_one_job(world, monkeypatch):
    """Both look, find nothing and make it: one is quicker, the other waits for the same."""
    create, made = kubernetes.Cluster.create, []

    def outrun(self, kind, body, **values):
        if kind == TRAIN_JOBS and not made:
            made.append("begun")
            made.append(earlier(world, owner=world.trainer.waiting_pod("task-0")))
        return create(self, kind, body, **values)

    def play(trainer):
        world.until(lambda: len(made) == 2 and len(owner_names(world.there())) == 2)
        assert world.there()["metadata"]["uid"] == made[1]["metadata"]["uid"]
        trainer.complete()

    monkeypatch.setattr(kubernetes.Cluster, "create", outrun)
    world.launch(play)


def test_without_a_pod_of_its_own_it_owns_nothing(world, monkeypatch, caplog):
    monkeypatch.setenv("KFP_POD_UID", "of another pod")

    def play(trainer):
        assert owner_names(trainer.job()) == []
        trainer.complete()

    world.launch(play)
    assert "gets no owner" in caplog.text


def test_a_missing_runtime_is_named(world):
    world.cluster.delete(TRAINING_RUNTIMES, "reasrm-torch")
    with pytest.raises(
        InvalidInput, match=r"no TrainingRuntime reasrm-torch in namespace .*apply manifests/components/training"
    ):
        world.launch(lambda trainer: None)


def test_the_job_says_what_it_was_made_from(world):
    def play(trainer):
        assert trainer.job()["metadata"]["annotations"][HASH]
        trainer.complete()

    world.launch(play)
