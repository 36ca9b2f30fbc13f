"""The launcher while the API server fails in all the ways that it does."""

import logging
import threading
import time

import pytest

from components.adapters import kubernetes
from components.adapters.kubernetes import PODS, TRAIN_JOBS, Conflict, Patience, Unavailable
from components.core.errors import InvalidInput, Transient

JOBS_PATH = "/trainjobs"


def done(trainer):
    trainer.job()
    trainer.complete()


def test_a_lost_answer_to_create_finds_what_was_made(faulty):
    faulty.server.fail("POST", JOBS_PATH, None, after=True)

    def play(trainer):
        faulty.until(lambda: faulty.server.watching == 2)
        done(trainer)

    faulty.launch(play)
    made = [request for request in faulty.server.requests if request[0] == "POST" and JOBS_PATH in request[1]]
    assert len(made) == 2  # the second was told that there is one


@pytest.mark.parametrize(
    "fault",
    [
        {"code": 429, "headers": {"Retry-After": "0"}, "reason": "TooManyRequests"},
        {"code": 500},
        {"code": 503, "is_status": False, "message": "upstream connect error"},
        {"code": None},
    ],
    ids=["busy", "error", "proxy", "cut"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_failing_server_is_asked_again(faulty, fault, method):
    faulty.server.fail(method, "trainer.kubeflow.org", times=3, **fault)
    faulty.launch(done)
    assert faulty.there() is None


def test_owners_are_written_again_when_somebody_else_was_quicker(faulty):
    faulty.server.fail("PATCH", JOBS_PATH, 409, reason="Conflict")
    seen = []

    def play(trainer):
        seen.append(faulty.until(lambda: faulty.there() and faulty.there()["metadata"].get("ownerReferences")))
        trainer.complete()

    faulty.cluster.create(TRAIN_JOBS, faulty.wanted().train_job)
    faulty.launch(play)
    assert [owner["name"] for owner in seen[0]] == ["task-1"]


@pytest.mark.parametrize("fault", ["forget", "cut", "restart", "ends"])
def test_news_survive(faulty, fault, caplog):
    caplog.set_level(logging.INFO)
    server = faulty.server

    def play(trainer):
        trainer.job()
        faulty.until(lambda: server.watching == 2)
        if fault == "ends":
            time.sleep(1.1)  # of the watch's own accord
        elif fault == "restart":
            server.stop()
            time.sleep(0.1)
            server.start()
        else:
            getattr(server, fault)()
        trainer.run()
        faulty.until(lambda: "runs (2 of 2" in caplog.text)
        if fault == "cut":
            server.cut()
        trainer.complete()

    faulty.launch(play)
    assert faulty.there() is None


def test_a_pod_that_ends_while_nobody_watches_is_gone_after_the_next_list(faulty, caplog):
    caplog.set_level(logging.INFO)

    def play(trainer):
        trainer.job()
        trainer.run()
        faulty.until(lambda: "runs (2 of 2" in caplog.text)
        faulty.server.fail("GET", "/pods.*watch=true", 503, times=3)
        faulty.server.cut()
        faulty.cluster.delete(PODS, trainer.pod(1), grace_seconds=0)
        faulty.server.forget()
        faulty.until(lambda: "(1 of 2 machines at work, 1 pods)" in caplog.text)
        trainer.complete()

    faulty.launch(play)


def test_an_api_that_stays_away_is_transient_and_leaves_the_job(faulty):
    faulty.cluster.patience = Patience(total=0.2, first=0.01, longest=0.02)

    def play(trainer):
        trainer.job()
        faulty.until(lambda: faulty.server.watching == 2)
        faulty.server.stop()

    with pytest.raises(Transient, match="cannot be reached"):
        faulty.launch(play)
    assert any(plural == "trainjobs" for plural, _, _ in faulty.server.items)
    faulty.server.start()


def test_refusals_of_a_server_that_starts_are_borne(faulty):
    def play(trainer):
        trainer.job()
        faulty.until(lambda: faulty.server.watching == 2)
        faulty.server.fail("GET", "watch=true", 403, times=4, reason="Forbidden", message="not yet")
        faulty.server.cut()
        trainer.complete()

    faulty.launch(play)


@pytest.mark.parametrize("denied", [("watch", "pods"), ("create", "configmaps")], ids=" ".join)
def test_what_is_not_allowed_leaves_no_job_behind(faulty, denied):
    faulty.server.denied.add(denied)
    with pytest.raises(InvalidInput, match=rf"may not {' '.join(denied)} .*\(the TrainJob .* is being ended"):
        faulty.launch(lambda trainer: None)
    faulty.trainer.collect()
    assert faulty.there() is None


def test_permissions_that_are_taken_away_are_named(faulty):
    def play(trainer):
        trainer.job()
        faulty.until(lambda: faulty.server.watching == 2)
        faulty.server.denied |= {("watch", "pods"), ("watch", "trainjobs")}
        faulty.server.cut()

    with pytest.raises(InvalidInput, match=r"may not watch (pods|trainjobs) of API group"):
        faulty.launch(play)


@pytest.mark.parametrize(
    ("denied", "message"),
    [
        (("get", "trainjobs"), "may not get trainjobs of API group trainer.kubeflow.org in namespace team-"),
        (("create", "trainjobs"), "may not create trainjobs"),
        (("create", "configmaps"), "may not create configmaps of API group core"),
        (("list", "pods"), "may not list pods of API group core in namespace team-.*: bind a role"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_allowed_is_named(faulty, denied, message):
    faulty.server.denied.add(denied)
    with pytest.raises(InvalidInput, match=message):
        faulty.launch(lambda trainer: None)


def test_without_trainer_it_says_what_to_install(faulty):
    del faulty.server.served["trainer.kubeflow.org/v1alpha1"]
    with pytest.raises(InvalidInput, match=r"trainjobs.trainer.kubeflow.org.*Trainer v2.3.*training = \"pod\""):
        faulty.launch(lambda trainer: None)


def test_what_the_schema_refuses_is_said(faulty):
    settings = faulty.launcher(tolerations=[{"keys": "gpu"}])
    with pytest.raises(InvalidInput, match=r"refuses to create TrainJob .*\(422\).*keys"):
        faulty.launch(lambda trainer: None, launcher=settings)


def test_what_a_webhook_refuses_is_said(faulty):
    denied = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: runtimeRef'
    faulty.server.fail("POST", JOBS_PATH, 403, reason="Forbidden", message=denied)
    with pytest.raises(InvalidInput, match=r"does not let .* create TrainJob in namespace .*denied the request"):
        faulty.launch(lambda trainer: None)


def test_logs_come_line_by_line_over_broken_connections(faulty, caplog):
    caplog.set_level(logging.INFO)
    lines = faulty.server.logs.setdefault(faulty.trainer.pod(0), [])

    def say(moment, text):
        with faulty.server.lock:
            lines.append((f"2026-01-01T00:00:{moment}Z", text))
            faulty.server.lock.notify_all()

    def play(trainer):
        trainer.job()
        trainer.run()
        say("01", "torchrun begins")
        say("01.25", '{"level": "WARNING", "message": "loss is odd", "rank": 0}')
        faulty.until(lambda: "loss is odd" in caplog.text)
        faulty.server.cut()
        say("01.5", "10%\r 50%\r100% done")
        faulty.until(lambda: "100% done" in caplog.text)
        say("02", "last words")
        trainer.complete()

    faulty.launch(play)
    said = [(record.levelname, record.message) for record in caplog.records if "[machine 0]" in record.message]
    assert said == [
        ("INFO", "[machine 0] torchrun begins"),
        ("WARNING", "[machine 0] rank 0: loss is odd"),
        ("INFO", "[machine 0] 100% done"),
        ("INFO", "[machine 0] last words"),
    ]


def test_the_last_lines_of_the_pod_that_failed_are_shown(faulty, caplog):
    caplog.set_level(logging.INFO)
    faulty.server.logs[faulty.trainer.pod(1)] = [(f"2026-01-01T00:00:{i:02}Z", f"line {i}") for i in range(60)]

    def play(trainer):
        trainer.job()
        trainer.run()
        trainer.end(1, 1)
        trainer.end(0, 143)
        trainer.condition("Failed")

    with pytest.raises(Exception, match=r"\[rank 2 of 4\] ended with exit code 1 without a word"):
        faulty.launch(play)
    shown = [record.message for record in caplog.records if "[machine 1]" in record.message]
    assert shown == [f"[machine 1] line {i}" for i in range(20, 60)]


def test_calls_give_up_after_their_patience(faulty):
    faulty.cluster.patience = Patience(total=0.1, first=0.01, longest=0.02)
    faulty.server.fail("GET", "/pods/x", 500, times=10**6)
    with pytest.raises(Unavailable, match=r"cannot get Pod x in namespace .* for now \(500\): made to fail"):
        faulty.cluster.get(PODS, "x")


def test_a_token_that_is_not_accepted_is_no_matter_of_patience(faulty):
    faulty.cluster.client.configuration.refresh_api_key_hook = None
    faulty.cluster.client.configuration.api_key = {"authorization": "Bearer stale"}
    with pytest.raises(InvalidInput, match="does not accept the credentials"):
        faulty.cluster.get(PODS, "x")


def test_a_list_is_read_page_by_page(faulty, monkeypatch):
    monkeypatch.setattr(kubernetes.cluster, "PAGE", 2)
    for number in range(5):
        faulty.trainer.waiting_pod(f"pod-{number}")
    names = [pod["metadata"]["name"] for pod in faulty.cluster.list(PODS).items]
    assert names == [f"pod-{number}" for number in range(5)] + ["task-1"]
    asked = [path for method, path in faulty.server.requests if method == "GET" and "limit=2" in path]
    assert len(asked) == 3


def test_a_stream_ends_when_another_thread_closes_it(faulty):
    version = faulty.cluster.list(PODS).version
    with faulty.cluster.watch(PODS, version, seconds=120) as watch:
        closer = threading.Timer(0.05, watch.close)
        closer.start()
        began = time.monotonic()
        assert list(watch) == []
        assert time.monotonic() - began < 60
        closer.join()


def test_a_change_for_an_older_version_is_a_conflict(world):
    old = world.cluster.get(PODS, "task-1")["metadata"]["resourceVersion"]
    assert world.cluster.patch(PODS, "task-1", {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(Conflict) as raised:
        world.cluster.patch(PODS, "task-1", {"metadata": {"labels": {"a": "c"}, "resourceVersion": old}})
    assert not raised.value.exists
    assert world.cluster.patch(PODS, "no-such-pod", {}) is None
    assert world.cluster.delete(PODS, "no-such-pod") is False
    with pytest.raises(Conflict):
        world.cluster.delete(PODS, "task-1", uid="of another")


def test_questions_about_the_cluster(world):
    assert world.cluster.has_api("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert not world.cluster.has_api("trainer.kubeflow.org/v1alpha1", "PyTorchJob")
    assert not world.cluster.has_api("no.such/v1", "Thing")
    assert world.cluster.has_api("v1", "Pod")
    assert world.cluster.version().startswith("v1.")
    assert world.cluster.can_i("create", "trainer.kubeflow.org", "trainjobs")
    assert world.cluster.secret_keys("reasrm-s3") is None


def test_permissions_are_asked_for(faulty):
    faulty.server.denied.add(("get", "pods/log"))
    answer = faulty.cluster.can_i("get", "", "pods", subresource="log")
    assert not answer
    assert answer.reason == "no role"
