"""What torchrun leaves in a pod's termination log, and what the task's own pod needs to start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.adapters.torchrun import decode

ROOT = str(Path(__file__).parents[3])
WORKER = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def test_torchrun_tells_kubernetes_who_failed(tmp_path):
    """A process that is killed has no word of its own."""
    worker, log = tmp_path / "worker.py", tmp_path / "termination-log"
    worker.write_text(WORKER)
    log.touch()
    environment = os.environ | {
        "PYTHONPATH": ROOT, "REASRM_TERMINATION_LOG": str(log), "OMP_NUM_THREADS": "1",
        "PET_NNODES": "1", "PET_NPROC_PER_NODE": "2", "PET_NODE_RANK": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "components.adapters.torchrun", "--rdzv-conf=timeout=60", str(worker)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 137, done.stderr[-2000:]
    failure = decode(log.read_text())
    assert failure is not None
    assert (failure.rank, failure.exit_code, failure.message) == (1, -9, "")


LIGHT = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm"}:
            raise ImportError(f"{name} is not in this image")

sys.meta_path.insert(0, Blocked())
from components.adapters import launch
from components.adapters.stage import run_stage
from components.core.errors import ReasrmError
from components.core.manifest import Manifest

class Elsewhere:
    def launch(self, job):
        print(json.dumps([job.stage, job.nodes, job.processes, len(job.key)]))

examples = Manifest(kind="examples", stage="filter", uri="s3://b/x", run_key="k", code_version="1", config={}, files=())
config = {"base_model": sys.argv[1], "nodes": int(sys.argv[2])}
try:
    where = {"artifact_root": sys.argv[3], "experiment": "e", "run_id": "r"}
    run_stage("sft", config, {"examples": examples}, launcher=Elsewhere(), **where)
except ReasrmError as error:
    assert "there is no manifest" in str(error), error
"""


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_task_needs_no_torch_of_its_own(s3, tmp_path, nodes):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    command = [sys.executable, "-c", LIGHT, str(model), str(nodes), s3.prefix]
    environment = os.environ | {"PYTHONPATH": ROOT, "REASRM_WORKDIR": str(tmp_path / "work")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == ["sft", nodes, "auto", 64]
