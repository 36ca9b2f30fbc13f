"""`reasrm retention` against a real S3 server and a real registry."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from components.adapters.model_versions import list_versions, register_version
from components.adapters.pipeline_run import finish_parent
from components.adapters.stage import run_stage
from components.adapters.tracking import list_runs, load, replay
from components.core.errors import InvalidInput, Transient
from pipeline.cli import cli


def test_a_registered_model_s_artifacts_stay_and_others_go(
    s3: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    root, made, server = f"{s3.prefix}/artifacts", [], os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for number in range(3):
        if number == 2:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        rows = [
            {
                "id": f"{n}",
                "prompt": f"{number} and {n}?",
                "response_a": f"{n}!",
                "response_b": "no",
                "label": "AB"[n % 2],
            }
            for n in range(40)
        ]
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {"sources": [str(path)], "distil_share": 0.3, "heldout_share": 0.2, "processes": 1}
        arguments = {"artifact_root": root, "experiment": root, "run_id": f"{s3.prefix[-6:]}-{number}"}
        made.append(run_stage("prepare", config, {}, **arguments).manifest)
        s3.storage.write_bytes(f"{made[-1].uri}/partial/shard-0", b"x" * 1000)
    replay(tmp_path / "work" / made[2].uri.removeprefix(f"{root}/").replace("/", "-"))
    assert list_runs()[0].running
    client = load().MlflowClient()
    killed = {"reasrm.run_id": f"{s3.prefix[-6:]}-2", "reasrm.role": "stage", "reasrm.stage": "traces"}
    client.create_run(client.get_experiment_by_name(root).experiment_id, tags=killed)  # it never ends
    assert finish_parent(f"{s3.prefix[-6:]}-2", root, "FINISHED", {})
    tags = {"reasrm.run_key": "k", "reasrm.pairs_uri": made[0].uri}
    register_version(f"judge-{s3.prefix[-6:]}", "s3://elsewhere/model", None, None, tags, "")
    assert made[0].uri in {uri for one in list_versions() for uri in one.tags.values()}
    told = next(run for run in list_runs() if run.run_id.endswith(f"{s3.prefix[-6:]}-2"))
    assert (
        told.uris == tuple(sorted((made[2].uri, str(tmp_path / "2.jsonl"))))
        and told.works == (("prepare", made[2].run_key),)
        and not told.running
    )

    options = ["--root", root, "--keep-runs", "1", "--keep-days", "0"]
    shown = CliRunner().invoke(cli, ["retention", "plan", *options], catch_exceptions=False)
    assert shown.exit_code == 0
    assert f"retention apply --keep-runs 1 --keep-days 0 --root {root}" in shown.output
    assert "nothing was deleted" in shown.output and f"{made[1].uri}\n" in shown.output
    assert made[2].uri not in shown.output  # of the newest run
    assert s3.storage.open(made[1].uri) is not None
    assert "freed" not in CliRunner().invoke(cli, ["retention", "apply", *options], input="n\n").output
    assert s3.storage.open(made[1].uri) is not None
    done = CliRunner().invoke(cli, ["retention", "apply", "--yes", *options], catch_exceptions=False)
    assert done.exit_code == 0 and "freed" in done.output
    assert [s3.storage.open(one.uri) is not None for one in made] == [True, False, True]
    assert s3.storage.verify(made[0]) == [] == s3.storage.verify(made[2])
    assert s3.storage.list(f"{made[1].uri}/") == []
    assert s3.storage.list(f"{made[0].uri}/partial/") == []
    assert s3.storage.exists(f"{made[2].uri}/partial/shard-0")


def test_without_a_registry_nothing_is_deleted(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3.prefix}/artifacts/prepare/{'0' * 20}/partial/shard-0"
    s3.storage.write_bytes(uri, b"x")
    options = ["--root", f"{s3.prefix}/artifacts", "--keep-days", "0", "--yes"]
    unknown = CliRunner().invoke(cli, ["retention", "apply", *options])
    assert isinstance(unknown.exception, InvalidInput) and "knows no run and no version" in str(unknown.exception)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    away = CliRunner().invoke(cli, ["retention", "apply", *options])
    assert isinstance(away.exception, Transient)
    with HTTPServer(("127.0.0.1", 0), NotMlflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        for ask in (list_versions, list_runs):
            with pytest.raises(InvalidInput, match="set it to the MLflow server's address"):
                ask()
        server.shutdown()
    assert s3.storage.exists(uri)


class NotMlflow(BaseHTTPRequestHandler):
    """Answers as MLflow does for what it does not have."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}')

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
