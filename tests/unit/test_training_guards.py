"""What ends a training run early, and what is left then: by a number that is not finite, by memory, by SIGTERM."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, TrainerCallback

from components.adapters import training
from components.adapters.checkpoints import Checkpoints
from components.adapters.follow import SilentProgress, SilentRun
from components.adapters.models import load_tokenizer
from components.adapters.stage import Output, Stopped
from components.adapters.storage import Storage
from components.adapters.training.disk import checkpoint_bytes
from components.adapters.training.guards import NonFinite, name_rows
from components.adapters.training.memory import is_out_of_memory
from components.core.errors import ReasrmError, Transient
from components.core.training import TrainingConfig
from pipeline.services import BUCKET, Services

SECONDS = 400
SCRIPT = Path(__file__).with_name("train_together.py")


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
STEPS: int = script.STEPS


class Run:
    """One history of a training run in this process."""

    def __init__(self, s3: Any, folder: Path, model: Path, name: str, config: TrainingConfig) -> None:
        self.folder, self.config = folder, config
        (folder / "model").parent.mkdir(parents=True, exist_ok=True)
        if not (folder / "model").exists():
            shutil.copytree(model, folder / "model")
        work = folder / name
        (work / "output").mkdir(parents=True)
        self.output = Output(
            f"{s3.prefix}/{name}", work / "output", work, s3.storage, SilentRun(), SilentProgress(), "key"
        )
        self.rows: list[str] = []
        self.log: list[dict[str, Any]] = []

    def trainer(self, **more: Any) -> tuple[Any, Checkpoints]:
        checkpoints = Checkpoints(self.output, "sft", "1", self.config, 2, parents={}, sharding=self.config.sharding)
        return script.build(self.folder, self.config, checkpoints, self.output, **more), checkpoints

    def train(self, *callbacks: Any, poison: str = "", **more: Any) -> list[dict[str, Any]]:
        trainer, checkpoints = self.trainer(**more)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.poison = poison
        log = training.train(trainer, checkpoints, self.output, rows_of_step=lambda: self.rows)
        training.export(trainer, trainer.processing_class, log, self.output)
        return log

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.output.directory / "model" / "model.safetensors")

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(self.output.directory / "model", dtype=torch.float32)
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=ids).logits
        return logits

    def checkpoint(self, step: int) -> Path:
        manifest = self.output.storage.open(self.output.partial_uri(f"checkpoints/{step:08d}"))
        assert manifest is not None
        return self.output.storage.fetch(manifest, self.folder / "fetched")

    def steps(self) -> list[int]:
        found = self.output.storage.list(self.output.partial_uri("checkpoints/"))
        return sorted(int(info.uri.split("/")[-2]) for info in found if info.uri.endswith("/manifest.json"))


@pytest.fixture
def run(s3: Any, tmp_path: Path, tiny_model: Path) -> Callable[..., Run]:
    def make(name: str, case: str = "none") -> Run:
        return Run(s3, tmp_path, tiny_model, name, script.settings(case))

    return make


class StopAt(TrainerCallback):
    """Sends this process SIGTERM while it works on a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class StopInside(TrainerCallback):
    """Ends a step early, as a rollout does on SIGTERM, after it has drawn random numbers."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            torch.rand(7)
            raise Stopped


@pytest.fixture(scope="module")
def calm(services: Services, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run of one process, without checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment().items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("calm")
        bucket = SimpleNamespace(storage=Storage.from_env(), prefix=f"s3://{BUCKET}/{folder.name}-{os.getpid()}")
        one = Run(bucket, folder, tiny_model, "calm", script.settings("none"))
        one.log = one.train(save_steps=100)
        assert one.steps() == []  # the last step has no checkpoint: the model follows at once
    return one


@pytest.mark.parametrize(("stop", "step"), [(StopAt(2), 2), (StopAt(STEPS), STEPS), (StopInside(), 2)])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(run: Callable[..., Run], calm: Run, stop: Any, step: int) -> None:
    handler, stopped = signal.getsignal(signal.SIGTERM), run("stopped")
    with pytest.raises(Transient, match=f"after step {step}, whose checkpoint is in S3"):
        stopped.train(stop, save_steps=100)
    assert stopped.steps() == [step]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert stopped.train(save_steps=1) == calm.log
    assert stopped.steps() == sorted({step, STEPS - 1} if step < STEPS else {step})  # as often as is asked now
    assert len(calm.log) == STEPS
    assert all(torch.equal(weight, calm.weights()[name]) for name, weight in stopped.weights().items())


@pytest.mark.parametrize("poison", ["loss", "gradient", "norm"])
def test_a_number_that_is_not_finite_ends_a_run_before_the_step(run: Callable[..., Run], poison: str) -> None:
    one = run("one")
    one.rows = [f"key-{number}" for number in range(30)]
    what = "gradient" if poison == "norm" else poison
    with pytest.raises(ReasrmError, match=f"the {what} of step 3 is not finite.*key-19 and 10 more.*step 2 in s3://"):
        one.train(poison=poison)
    assert one.steps() == [2]
    assert list(one.output.directory.iterdir()) == []


class Lose(TrainerCallback):
    """Waits until a checkpoint is in S3, and takes it away."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            while not self.run.steps():
                time.sleep(0.01)
            output = self.run.output
            output.storage.delete([output.partial_uri("checkpoints/00000002/manifest.json")])


