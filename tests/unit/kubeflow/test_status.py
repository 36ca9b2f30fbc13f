"""`reasrm status` and the table of stages: what is shown of KFP's nodes."""

import _thread
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from rich.console import Console

from components.adapters.kubernetes import connect
from components.core.errors import Transient
from pipeline.client import watch
from pipeline.client.pods import PodNotes, pod_note
from pipeline.client.stages import stages_of, statuses
from pipeline.client.submit import package_spec, submit
from pipeline.client.watch import LiveScreen, Watcher

ARGUMENTS = {"pipeline_name": "reasrm", "experiment": "weekly", "service_account": "reasrm"}
STAGES = ["preflight", "prepare", "traces-part", "traces", "filter", "sft", "grpo", "benchmark-part", "benchmark"]
STAGES += ["gate", "publish", "report"]


@pytest.fixture
def run(kfp_server, kfp, smoke):
    """The id of a run of the smoke recipe."""
    return submit(kfp, *smoke, run_name="one", **ARGUMENTS).run_id


@pytest.fixture
def status(kfp_server, reasrm):
    """Run `reasrm status` against the server."""
    return lambda *arguments: reasrm("status", *arguments, "--host", kfp_server.url, "--namespace", "team")


def seen(kfp, run):
    return {stage.name: stage for stage in Watcher(kfp, run).look().stages}


def test_stages_are_those_of_the_compiled_pipeline_in_their_order(smoke):
    found = stages_of(package_spec(smoke[1]))
    assert [stage.name for stage in found] == STAGES
    publish = next(stage for stage in found if stage.name == "publish")
    assert publish.tasks == ("publish", "publish-2")


def test_loop_over_a_list_that_was_compiled_in_has_its_number_of_parts():
    part = {"componentRef": {"name": "comp-part"}, "taskInfo": {"name": "part"}}
    loop = {"componentRef": {"name": "comp-loop"}, "parameterIterator": {"items": {"raw": '["1/3", "2/3", "3/3"]'}}}
    spec = {
        "components": {"comp-part": {"executorLabel": "x"}, "comp-loop": {"dag": {"tasks": {"part": part}}}},
        "root": {"dag": {"tasks": {"for-loop-1": loop}}},
    }
    (stage,) = stages_of({"pipeline_spec": spec, "platform_spec": {}})
    assert (stage.parts, stage.parents) == (3, ("for-loop-1",))
    node = SimpleNamespace(
        display_name="part", state="SUCCEEDED", start_time=None, end_time=None, error=None, state_history=None
    )
    run = SimpleNamespace(state="RUNNING", run_details=SimpleNamespace(task_details=[node]))
    (shown,) = statuses([stage], run)
    assert (shown.state, shown.done, shown.total) == ("running", 1, 3)


def test_nothing_has_begun(kfp, run):
    assert {stage.state for stage in seen(kfp, run).values()} == {"waiting"}


def test_each_state_is_told(kfp_server, kfp, run, nodes):
    driver = {"display_name": "sft-driver", "state": "RUNNING"}
    kfp_server.set_tasks(
        run,
        [
            *nodes(("preflight", "SUCCEEDED"), ("prepare", "CACHED"), ("filter", "FAILED"), ("traces", "SKIPPED")),
            driver,
        ],
    )
    kfp_server.set_state(run, "RUNNING")
    shown = seen(kfp, run)
    states = {name: stage.state for name, stage in shown.items() if stage.state != "waiting"}
    assert states == {
        "preflight": "done", "prepare": "cached", "filter": "failed", "traces": "skipped", "sft": "starting"
    }  # fmt: skip
    assert (shown["preflight"].until - shown["preflight"].since).total_seconds() == 150


