"""Two weeks and a quiet third, through the real DAG: what the recipe `weekly` says, at the smallest sizes."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.adapters.storage import Storage
from components.core.records import read_models
from components.core.schema import PreferencePair
from components.publish.gate import MARGIN
from pipeline import cli
from pipeline.config import load_recipe
from pipeline.local import run_local, serving

ROOT = Path(__file__).parents[2]
WEEKS = ("2026-11-09", "2026-11-16")
TINY = (
    "base_model=.reasrm/models/tiny-random", "prepare.heldout_share=0.015", "prepare.max_distil=24",
    "sft.learning_rate=1e-3", "grpo.learning_rate=1e-4", "grpo.steps=1", "grpo.prompts_per_step=2",
    "grpo.num_generations=2", "grpo.max_completion_tokens=24", "benchmark.max_tokens=24", 'benchmark.models=["grpo"]',
    "benchmark.attacks=[]", "benchmark.num_resamples=100", "publish.min_accuracy=0", "publish.max_invalid_rate=1",
    "publish.margin=0.3",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def servers(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the recipe names the samples by their path in the repository
    before = dict(os.environ)
    with serving(tmp_path):
        yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def week(servers, tmp_path):
    """A function that runs the recipe with the data of a week."""

    def run(number, *settings):
        given = [*TINY, f"data_until={WEEKS[number]}", *settings]
        return run_local(load_recipe("weekly", given), tmp_path, recipe="weekly")

    return run


@pytest.fixture
def reasrm(servers, tmp_path, capsys):
    """Run the command line on the folder; gives exit code and standard output."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--dir", str(tmp_path)])
        return ended.value.code, capsys.readouterr().out

    return call


@pytest.fixture
def fetched(servers, tmp_path):
    """A function that returns a folder with the files of what a run's stage made."""
    storage = Storage.from_env()
    return lambda run, stage: storage.fetch(run.manifest(stage), tmp_path / "fetched" / run.run_id / stage)


def ids(folder, *parts):
    return {pair.id for part in parts for pair in read_models(folder / f"{part}.jsonl", PreferencePair)}


def delivered(number):
    with gzip.open(ROOT / "samples" / "weekly" / f"{WEEKS[number]}.jsonl.gz", "rt", encoding="utf-8") as file:
        return {json.loads(line)["id"] for line in file}


def weights(path):
    return torch.cat([value.float().flatten() for _, value in sorted(load_file(path).items())])


def aliases(name):
    import mlflow

    return {alias: int(v) for alias, v in mlflow.MlflowClient().get_registered_model(name).aliases.items()}


def test_two_weeks_and_a_quiet_third(week, reasrm, fetched, tmp_path):
    import mlflow

    name, client = "reasrm-weekly", mlflow.MlflowClient()
    first = week(0)
    assert first.statuses["publish"]["status"] == "done"
    assert first.manifest("benchmark").statistics["champion"]["digest"] == "none"
    assert aliases(name) == {"champion": 1, "challenger": 1}

    second = week(1)
    prepared = second.manifest("prepare")
    old, new = fetched(first, "prepare"), fetched(second, "prepare")
    trained, since = ids(new, "distil", "rl"), prepared.statistics["since"]
    assert since["uri"] == first.manifest("prepare").uri
    replayed = {one for one in trained if one in delivered(0)}
    assert len(trained - replayed) == since["new"]["distil"] + since["new"]["rl"] > 150
    assert trained - replayed <= delivered(1)
    assert len(replayed) == sum(since["replayed"].values())
    assert 0.05 < len(replayed) / len(delivered(0)) < 0.15
    assert not replayed & ids(old, "heldout")
    held = [(folder / "heldout.jsonl").read_bytes() for folder in (old, new)]
    assert held[1].startswith(held[0]) and len(held[1]) > len(held[0])
    assert "category" in {shift["name"] for shift in prepared.statistics["drift"] if shift["drifted"]}

    assert second.manifest("sft").statistics["started_from"] == first.manifest("grpo").uri
    tuned, champion = (
        weights(fetched(run, stage) / "model" / "model.safetensors")
        for run, stage in ((second, "sft"), (first, "grpo"))
    )
    base = weights(tmp_path / "models" / "tiny-random" / "model.safetensors")
    assert 0 < (tuned - champion).norm() < (tuned - base).norm()

    judged = second.manifest("benchmark").statistics
    assert judged["champion"]["name"] == f"{name}@champion"
    assert judged["champion"]["digest"] == first.manifest("grpo").digest
    assert "grpo" in judged["champion"]["differences"]
    tags = client.get_model_version(name, "2").tags
    assert tags["reasrm.gate"] == "passed"
    assert re.fullmatch(rf"{MARGIN} is [-\d.e]+, needs more than -0\.3", tags["reasrm.gate.difference_to_the_champion"])
    assert tags["reasrm.former_version"] == f"{name}/1"
    assert aliases(name) == {"champion": 2, "challenger": 2, "previous": 1}

    code, said = reasrm("lineage", "--diff", f"{name}/1", f"{name}/2", "--json")
    assert code == 0
    (data,) = [part for part in json.loads(said)["data"] if part["part"] == "rl"]
    assert set(data["added"]) == ids(new, "rl") - ids(old, "rl")
    code, said = reasrm("lineage", f"{name}/2", "--verify")
    assert (code, "0 have drifted" in said) == (0, True)
    assert all(run.manifest(stage).uri in said for run in (first, second) for stage in ("prepare", "grpo"))

    settings = [part for one in (*TINY, f"data_until={WEEKS[1]}") for part in ("--set", one)]
    code, said = reasrm("run", "--recipe", "weekly", *settings)
    assert (code, "nothing new: 0 new pairs" in said) == (0, True)
    assert len(client.search_model_versions(f"name = '{name}'")) == 2

    code, said = reasrm("rollback", name, "--reason", "wrong on code")
    assert (code, said) == (0, f"{name}@champion is version 1 now, before it was {name}/2\n")
    assert aliases(name)["champion"] == 1
