"""A run with nothing to learn, through the real DAG: it ends well after its first stage."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.adapters.model_versions import get_version
from components.adapters.stage import run_stage
from pipeline.config import load_recipe
from pipeline.local import run_local, serving
from pipeline.screen import summary

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_with_nothing_new_succeeds_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in os.environ:
        if name.startswith(("AWS_", "MLFLOW_", "REASRM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    recipe = load_recipe("smoke")
    with monkeypatch.context() as patch, serving(tmp_path) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        settings: dict[str, Any] = recipe.prepare.model_dump(mode="json")
        first = run_stage("prepare", settings, {}, artifact_root=recipe.artifact_root, experiment="e", run_id="first")
        assert get_version("reasrm-smoke", "") is None
    again = load_recipe("smoke", [f"prepare.since={first.manifest.uri}", "sft.warm_start=reasrm-smoke@champion"])
    run = run_local(again, tmp_path, recipe="smoke")
    assert run.nothing_new.startswith("nothing new: 0 new pairs")
    assert set(run.statuses) == {"preflight", "prepare"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*summary(run))
    assert "nothing was trained" in console.export_text()
    with monkeypatch.context() as patch, serving(tmp_path) as environment:
        import mlflow

        client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("reasrm-smoke")
        query = f"tags.`reasrm.run_id` = '{run.run_id}' AND tags.`reasrm.role` = 'pipeline'"
        (parent,) = client.search_runs([experiment.experiment_id], query)
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["reasrm.nothing_new"] == "true"
        assert parent.data.tags["reasrm.outcome"] == run.nothing_new