def test_parts_of_a_loop_are_folded(kfp_server, kfp, run, nodes):
    loop = [("for-loop-3", "RUNNING"), ("traces-part", "SUCCEEDED"), ("traces-part", "SUCCEEDED")]
    kfp_server.set_tasks(run, nodes(*loop, ("traces-part", "RUNNING"), ("traces-part", "PENDING")))
    part = seen(kfp, run)["traces-part"]
    assert (part.state, part.done, part.total) == ("running", 2, 4)
    kfp_server.set_tasks(run, nodes(*loop))  # more parts may come: the loop still runs
    assert seen(kfp, run)["traces-part"].state == "running"
    kfp_server.set_tasks(run, nodes(("for-loop-3", "SUCCEEDED"), *loop[1:]))
    part = seen(kfp, run)["traces-part"]
    assert (part.state, part.done, part.total) == ("done", 2, 2)
    kfp_server.set_tasks(run, nodes(*loop, ("traces-part", "FAILED")))
    assert seen(kfp, run)["traces-part"].state == "failed"
    kfp_server.set_tasks(run, nodes(("for-loop-3", "SUCCEEDED"), ("traces-part", "CACHED"), ("traces-part", "CACHED")))
    assert seen(kfp, run)["traces-part"].state == "cached"


def test_two_ways_to_publish_are_one_stage(kfp_server, kfp, run, nodes):
    kfp_server.set_tasks(run, nodes(("condition-4", "SKIPPED"), ("publish-2", "SUCCEEDED")))
    assert seen(kfp, run)["publish"].state == "done"
    kfp_server.set_tasks(run, nodes(("publish", "RUNNING")))
    assert seen(kfp, run)["publish"].state == "running"


def test_what_a_failed_run_did_not_reach_is_skipped(kfp_server, kfp, run, nodes):
    kfp_server.set_tasks(run, nodes(("preflight", "FAILED"), ("report", "SUCCEEDED")))
    kfp_server.set_state(run, "FAILED")
    shown = seen(kfp, run)
    assert (shown["preflight"].state, shown["report"].state) == ("failed", "done")
    assert {shown[name].state for name in STAGES[1:-1]} == {"skipped"}


def test_a_run_with_nothing_new_says_so(kfp_server, kfp, run, nodes):
    kfp_server.set_tasks(run, nodes(("preflight", "SUCCEEDED"), ("prepare", "CACHED"), ("condition-2", "SKIPPED")))
    kfp_server.set_state(run, "RUNNING")
    assert not seen(kfp, run)["prepare"].message
    kfp_server.set_state(run, "SUCCEEDED")
    assert {seen(kfp, run)[name].state for name in STAGES[2:-1]} == {"skipped"}
    assert seen(kfp, run)["prepare"].message == "nothing new, so the run ended here"


def test_run_whose_version_is_gone_shows_what_has_begun(kfp_server, kfp, run, nodes):
    kfp_server.versions.clear()
    kfp_server.set_tasks(run, nodes(("for-loop-3", "RUNNING"), ("prepare", "SUCCEEDED"), ("sft", "RUNNING")))
    assert {name: stage.state for name, stage in seen(kfp, run).items()} == {"prepare": "done", "sft": "running"}


def test_newest_runs_come_first(kfp_server, kfp, smoke, status):
    assert status()[1] == "no runs yet; start one with reasrm submit\n"
    ids = [submit(kfp, *smoke, run_name=f"run-{number}", **ARGUMENTS).run_id for number in range(3)]
    kfp_server.set_state(ids[0], "SUCCEEDED")
    code, out, _ = status("--limit", "2")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3
    assert lines[0].split()[:3] == ["run", "name", "state"]
    assert lines[1].split()[:3] == [ids[2][:8], "run-2", "pending"]
    assert lines[2].split()[:3] == [ids[1][:8], "run-1", "pending"]
    listed = json.loads(status("--json")[1])
    assert [(one["run_id"], one["state"]) for one in listed] == [
        (ids[2], "PENDING"), (ids[1], "PENDING"), (ids[0], "SUCCEEDED")
    ]  # fmt: skip
    assert listed[2]["finished"] and listed[0]["finished"] is None


