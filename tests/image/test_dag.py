"""The real DAG in containers, by kfp's own DockerRunner: what a cluster does, without the cluster.

kfp.local calls a task done whose container ended before it could ask how; so what counts is what the tasks left behind.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.adapters.storage import Storage
from components.core.manifest import Manifest
from pipeline.config import load_recipe
from pipeline.upload import upload

ROOT = Path(__file__).parents[2]
OUTPUTS = {
    "prepare": "pairs", "traces": "traces", "filter": "examples", "sft": "model", "grpo": "model",
    "benchmark": "scores", "publish": "release",
}  # fmt: skip
USER = "54321:0"


@pytest.fixture
def settings(s3, served, stage_image, train_image, tmp_path):
    """The smoke recipe with its data and its model on S3, for the process that runs the DAG."""
    storage = Storage.from_env()
    pairs = upload(ROOT / "samples/pairs.jsonl.gz", f"{s3.prefix}/pairs.jsonl.gz", storage, str)
    texts = [
        f'preference_data=["{pairs}"]',
        f"teacher.uri={upload(ROOT / 'samples/traces.jsonl.gz', f'{s3.prefix}/traces.jsonl.gz', storage, str)}",
        f"base_model={upload(Path('tiny-random'), f'{s3.prefix}/model', storage, str)}",
        f"artifact_root={s3.prefix}/artifacts",
        "experiment=in-containers",
        "model_name=in-containers",
    ]
    found = {
        "parameters": load_recipe("smoke", texts).arguments(),
        "images": {"stage": stage_image.tag, "train": train_image.tag},
        "environment": served.environment() | {"REASRM_RUN_ID": "in-containers", "OMP_NUM_THREADS": "2"},
        "user": USER,
    }
    (tmp_path / "settings.json").write_text(json.dumps(found), "utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks").chmod(0o777)
    tmp_path.chmod(0o755)
    return found


def test_the_smoke_recipe_from_pairs_to_a_registered_model(settings, s3, tmp_path):
    import mlflow

    command = [sys.executable, str(Path(__file__).with_name("run_dag.py")), str(tmp_path)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=variables
    )
    assert done.returncode == 0, done.stdout[-6000:]

    for stage, output in OUTPUTS.items():
        (path,) = (path for path in (tmp_path / "tasks").glob(f"**/{stage}*/{output}") if path.is_file())
        assert path.stat().st_uid == int(USER.partition(":")[0]), stage
        manifest = Manifest.from_bytes(path.read_bytes())
        assert manifest == s3.storage.open(manifest.uri), done.stdout[-6000:]
        assert s3.storage.verify(manifest) == [], stage
    version = mlflow.MlflowClient().get_model_version_by_alias("in-containers", "champion")
    assert version.source.startswith(s3.prefix)