def test_a_checkpoint_that_is_not_in_s3_is_not_named_as_the_last_good_one(run: Callable[..., Run]) -> None:
    one = run("one")
    with pytest.raises(ReasrmError, match=r"loss of step 3 .* The checkpoint of step 2 is not in S3"):
        one.train(Lose(one), poison="loss")


class Full(TrainerCallback):
    """Ends training where it begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise ReasrmError("training has begun")


def test_what_earlier_attempts_left_does_not_fill_the_disk(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run("one")
    left = one.output.workdir / "checkpoints" / "checkpoint-7"
    left.mkdir(parents=True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0 if left.exists() else 10**12))
    with pytest.raises(ReasrmError, match="training has begun"):
        one.train(Full())


def test_too_little_memory_is_told_with_the_batch_and_what_to_lower(run: Callable[..., Run]) -> None:
    told = "step 3 at input_ids 1 x 64: .*can't allocate memory.*set gradient_checkpointing.*anew: lower max_length"
    with pytest.raises(ReasrmError, match=told):
        run("one").train(poison="memory")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_gradients_are_checked_without_our_trainer_too() -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    callback, state = training.StopOnNonFinite(updates_per_step=2), SimpleNamespace(global_step=9)
    callback.on_pre_optimizer_step(None, state, None, model=model)
    for poison in (float("nan"), float("inf")):
        assert model.weight.grad is not None
        model.weight.grad[0, 0] = poison
        with pytest.raises(ReasrmError, match="gradient of step 5 is not finite"):
            callback.on_pre_optimizer_step(None, state, None, model=model)


def test_rows_of_a_bad_forward_pass_are_named_alone() -> None:
    assert name_rows([["a", "b"], ["c"]], NonFinite(1, "loss", [1])) == ["c"]
    assert name_rows(["a", "b"], NonFinite(1, "loss", [1])) == ["a", "b"]
    assert name_rows([["a", "b"], ["c"]], NonFinite(1, "loss", [])) == []  # another process has it
    assert name_rows([["a", "b"], ["c"]], NonFinite(1, "gradient", [])) == ["a", "b", "c"]


def test_an_exported_model_is_what_was_trained(run: Callable[..., Run]) -> None:
    one = run("one")
    trainer, checkpoints = one.trainer(save_steps=2)
    log = training.train(trainer, checkpoints, one.output)
    trained = {name: weight.to(torch.bfloat16) for name, weight in trainer.model.state_dict().items()}
    training.export(trainer, trainer.processing_class, log, one.output)
    reloaded = AutoModelForCausalLM.from_pretrained(one.output.directory / "model", dtype="auto")
    assert reloaded.dtype == torch.bfloat16
    assert reloaded.state_dict().keys() == trained.keys()
    assert all(torch.equal(weight, trained[name]) for name, weight in reloaded.state_dict().items())
    files = {path.name for path in (one.output.directory / "model").iterdir()}
    assert files >= {"chat_template.jinja", "generation_config.json", "tokenizer.json"}
    assert not files & {"training_args.bin", "README.md"}
    assert load_tokenizer(one.output.directory / "model").chat_template == trainer.processing_class.chat_template
    folder = one.checkpoint(2)
    training.export(trainer, trainer.processing_class, log, one.output, checkpoint=folder)
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, saved[name].to(torch.bfloat16)) for name, weight in one.weights().items())
    assert not torch.equal(one.weights()["model.norm.weight"], trained["model.norm.weight"])
    with torch.no_grad():
        trainer.model.model.norm.weight[3] = float("nan")
    with pytest.raises(ReasrmError, match=r"norm\.weight has non-finite values"):
        training.export(trainer, trainer.processing_class, log, one.output)


# peft asks transformers by the older of two names.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_merged_adapters_answer_as_they_did_apart(run: Callable[..., Run]) -> None:
    one, ids = run("one", "none-lora"), torch.arange(20, 60)[None]
    trainer, checkpoints = one.trainer()
    log = training.train(trainer, checkpoints, one.output)
    model = trainer.model.eval()
    with torch.no_grad():
        apart = model(input_ids=ids).logits
        with model.disable_adapter():
            before = model(input_ids=ids).logits
    training.export(trainer, trainer.processing_class, log, one.output)
    rounding = (one.logits(ids) - apart).abs().max()
    assert not any("lora" in name for name in one.weights())
    assert rounding < 0.02
    assert (before - apart).abs().max() > 4 * rounding
    folder = one.checkpoint(2)
    base = AutoModelForCausalLM.from_pretrained(one.folder / "model", dtype=torch.float32)
    with torch.no_grad():
        earlier = PeftModel.from_pretrained(base, folder).eval()(input_ids=ids).logits
    trainer, _ = one.trainer()
    training.export(trainer, trainer.processing_class, log, one.output, checkpoint=folder)
    assert (one.logits(ids) - earlier).abs().max() < 2 * rounding


OTHER_CASES = ["zero2-offload", "zero3-bf16-offload", "zero2-lora-bf16-recompute"]


@pytest.fixture(scope="module")
def together(
    services: Services, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """What came of several runs by two processes, by case and rank."""
    folder = tmp_path_factory.mktemp("together")
    shutil.copytree(tiny_model, folder / "model")
    (folder / "root").write_text(f"s3://{BUCKET}/{folder.name}-{os.getpid()}", encoding="utf-8")
    cases = ["none", "none-loss", "none-gradient", "zero2", "zero2-loss", "zero3", "zero3-gradient", *OTHER_CASES]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = {**os.environ, **services.environment(), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    done = subprocess.run(
        [*command, str(folder), *cases], env=environment, check=False, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, {
        case: [json.loads((folder / f"{case}.{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
        for case in cases
    }


def test_processes_that_share_the_work_learn_what_one_learns(together: Any, calm: Run) -> None:
    folder, found = together
    for case in ("none", "zero2", "zero3", "zero2-offload"):
        assert found[case][0] == found[case][1]
        for row, other in zip(found[case][0]["log"], calm.log, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        weights = load_file(folder / case / "0" / "model" / "model.safetensors")
        assert weights.keys() == calm.weights().keys()
        for name, weight in calm.weights().items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-2, atol=1e-3)  # bf16 rounds to 2^-8


def test_adapters_in_bf16_train_sharded_and_recomputed(together: Any, calm: Run) -> None:
    folder, found = together
    case = "zero2-lora-bf16-recompute"
    assert found[case][0] == found[case][1]
    losses = [row["loss"] for row in found[case][0]["log"]]
    assert losses[0] == pytest.approx(calm.log[0]["loss"], rel=1e-2)
    assert losses[-1] != losses[0]
    weights = load_file(folder / case / "0" / "model" / "model.safetensors")
    assert weights.keys() == calm.weights().keys()


def test_bf16_weights_in_host_memory_learn_as_fp32_ones(together: Any, calm: Run) -> None:
    _, found = together
    first, second = found["zero3-bf16-offload"]
    assert first == second
    for row, other in zip(first["log"], calm.log, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_an_export_that_fails_in_one_process_fails_in_all(together: Any) -> None:
    _, found = together
    assert "model.norm.weight has non-finite values in bf16" in found["none"][0]["error"]
    assert found["none"][0]["error"] == found["none"][1]["error"]


@pytest.mark.parametrize("case", ["none-loss", "none-gradient", "zero2-loss", "zero3-gradient"])
def test_one_process_with_a_bad_number_ends_all_of_them(together: Any, case: str) -> None:
    folder, found = together
    first, second = found[case]
    what = case.rpartition("-")[2]
    assert first == second
    assert f"the {what} of step 3 is not finite" in first["error"]
    assert ("rows: row-of-1." if what == "loss" else "rows: row-of-0, row-of-1.") in first["error"]
    assert "checkpoint is that of step 2" in first["error"]
    assert first["global_step"] == 2
    assert not (folder / case / "0" / "model").exists()


@pytest.mark.parametrize(("case", "stage"), [("none-loss", 0), ("zero2-loss", 2), ("zero3-gradient", 3)])
def test_room_for_checkpoints_is_reckoned_right(together: Any, tiny_model: Path, case: str, stage: int) -> None:
    _, found = together
    num_params = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    reckoned = checkpoint_bytes(num_params, 4 * num_params, stage, machines=1)
    assert reckoned == pytest.approx(found[case][0]["saved"], rel=0.15)  # the rest is the tokenizer