def test_one_run_by_id_prefix_or_name(kfp_server, run, status, nodes):
    kfp_server.set_tasks(run, nodes(("preflight", "SUCCEEDED"), ("prepare", "RUNNING")))
    kfp_server.set_state(run, "RUNNING")
    for text in (run, run[:8], "one"):
        code, out, _ = status(text)
        assert code == 0
        assert out.splitlines()[0] == f"reasrm one  {run}  running  {kfp_server.url}/?ns=team#/runs/details/{run}"
        assert "✓ preflight      done" in out and "▸ prepare        running" in out and "  report" in out
    stages = json.loads(status("one", "--json")[1])["stages"]
    assert [stage["name"] for stage in stages] == STAGES
    assert stages[0]["state"] == "done" and stages[0]["until"] == "2026-11-02T08:02:40+00:00"


def test_run_that_is_not_there(kfp_server, kfp, run, smoke, status):
    assert "has no such thing" in status("00000000-0000-0000-0000-000000000000")[2]
    code, _, err = status("two")
    assert code == 2 and "none of the newest 200 runs is called two" in err
    submit(kfp, *smoke, run_name="one", **ARGUMENTS)
    assert "2 runs are called one" in status("one")[2]


def test_error_of_the_run_itself_is_shown_without_secrets(kfp_server, run, status):
    kfp_server.set_state(run, "FAILED", error="cannot compile [workflow]: Bearer abcdef0123456789")
    code, out, _ = status(run)
    assert code == 0
    assert "cannot compile [workflow]: Bearer ***" in out


def test_stop_and_retry(kfp_server, run, status):
    kfp_server.set_state(run, "RUNNING")
    code, out, _ = status(run, "--stop")
    assert code == 0 and out.startswith(f"stopping {run}") and kfp_server.runs[run].state == "CANCELING"
    code, out, _ = status(run, "--stop")  # KFP refuses it by now
    assert code == 0 and out.startswith(f"stopping {run}")
    kfp_server.set_state(run, "CANCELED")
    code, out, _ = status(run, "--stop")
    assert code == 0 and "was stopped before" in out
    kfp_server.set_state(run, "RUNNING")
    kfp_server.fail("terminate", 503, after=True)
    assert status(run, "--stop")[0] == 0
    kfp_server.set_state(run, "SUCCEEDED")
    assert status(run, "--stop")[0] == 2
    kfp_server.set_state(run, "CANCELED")
    assert status(run, "--retry")[0] == 2
    kfp_server.set_state(run, "FAILED")
    assert status(run, "--retry")[:2] == (0, f"retrying {run}\n")
    assert kfp_server.runs[run].state == "RUNNING"


@pytest.mark.parametrize("arguments", [["--watch"], ["--stop"], ["x", "--stop", "--retry"], ["x", "--json", "--watch"]])
def test_options_that_do_not_go_together(status, arguments):
    assert status(*arguments)[0] == 2


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 75)])
def test_watching_ends_with_the_runs_outcome(kfp_server, run, status, state, code):
    kfp_server.set_state(run, state)
    ended, _, err = status(run, "--watch")
    assert ended == code
    assert ("KFP does not tell why" in err) == (state == "FAILED")
    assert ("submit" in err) == (state != "SUCCEEDED")


def test_failure_names_stage_reason_and_what_to_do(kfp_server, run, status, nodes):
    failed = [
        {**node, "error": {"code": 13, "message": "InvalidInput: no GPU"}} if node["state"] == "FAILED" else node
        for node in nodes(("preflight", "SUCCEEDED"), ("prepare", "FAILED"))
    ]
    kfp_server.steps = [
        lambda run: kfp_server.set_tasks(run, failed),
        lambda run: kfp_server.set_state(run, "FAILED"),
    ]
    code, out, err = status(run, "--watch")
    assert code == 1
    assert "prepare: failed: InvalidInput: no GPU" in out
    assert f"error: the run {run} failed in prepare: InvalidInput: no GPU" in err
    assert f"look: {kfp_server.url}/?ns=team#/runs/details/{run}" in err
    assert f"reasrm status {run} --retry" in err


def test_ctrl_c_leaves_the_run_alone(kfp_server, run, status):
    kfp_server.steps = [lambda run: _thread.interrupt_main()]
    code, _, err = status(run, "--watch")
    assert code == 130
    assert f"the run goes on; see it again: reasrm status {run} --watch; stop it: reasrm status {run} --stop" in err
    assert kfp_server.runs[run].state == "PENDING"
    assert not kfp_server.asked("terminate")


