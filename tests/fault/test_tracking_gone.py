"""MLflow away while stages run on disks that go with their pods: the end of the run tells all of it, once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components.adapters import origin, pipeline_run, stage_run, untold
from components.adapters.model_versions import VersionInfo
from components.adapters.spool import Spool, State, read_state
from components.adapters.stage import run_stage, tracked
from components.adapters.tracking import list_runs, load, replay
from components.adapters.untold import Shelf, place_of
from components.core.errors import Transient
from components.report.run import close
from pipeline.retention import Policy, make_plan

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"
SETTINGS = {"base_model": "base", "preference_data": "[]", "seed": 7}


@dataclass
class Cluster:
    """Pods of one run: each has a disk of its own, which goes with it."""

    s3: Any
    client: Any
    folder: Path
    run_id: str
    experiment: str
    monkeypatch: pytest.MonkeyPatch
    mlflow_uri: str
    num_pods: int = 0

    @property
    def root(self) -> str:
        return f"{self.s3.prefix}/artifacts"

    def mlflow(self, is_up: bool) -> None:
        self.monkeypatch.setenv("MLFLOW_TRACKING_URI", self.mlflow_uri if is_up else NOBODY)

    def pod(self) -> Path:
        self.num_pods += 1
        disk = self.folder / f"pod-{self.num_pods}"
        self.monkeypatch.setenv("REASRM_WORKDIR", str(disk))
        return disk

    def train(self, steps, stage="sft", end=None, storage=None, figure=None):
        """An attempt at a stage: curves, a setting, a figure; then the pod goes."""
        disk = self.pod()
        workdir = disk / f"{stage}-{'0' * 20}"
        shelf = Shelf.of(storage or self.s3.storage, self.root, self.run_id, workdir)
        try:
            with tracked(self.run_id, "monday", stage, self.experiment, workdir, shelf) as tracking:
                tracking.log_params({"lr": 1e-6})
                for step in steps:
                    tracking.log_metrics({"loss": 1.0 / (step + 1)}, step)
                if figure is not None:
                    figure.write_text("<svg/>")
                    tracking.log_artifact(figure)
                if end is not None:
                    raise end
        finally:
            shutil.rmtree(disk)

    def close(self, state="SUCCEEDED"):
        disk = self.pod()
        close(self.run_id, self.experiment, state, None, SETTINGS, self.root)
        shutil.rmtree(disk, ignore_errors=True)

    def kept(self, run_id=None):
        place = place_of(self.root, self.run_id if run_id is None else run_id)
        return [one.uri.removeprefix(f"{place}/") for one in self.s3.storage.list(f"{place}/")]

    def runs(self):
        known = self.client.get_experiment_by_name(self.experiment)
        found = self.client.search_runs([known.experiment_id]) if known else []
        assert len({run.info.run_name for run in found}) == len(found), "a run is there twice"
        return {run.info.run_name: run for run in found}

    def losses(self, stage="sft"):
        points = self.client.get_metric_history(self.runs()[stage].info.run_id, "loss")
        return sorted((point.step, point.value) for point in points)


@pytest.fixture
def cluster(s3, served, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("REASRM_RUN_ID", raising=False)
    monkeypatch.setattr(stage_run, "UNREACHABLE_SECONDS", 0.1)  # nobody is at the address that stands for "away"
    unique = uuid.uuid4().hex[:8]
    client = load().MlflowClient(served.mlflow_uri)
    return Cluster(s3, client, tmp_path, f"run-{unique}", f"gone-{unique}", monkeypatch, served.mlflow_uri)


def curve(num_steps):
    return [(step, 1.0 / (step + 1)) for step in range(num_steps)]


def rows(path):
    made = ({"id": f"{n}", "prompt": f"{n}?", "response_a": f"{n}!", "response_b": "no", "label": "AB"[n % 2]}
            for n in range(40))  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return {"sources": [str(path)], "distil_share": 0.3, "heldout_share": 0.2, "processes": 1}


def test_what_pods_took_with_them_is_told_once_at_the_end_of_the_run(cluster, tmp_path):
    cluster.mlflow(False)
    disk = cluster.pod()
    config = rows(tmp_path / "day.jsonl")
    made = run_stage(
        "prepare", config, {}, artifact_root=cluster.root, experiment=cluster.experiment, run_id=cluster.run_id
    ).manifest
    shutil.rmtree(disk)
    cluster.train(range(40), figure=tmp_path / "loss.svg")
    assert len(cluster.kept()) == 2
    assert cluster.runs() == {}
    cluster.mlflow(True)
    for _ in range(2):  # a retry of the exit handler
        cluster.close()
        assert cluster.kept() == []
        assert cluster.losses() == curve(40)
    runs = cluster.runs()
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(
        (cluster.run_id, "prepare", "sft"), "FINISHED"
    )
    assert runs["sft"].data.params == {"lr": "1e-06"}
    assert [one.path for one in cluster.client.list_artifacts(runs["sft"].info.run_id)] == ["loss.svg"]
    assert runs["prepare"].data.tags["reasrm.output_digest"] == made.digest
    assert runs["prepare"].data.params["prepare.distil_share"] == "0.3"
    statistic = next(name for name in runs["prepare"].data.metrics if name.startswith("stat."))
    assert len(cluster.client.get_metric_history(runs["prepare"].info.run_id, statistic)) == 1
    assert [one.dataset.name for one in runs["prepare"].inputs.dataset_inputs] == ["day.jsonl"]
    assert "| prepare |" in runs[cluster.run_id].data.tags["mlflow.note.content"]
    # It ran when it ran, not when it was told.
    assert runs["sft"].info.end_time <= runs[cluster.run_id].info.end_time


@pytest.mark.parametrize("first_end", [Transient("stopped"), ValueError("failed")], ids=["stopped", "failed"])
def test_next_attempt_in_another_pod_takes_up_what_was_not_told(cluster, first_end, tmp_path):
    cluster.mlflow(False)
    with pytest.raises(type(first_end)):
        cluster.train(range(20), end=first_end)
    [before] = cluster.kept()
    untold.fetch(cluster.s3.storage, f"{place_of(cluster.root, cluster.run_id)}/{before}", tmp_path / "looked at")
    # In another pod another process may have the number of the one that could not deliver.
    assert read_state(tmp_path / "looked at") == State()
    with pytest.raises(Transient):
        cluster.train(range(15, 30), end=Transient("stopped"))
    assert cluster.kept() == [before]  # one object, however many attempts
    cluster.mlflow(True)
    cluster.train(range(25, 40))
    cluster.close()  # tells nothing, unless this machine is so slow that something was left
    assert cluster.kept() == []
    assert cluster.losses() == curve(40)
    assert cluster.runs()["sft"].info.status == "FINISHED"


def test_attempt_that_is_told_after_a_later_one_changes_nothing_of_that(cluster, s3):
    cluster.mlflow(False)
    with pytest.raises(ValueError, match="failed"):
        cluster.train(range(20), end=ValueError("failed"))
    [first] = s3.storage.list(f"{place_of(cluster.root, cluster.run_id)}/")
    hidden = s3.storage.read_bytes(first.uri)
    s3.storage.delete([first.uri])  # the second attempt cannot take it up
    cluster.mlflow(True)
    cluster.train(range(15, 30))
    ended = cluster.runs()["sft"].info
    s3.storage.write_bytes(first.uri, hidden)
    cluster.close()
    assert cluster.kept() == []
    assert cluster.losses() == curve(30)
    assert (ended.status, ended.end_time) == ("FINISHED", cluster.runs()["sft"].info.end_time)
    assert cluster.runs()["sft"].info.status == "FINISHED"
    s3.storage.write_bytes(first.uri, hidden)  # as if it could not be deleted
    cluster.close()
    assert cluster.losses() == curve(30)


def test_s3_that_is_away_too_costs_a_warning_and_no_stage(cluster, monkeypatch, caplog):
    cluster.mlflow(False)
    monkeypatch.setattr(untold, "KEEP_SECONDS", 1.0)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL_S3", NOBODY)
        cluster.train(range(3), storage=type(cluster.s3.storage).from_env())
        cluster.close()  # nothing is raised here either
    assert "is not kept in S3, and lost if this disk is" in caplog.text
    assert cluster.kept() == []


def test_run_is_closed_while_s3_is_away_and_asked_once(cluster, monkeypatch, capfd):
    cluster.train(range(3))
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL_S3", NOBODY)
        cluster.close("FAILED")
    runs = cluster.runs()
    assert runs["monday"].info.status == "FAILED"
    assert runs["monday"].data.params["seed"] == "7"
    assert capfd.readouterr().err.count("S3 at") == 1


def test_s3_that_hangs_is_not_waited_for(cluster, monkeypatch, caplog):
    class Hangs:
        def list(self, uri):
            time.sleep(60)

        write_bytes = list

    cluster.mlflow(False)
    monkeypatch.setattr(untold, "KEEP_SECONDS", 0.2)
    start = time.monotonic()
    cluster.train(range(3), storage=Hangs())
    assert time.monotonic() - start < 45
    assert "S3 took more than 0 s" in caplog.text


def test_run_that_ended_without_mlflow_is_closed_by_the_next_one(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv(origin.RECIPE, "monday's")
    cluster.mlflow(False)
    cluster.train(range(10))
    cluster.close("FAILED")
    first = cluster.run_id
    assert sorted(name.rpartition("/")[2][-5:] for name in cluster.kept()) == [".json", "ar.gz"]
    monkeypatch.setenv(origin.RECIPE, "tuesday's")
    cluster.mlflow(True)
    cluster.run_id = f"{first}-next"
    cluster.train(range(5), stage="filter")
    cluster.close()
    assert cluster.kept(first) == cluster.kept() == []
    known = cluster.client.get_experiment_by_name(cluster.experiment)
    found = cluster.client.search_runs([known.experiment_id])
    told = {(run.data.tags["reasrm.run_id"], run.info.run_name): run for run in found}
    assert {name: run.info.status for name, run in told.items()} == {
        (first, "monday"): "FAILED",
        (first, "sft"): "FINISHED",
        (cluster.run_id, "monday"): "FINISHED",
        (cluster.run_id, "filter"): "FINISHED",
    }
    assert told[first, "monday"].data.tags["reasrm.recipe"] == "monday's"
    assert told[first, "monday"].data.params["seed"] == "7"
    assert told[first, "monday"].info.end_time < told[cluster.run_id, "monday"].info.end_time
    points = cluster.client.get_metric_history(told[first, "sft"].info.run_id, "loss")
    assert sorted((point.step, point.value) for point in points) == curve(10)
    assert os.environ[origin.RECIPE] == "tuesday's"


def test_run_of_which_mlflow_heard_nothing_at_all_is_shown(cluster):
    cluster.close("FAILED")  # preflight failed before it could say that the run began
    assert cluster.runs()[cluster.run_id].info.status == "FAILED"
    assert cluster.kept() == []


def until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


@pytest.mark.parametrize("first", ["folder", "copy"])
def test_copy_of_what_was_half_told_tells_nothing_twice(cluster, first):
    workdir = cluster.pod() / f"sft-{'0' * 20}"
    shelf = Shelf.of(cluster.s3.storage, cluster.root, cluster.run_id, workdir)
    spool = Spool.open(workdir / "tracking")
    names = {"run_id": cluster.run_id, "run_name": "monday", "stage": "sft", "experiment": cluster.experiment}
    spool.append("open", names | {"attach": "", "tags": {}})

    def log(step):
        spool.append("metrics", {"metrics": {"loss": 1.0 / (step + 1)}, "step": step})
        dataset = {"name": "d", "uri": f"s3://b/{step}", "digest": f"{step}" * 8, "profile": {}}
        spool.append("input", {"dataset": dataset, "context": "sft"})  # so that each step is a request of its own

    log(0)
    assert replay(workdir) == 0
    for step in range(1, 5):
        log(step)
    shelf.settle(spool.directory, told=False)
    [uri] = [one.uri for one in cluster.s3.storage.list(f"{shelf.uri}/")]
    copy = cluster.s3.storage.read_bytes(uri)
    if first == "folder":
        assert replay(workdir) == 0
    cluster.close()
    cluster.s3.storage.write_bytes(uri, copy)  # as if it could not be deleted
    cluster.close()
    assert replay(workdir) == 0
    assert cluster.losses() == curve(5)


LONG = """
import sys
from components.adapters import delivery
delivery.KEEP_EVERY_SECONDS = 0.1
sys.exit(delivery.main())
"""


def test_long_stage_that_goes_with_its_machine_has_kept_what_it_could_not_tell(cluster):
    cluster.mlflow(False)
    workdir = cluster.pod() / f"sft-{'0' * 20}"
    shelf = Shelf.of(cluster.s3.storage, cluster.root, cluster.run_id, workdir)
    spool = Spool.open(workdir / "tracking")
    names = {"run_id": cluster.run_id, "run_name": "monday", "stage": "sft", "experiment": cluster.experiment}
    spool.append("open", names | {"attach": "", "tags": {}})
    for step in range(5):
        spool.append("metrics", {"metrics": {"loss": 1.0 / (step + 1)}, "step": step})
    command = [sys.executable, "-c", LONG, str(spool.directory), "10", shelf.uri]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as delivering:
        until(cluster.kept)
        delivering.kill()
    shutil.rmtree(workdir)
    cluster.mlflow(True)
    cluster.close("FAILED")
    assert cluster.losses() == curve(5)
    assert cluster.runs()["sft"].info.status == "KILLED"  # it said of no end
    assert cluster.kept() == []


OUT_OF_MEMORY = """
import os, signal, sys
from pathlib import Path
from components.adapters import tracking
run = tracking.open_stage_run(
    run_id=sys.argv[1], run_name="monday", stage="sft", experiment=sys.argv[2], workdir=Path(sys.argv[3]), tags={},
    keep_at=sys.argv[4],
)
for step in range(5):
    run.log_metrics({"loss": 1.0 / (step + 1)}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_stage_s_delivery_keeps_what_it_could_not_tell(cluster):
    cluster.mlflow(False)
    workdir = cluster.pod() / f"sft-{'0' * 20}"
    shelf = Shelf.of(cluster.s3.storage, cluster.root, cluster.run_id, workdir)
    command = [sys.executable, "-c", OUT_OF_MEMORY, cluster.run_id, cluster.experiment, str(workdir), shelf.uri]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    until(cluster.kept)
    shutil.rmtree(workdir)
    cluster.mlflow(True)
    cluster.close("FAILED")
    assert cluster.losses() == curve(5)


KILLED = """
import os, signal, sys
from pathlib import Path
from components.adapters import tracking
from components.adapters.spool import read_state
run = tracking.open_stage_run(
    run_id=sys.argv[1], run_name="monday", stage="sft", experiment=sys.argv[2], workdir=Path(sys.argv[3]), tags={}
)
while not read_state(Path(sys.argv[3]) / "tracking").acked:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_stage(cluster, folder):
    """Let an attempt open its run in MLflow and die."""
    command = [sys.executable, "-c", KILLED, cluster.run_id, cluster.experiment, str(folder)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert cluster.runs()["sft"].info.status == "RUNNING"


def test_stage_that_was_killed_does_not_run_for_ever(cluster, tmp_path):
    kill_stage(cluster, tmp_path / "killed")
    cluster.close("FAILED")
    assert cluster.runs()["sft"].info.status == "KILLED"
    assert not next(run for run in list_runs() if run.run_id == cluster.run_id).running


def test_work_that_was_done_is_shown_as_done_though_a_later_attempt_died(cluster, tmp_path):
    cluster.mlflow(False)
    cluster.train(range(3))
    cluster.mlflow(True)
    kill_stage(cluster, tmp_path / "killed")
    pipeline_run.finish_parent(cluster.run_id, cluster.experiment, "FAILED", {})
    assert cluster.runs()["sft"].info.status == "KILLED"
    cluster.close()
    assert cluster.runs()["sft"].info.status == "FINISHED"
    assert cluster.losses() == curve(3)


def test_on_one_machine_the_working_folder_is_told_and_the_copy_goes(cluster, tmp_path):
    cluster.mlflow(False)
    disk = cluster.pod()
    workdir = disk / f"sft-{'0' * 20}"
    shelf = Shelf.of(cluster.s3.storage, cluster.root, cluster.run_id, workdir)
    with tracked(cluster.run_id, "monday", "sft", cluster.experiment, workdir, shelf) as tracking:
        for step in range(5):
            tracking.log_metrics({"loss": 1.0 / (step + 1)}, step)
    assert len(cluster.kept()) == 1
    cluster.mlflow(True)
    close(cluster.run_id, cluster.experiment, "SUCCEEDED", None, SETTINGS, cluster.root)
    assert cluster.kept() == []
    assert cluster.losses() == curve(5)


def test_file_that_is_too_large_is_left_out_and_the_rest_kept(cluster, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(untold, "MAX_BYTES", 5000)
    (tmp_path / "huge.svg").write_text("x" * 10_000)
    cluster.mlflow(False)
    workdir = cluster.pod() / f"sft-{'0' * 20}"
    shelf = Shelf.of(cluster.s3.storage, cluster.root, cluster.run_id, workdir)
    with tracked(cluster.run_id, "monday", "sft", cluster.experiment, workdir, shelf) as tracking:
        tracking.log_artifact(tmp_path / "huge.svg")
        tracking.log_metrics({"loss": 1.0}, 0)
        (tmp_path / "small.svg").write_text("<svg/>")
        tracking.log_artifact(tmp_path / "small.svg")
    shutil.rmtree(workdir.parent)
    assert "huge.svg is too large to be kept" in caplog.text
    cluster.mlflow(True)
    cluster.close()
    run_id = cluster.runs()["sft"].info.run_id
    assert [one.path for one in cluster.client.list_artifacts(run_id)] == ["small.svg"]
    assert cluster.losses() == curve(1)


def test_object_that_is_no_spool_is_reported_and_stops_nothing(cluster, capfd):
    cluster.mlflow(False)
    cluster.train(range(3))
    broken = f"{place_of(cluster.root, cluster.run_id)}/grpo-{'0' * 20}/1.tar.gz"
    cluster.s3.storage.write_bytes(broken, b"nothing")
    cluster.mlflow(True)
    cluster.close()
    assert f"{broken} is no spool of this pipeline" in capfd.readouterr().err
    assert cluster.losses() == curve(3)


def test_retention_spares_what_is_young_and_takes_what_is_old(cluster, tmp_path):
    cluster.mlflow(False)
    run_stage(
        "prepare",
        rows(tmp_path / "day.jsonl"),
        {},
        artifact_root=cluster.root,
        experiment=cluster.experiment,
        run_id=cluster.run_id,
    )
    cluster.mlflow(True)
    version = VersionInfo("judge", "1", f"{cluster.root}/prepare/gone", "", "", "", {}, ())

    def place(days):
        plan = make_plan(cluster.root, cluster.s3.storage, [version], [], Policy(1, 30), now + timedelta(days=days))
        return [item.uri for item in plan.items if item.kind == "not told to MLflow"]

    now = datetime.now(UTC)
    assert place(20) == []
    assert place(40) == [place_of(cluster.root, cluster.run_id)]
