"""Why nothing moves, in words."""

import itertools
import logging
import time

import pytest

from components.adapters.kubernetes import LOCAL_QUEUES, TRAIN_JOBS, WORKLOADS
from components.core.errors import InvalidInput

FATAL = 0.15
NAME = "reasrm-sft-0123456789ab"


def waiting(world, caplog, arrange, words, **settings):
    """Launch, arrange an obstacle, wait for the words, and let all end well."""
    caplog.set_level(logging.INFO)

    def play(trainer):
        trainer.job()
        arrange(trainer)
        world.until(lambda: words in caplog.text, words)
        if settings:
            trainer.cluster.patch(TRAIN_JOBS, world.name, {"spec": {"suspend": False}})
        trainer.complete()

    world.launch(play, launcher=world.launcher(**settings))
    assert caplog.text.count(words) == 1  # said once, not at each look


UNPLACED = "0/5 nodes are available: 3 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {gpu: true}. pre"


def unplaced(trainer):
    trainer.pods()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNPLACED}
    for number in range(2):
        trainer.status(number, phase="Pending", conditions=[condition])


def test_pods_that_no_node_takes(world, caplog):
    words = (
        f"no node takes the pods: {UNPLACED}; too little nvidia.com/gpu is free: wait, add nodes, or lower gpus, "
        "machine_cpu or machine_memory of the run; nodes have the taint gpu: true: add it to the run's tolerations"
    )
    waiting(world, caplog, unplaced, words)


def test_a_quota_without_room(world, caplog):
    said = 'pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 8, limited: 8'

    def arrange(trainer):
        trainer.event(f"{world.name}-node-0", "FailedCreate", f"Error creating: {said}")

    waiting(world, caplog, arrange, "the namespace's quota has no room for the pods: Error creating: pods")


def test_a_volume_that_does_not_come(world, caplog):
    def arrange(trainer):
        trainer.pods()
        trainer.event(trainer.pod(0), "FailedMount", 'configmap "x" not found')

    waiting(world, caplog, arrange, f"{world.name}-node-0-0-x cannot start (FailedMount): configmap")


def test_nobody_takes_the_job_up(world, caplog):
    waiting(world, caplog, lambda trainer: None, "nobody takes up the TrainJob: see that Trainer's controller runs")


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (
            lambda trainer: (
                trainer.pods(),
                trainer.container(0, "Pending", waiting={"reason": "ImagePullBackOff", "message": "not found"}),
            ),
            r"the image reasrm/train@sha256:\w+ cannot be pulled \(ImagePullBackOff: not found\)",
        ),
        (
            lambda trainer: trainer.event(
                "reasrm-sft-0123456789ab-node-0", "FailedCreate", 'violates PodSecurity "restricted:latest"'
            ),
            "the cluster refuses the pods: violates PodSecurity",
        ),
        (
            lambda trainer: trainer.event(
                "reasrm-sft-0123456789ab", "TrainJobResourcesCreationFailed", "no matches for kind JobSet"
            ),
            "Trainer cannot make the TrainJob's objects: no matches for kind JobSet",
        ),
    ],
    ids=["image", "policy", "jobset"],
)
def test_what_time_does_not_mend_ends_the_job(world, arrange, words):
    def play(trainer):
        trainer.job()
        arrange(trainer)
        trainer.collect()

    with pytest.raises(InvalidInput, match=rf"{words}.*\(the TrainJob {world.name} is being ended"):
        world.launch(play)
    assert world.there() is None


@pytest.mark.parametrize("about", [NAME, f"{NAME}-node-0"])
@pytest.mark.parametrize("why", ["there are pods", "a while ago"])
def test_what_is_over_ends_nothing(world, caplog, about, why):
    reason = "TrainJobResourcesCreationFailed" if about == NAME else "FailedCreate"

    def play(trainer):
        trainer.job()
        trainer.event(about, reason, "connection refused")
        if why == "there are pods":
            unplaced(trainer)
        world.until(lambda: (UNPLACED if why == "there are pods" else "connection refused") in caplog.text)
        time.sleep(1.5 * FATAL)
        trainer.complete()

    world.launch(play, launcher=world.launcher({"recent": -60.0 if why == "a while ago" else 5.0}))


def test_an_image_that_does_not_come_has_many_words(world, caplog):
    """They change from look to look, and it is one problem all the same."""

    def play(trainer):
        trainer.job()
        trainer.pods()
        for reason in itertools.cycle(("ErrImagePull", "ImagePullBackOff")):
            for number in range(2):
                if world.there()["metadata"].get("deletionTimestamp"):
                    return
                trainer.container(number, "Pending", waiting={"reason": reason, "message": str(number)})

    with pytest.raises(InvalidInput, match="cannot be pulled"):
        world.launch(play)
    assert caplog.text.count("cannot be pulled") == 1


def kueue(world):
    world.server.served["kueue.x-k8s.io/v1beta1"] = {"workloads": "Workload", "localqueues": "LocalQueue"}
    world.server.validate = lambda item: []


def test_a_queue_that_does_not_admit(faulty, caplog):
    kueue(faulty)
    said = "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu, 8 more needed"

    def arrange(trainer):
        workload = {
            "apiVersion": WORKLOADS.api_version,
            "kind": "Workload",
            "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": trainer.job()["metadata"]["uid"]}},
            "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": said}]},
        }
        trainer.cluster.create(WORKLOADS, workload)

    waiting(faulty, caplog, arrange, f"Kueue's queue gpus does not admit the TrainJob yet: {said}", queue="gpus")


def test_a_queue_that_is_not_there(faulty, caplog):
    kueue(faulty)
    waiting(faulty, caplog, lambda trainer: None, "there is no LocalQueue gpus in namespace team-", queue="gpus")


def test_a_kueue_that_does_not_know_train_jobs(faulty, caplog):
    kueue(faulty)
    faulty.cluster.create(LOCAL_QUEUES, {"apiVersion": "x", "kind": "LocalQueue", "metadata": {"name": "gpus"}})
    waiting(faulty, caplog, lambda trainer: None, "see that trainer.kubeflow.org/trainjob is in its", queue="gpus")


def test_a_queue_without_kueue(faulty):
    with pytest.raises(InvalidInput, match="queue of the profile is gpus, and there is no Kueue: install it"):
        faulty.launch(lambda trainer: (trainer.job(), trainer.collect()), launcher=faulty.launcher(queue="gpus"))


def test_what_may_not_be_looked_at_hinders_nothing(faulty, caplog):
    caplog.set_level(logging.INFO)
    faulty.server.denied.add(("list", "events"))

    def play(trainer):
        trainer.job()
        trainer.run()
        faulty.until(lambda: "runs (2 of 2" in caplog.text)
        trainer.complete()

    faulty.launch(play)