def test_token_that_expires_ends_the_watching_and_not_the_run(kfp_server, run, reasrm, monkeypatch):
    monkeypatch.setenv("REASRM_KFP_TOKEN", "old")
    words = ("status", run, "--watch", "--host", kfp_server.url, "--namespace", "team")
    kfp_server.token = "new"
    code, _, err = reasrm(*words)
    assert code == 2 and "is it expired?" in err
    kfp_server.token = ""
    kfp_server.steps = [lambda run: None, lambda run: setattr(kfp_server, "token", "new")]
    code, _, err = reasrm(*words)
    assert code == Transient.exit_code
    assert "is it expired?" in err and f"see it again: reasrm status {run} --watch" in err


def test_service_that_is_not_kfp_has_no_runs_but_is_told_apart(kfp_server, status):
    kfp_server.other = {"hello": "other service"}
    code, out, err = status()
    assert (code, out) == (2, "") and "not as KFP does" in err


def test_ended_run_without_tasks_is_told_as_that(kfp_server, run, status):
    kfp_server.set_state(run, "SUCCEEDED")
    code, out, _ = status(run)
    assert code == 0
    assert out.count("KFP does not tell what became of it") == len(STAGES) and "skipped" not in out


def test_terminal_with_few_rows_is_not_filled_with_copies(kfp, run):
    file = io.StringIO()
    screen = LiveScreen(Console(file=file, force_terminal=True, width=60, height=8, highlight=False))
    view = Watcher(kfp, run).look()
    for _ in range(3):
        screen.update(view)
    before = file.getvalue()
    screen.end()
    assert "report" not in before and "report" in file.getvalue()  # the last picture is whole


def test_watching_outlasts_a_server_that_restarts(kfp_server, run, status, nodes):
    kfp_server.set_tasks(run, nodes(("prepare", "RUNNING")))
    kfp_server.steps = [
        lambda run: None,
        lambda run: kfp_server.fail("GET", 503, times=7),
        lambda run: kfp_server.set_state(run, "SUCCEEDED"),
    ]
    code, out, _ = status(run, "--watch")
    assert code == 0
    assert "is not ready (503" in out


def test_watching_a_server_that_stays_away_ends(kfp_server, run, status, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.02)
    kfp_server.steps = [lambda run: None, lambda run: kfp_server.fail("GET", 503, times=10_000)]
    code, _, err = status(run, "--watch")
    assert code == Transient.exit_code
    assert f"The run is not touched by that; see it again: reasrm status {run} --watch" in err


def test_terminal_shows_a_table_that_is_painted_over(kfp_server, kfp, run, nodes):
    kfp_server.set_tasks(run, nodes(("preflight", "SUCCEEDED"), ("for-loop-3", "RUNNING"), ("traces-part", "RUNNING")))
    kfp_server.steps = [
        lambda run: None,
        lambda run: kfp_server.set_tasks(run, nodes(("preflight", "SUCCEEDED"), ("prepare", "CACHED"))),
        lambda run: kfp_server.set_state(run, "SUCCEEDED"),
    ]
    file = io.StringIO()
    Watcher(kfp, run).follow(LiveScreen(Console(file=file, force_terminal=True, width=80, highlight=False)))
    text = file.getvalue()
    assert "\x1b[" in text and "traces-part" in text
    assert text.count("taken from KFP's cache") >= 1
    assert "2:30" in text  # what preflight took


def test_pods_say_why_a_stage_does_not_go_on(kfp_server, kfp, run, nodes):
    kfp_server.set_tasks(run, nodes(("preflight", "SUCCEEDED"), ("for-loop-3", "RUNNING"), ("traces-part", "RUNNING")))
    notes = {"traces-part": "ImagePullBackOff: no such image", "preflight": "exit code 1"}
    shown = {stage.name: stage for stage in Watcher(kfp, run, lambda run_id: notes).look().stages}
    assert shown["traces-part"].message == "ImagePullBackOff: no such image"
    assert shown["preflight"].message == ""  # an earlier attempt's


def pod(**status):
    return {"metadata": {"name": "p", "labels": {}}, "status": status}


def container(name="main", **state):
    return {"name": name, "state": state}


@pytest.mark.parametrize(
    ("one", "note"),
    [
        (pod(phase="Running", containerStatuses=[container(running={})]), ""),
        (pod(phase="Pending", containerStatuses=[container(waiting={"reason": "ContainerCreating"})]), ""),
        (
            pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]),
            "no node for it: 0/3 nodes",
        ),
        (
            pod(phase="Pending", containerStatuses=[container(waiting={"reason": "ErrImagePull", "message": "a\n b"})]),
            "ErrImagePull: a b",
        ),
        (
            pod(
                phase="Failed",
                containerStatuses=[
                    container("wait", terminated={"exitCode": 1, "reason": "Error"}),
                    container(
                        terminated={"exitCode": 2, "reason": "Error", "message": "InvalidInput: Bearer abcdefgh1"}
                    ),
                ],
            ),
            "exit code 2: InvalidInput: Bearer ***",
        ),
        (
            pod(phase="Failed", containerStatuses=[container(terminated={"exitCode": 137, "reason": "OOMKilled"})]),
            "killed: it used more memory than its limit",
        ),
        (pod(phase="Failed", reason="Evicted", message="disk"), "Evicted: disk"),
    ],
)
def test_what_a_pod_says(one, note):
    assert pod_note(one) == note


def test_pods_are_read_from_the_cluster(kfp_server, tmp_path):
    def labelled(stage, minute, **status):
        labels = {"app.kubernetes.io/component": stage}
        return pod(**status) | {"metadata": {"labels": labels, "creationTimestamp": f"2026-11-02T08:0{minute}:00Z"}}

    ended = {"phase": "Failed", "containerStatuses": [container(terminated={"exitCode": 1, "reason": "Error"})]}
    pods = [
        labelled("sft", 2, phase="Running"),  # the second attempt
        labelled("sft", 1, **ended),
        labelled("traces_part", 1, **ended),
    ]
    asked = []

    class Cluster(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(unquote(self.path))
            body = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": pods}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Cluster) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "other"}}
        config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
        (tmp_path / "config").write_text(json.dumps(config | {"current-context": "x"}))
        cluster = connect(namespace="team", kubeconfig=str(tmp_path / "config"))
        assert PodNotes("team", cluster)("r1") == {"traces-part": "exit code 1"}
        server.shutdown()
    assert asked[0].startswith("/api/v1/namespaces/team/pods?") and "pipeline/runid=r1" in asked[0]


def test_cluster_that_hangs_is_not_waited_for(kfp_server, caplog):
    release, asked = threading.Event(), []

    class Hanging:
        def list(self, kind, labels):
            asked.append(labels)
            release.wait(180)
            return SimpleNamespace(items=[])

    notes = PodNotes("team", Hanging(), seconds=0.05)
    began = time.monotonic()
    assert [notes("r1") for _ in range(20)] == [{}] * 20
    assert time.monotonic() - began < 60  # the cluster hangs for 180
    assert len(asked) == 1
    release.set()
    assert caplog.records == []


def test_cluster_that_goes_away_after_it_answered_is_asked_again(kfp_server):
    failing = {"metadata": {"labels": {"app.kubernetes.io/component": "sft"}}, "status": {"phase": "Failed"}}
    answers = [[failing], Transient("away"), []]

    class Cluster:
        def list(self, kind, labels):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(items=answer)

    notes = PodNotes("team", Cluster())
    assert [notes("r1") for _ in range(3)] == [{"sft": "failed"}, {"sft": "failed"}, {}]


def test_without_a_cluster_nothing_is_said(kfp_server):
    notes = PodNotes("team")
    assert notes("some-run") == {} and notes("some-run") == {}


def test_help_teaches_with_examples(reasrm):
    code, out, _ = reasrm("status", "--help")
    assert code == 0
    assert "reasrm status 5f0c2d1e --retry" in out
