"""Training on a GPU: kill -9 and resume, numbers that are not finite under DeepSpeed, and the exported model reloaded.

Real stage processes on the GPU, over the embedded S3 and MLflow servers. Curves of a resumed run are compared within a
tolerance: kernels on a GPU add up in changing order. Not yet run on a GPU. REASRM_GPU_TESTS_ON_CPU=1 runs all but
DeepSpeed's optimizer kernels and vLLM on a CPU, which shows that the tests themselves work.
"""

import importlib.metadata
import importlib.util
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.shared.random_model import TINY, make_model
from components.adapters.engines import Sampling, open_engine
from components.core import prompts
from components.core.manifest import MANIFEST_NAME, Manifest, describe
from components.core.records import write_jsonl
from components.core.schema import Example, PreferencePair

ON_GPU = torch.cuda.is_available()
HAS_VLLM = importlib.util.find_spec("vllm") is not None
HAS_SERVERS = any(shutil.which("weed", path=path) for path in (str(Path(sys.executable).parent), None)) and any(
    importlib.metadata.Distribution.discover(name="mlflow")
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),  # vLLM's and DeepSpeed's own
    pytest.mark.skipif(not HAS_SERVERS, reason="needs SeaweedFS and the whole of MLflow: pip install 'reasrm[local]'"),
    pytest.mark.skipif(not ON_GPU and not os.environ.get("REASRM_GPU_TESTS_ON_CPU"), reason="there is no GPU"),
]
needs_vllm = pytest.mark.skipif(not (ON_GPU and HAS_VLLM), reason="needs a GPU and vLLM")

STAGE_SECONDS = 900.0
"""How long a stage may take here: vLLM may take minutes to start."""
STEPS = 6
TOLERANCE = 2e-2
"""Largest relative difference of a step's loss or reward between a resumed run and an undisturbed one."""
SFT = {
    "batch_size": 4, "micro_batch_size": 2, "save_steps": 1, "learning_rate": 1e-3, "warmup_fraction": 0.0,
    "max_length": 3072, "precision": "bf16" if ON_GPU else "fp32", "processes": 1,
}  # fmt: skip
GRPO = {
    "steps": STEPS, "prompts_per_step": 4 if ON_GPU else 2, "num_generations": 4, "micro_batch_size": 8,
    "max_prompt_tokens": 3072, "max_completion_tokens": 48 if ON_GPU else 12, "save_steps": 1,
    "learning_rate": 1e-4, "beta": 1e-3, "processes": 1,
    "precision": "bf16" if ON_GPU else "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"), TINY)


def sums(count: int) -> list[PreferencePair]:
    """Return pairs that ask for sums; every other right answer stands first."""
    made = []
    for number in range(count):
        answers = (str(2 * number), str(2 * number + 1))
        first, second = answers if number % 2 else answers[::-1]
        made.append(
            PreferencePair(
                id=f"p{number}",
                prompt=({"role": "user", "content": f"{number} + {number} = ?"},),
                response_a=first,
                response_b=second,
                label="A" if number % 2 else "B",
            )
        )
    return made


@pytest.fixture
def commit(s3: Any) -> Callable[[Path, str], Manifest]:
    """Return a maker of artifacts: all files of a folder, under the folder's name."""

    def make(directory: Path, kind: str) -> Manifest:
        names = {"kind": kind, "stage": "test", "uri": f"{s3.prefix}/{directory.name}", "run_key": "k", "config": {}}
        manifest = Manifest.model_validate({**names, "code_version": "1", "files": describe(directory)})
        return s3.storage.commit(manifest, directory)  # type: ignore[no-any-return]

    return make


@pytest.fixture
def examples(commit: Callable[[Path, str], Manifest], tmp_path: Path) -> Manifest:
    rows = []
    for pair in sums(4 * STEPS):
        text = (
            f"<type>Reasoning</type>\n<solution>?</solution>\n<eval>{pair.id}</eval>\n<answer>[[{pair.label}]]</answer>"
        )
        asked = prompts.render(pair, "rubric").messages
        turn = {"role": "assistant", "content": text}
        rows.append(Example(key=pair.key, prompt=asked, completion=(turn,), label=pair.label))
    (tmp_path / "examples").mkdir()
    write_jsonl(tmp_path / "examples" / "sft.jsonl", rows)
    return commit(tmp_path / "examples", "distillation")


@pytest.fixture
def grpo_inputs(commit: Callable[[Path, str], Manifest], tmp_path: Path, model: Path) -> dict[str, Manifest]:
    (tmp_path / "pairs").mkdir()
    write_jsonl(tmp_path / "pairs" / "rl.jsonl", sums(12))
    shutil.copytree(model, tmp_path / "tiny" / "model")
    return {"pairs": commit(tmp_path / "pairs", "pairs"), "sft": commit(tmp_path / "tiny", "model")}


def finish(started: Any) -> Manifest:
    """Wait for success, longer than other tests do, and return the committed manifest."""
    started.process.wait(timeout=STAGE_SECONDS)
    return started.finish()  # type: ignore[no-any-return]


def kill_when(started: Any, reached: Callable[[], bool]) -> None:
    """Send SIGKILL as soon as `reached()`, for which other tests wait less long."""
    deadline = time.monotonic() + STAGE_SECONDS
    while not reached():
        assert started.process.poll() is None, started.log.read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline, started.log.read_text(encoding="utf-8")[-4000:]
        time.sleep(0.05)
    started.kill_when(lambda: True)


@pytest.fixture
def run_with_kills(s3: Any, stage_runner: Callable[[str], Any]) -> Callable[..., tuple[Manifest, Manifest]]:
    """Return a function that does a stage's work twice: undisturbed, and killed at two steps."""

    def reached(root: str, step: int) -> bool:
        marks = [info.uri for info in s3.storage.list(f"{root}/") if info.uri.endswith(f"/{MANIFEST_NAME}")]
        return any(f"/checkpoints/{done:08d}/" in uri for uri in marks for done in range(step, STEPS + 1))

    def run(stage: str, config: dict[str, Any], inputs: dict[str, Manifest]) -> tuple[Manifest, Manifest]:
        calm = finish(stage_runner("calm").start(stage, config, inputs))
        runner = stage_runner("killed")
        for step in sorted(random.Random(stage).sample(range(1, STEPS - 1), 2)):
            kill_when(runner.start(stage, config, inputs), lambda step=step: reached(runner.root, step))
        return calm, finish(runner.start(stage, config, inputs))

    return run


@pytest.fixture
def curve(s3: Any, tmp_path: Path) -> Callable[[Manifest, str], list[float]]:
    """Return a reader of one number of a finished stage's log, by step."""

    def read(manifest: Manifest, name: str) -> list[float]:
        folder = s3.storage.fetch(manifest, tmp_path / manifest.uri.rpartition("test-")[2].replace("/", "-"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        return [row[name] for row in rows]

    return read


SHARDINGS = [
    {"sharding": "none"},
    {"sharding": "zero2"},
    {"sharding": "zero2", "offload": "optimizer"},
    {"sharding": "zero3"},
]


@pytest.mark.parametrize("sharding", SHARDINGS if ON_GPU else SHARDINGS[:1], ids=lambda one: "-".join(one.values()))
def test_killed_sft_goes_on_with_the_same_losses(
    run_with_kills: Callable[..., tuple[Manifest, Manifest]],
    curve: Callable[[Manifest, str], list[float]],
    model: Path,
    examples: Manifest,
    sharding: dict[str, str],
) -> None:
    calm, killed = run_with_kills("sft", {**SFT, **sharding, "base_model": str(model)}, {"examples": examples})
    losses = curve(calm, "loss")
    assert curve(killed, "loss") == pytest.approx(losses, rel=TOLERANCE)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_killed_grpo_goes_on_with_the_same_rollouts(
    run_with_kills: Callable[..., tuple[Manifest, Manifest]],
    curve: Callable[[Manifest, str], list[float]],
    grpo_inputs: dict[str, Manifest],
    engine: str,
) -> None:
    config = {**GRPO, "rollouts": {"engine": engine, "memory_fraction": 0.2}} | {
        "rewards": {
            "verdict": 1.0,
            "overlong": 0.5,
            "overlong_tokens": 40,
        }  # differs between rollouts that are all wrong
    }
    calm, killed = run_with_kills("grpo", config, grpo_inputs)
    for name in ("reward", "completion_tokens"):
        expected = curve(calm, name)
        # A token that differs by rounding changes its rollout from there on: one of sixteen, and later what is learned.
        assert curve(killed, name) == pytest.approx(expected, rel=TOLERANCE if engine == "transformers" else 0.2)


@pytest.mark.parametrize("sharding", ["none", "zero2", "zero3"] if ON_GPU else ["none"])
def test_training_that_diverges_stops_with_a_reason_and_publishes_nothing(
    stage_runner: Callable[[str], Any], model: Path, examples: Manifest, sharding: str
) -> None:
    config = {**SFT, "base_model": str(model), "sharding": sharding, "learning_rate": 1e30, "max_grad_norm": 1e9}
    started = stage_runner("nan").start("sft", config, {"examples": examples})
    assert started.process.wait(timeout=STAGE_SECONDS) == 1
    log = started.log.read_text(encoding="utf-8")
    assert "is not finite" in log
    assert not started.output.exists()


@pytest.mark.parametrize("sharding", ["none", "zero3"] if ON_GPU else ["none"])
def test_the_exported_model_writes_the_same_everywhere(
    s3: Any,
    stage_runner: Callable[[str], Any],
    model: Path,
    examples: Manifest,
    tmp_path: Path,
    sharding: str,
) -> None:
    config = {**SFT, "base_model": str(model), "sharding": sharding}
    manifest = finish(stage_runner("export").start("sft", config, {"examples": examples}))
    folder = s3.storage.fetch(manifest, tmp_path / "exported") / "model"
    asked = [prompts.render(pair, "rubric").messages for pair in sums(8)]
    engine = open_engine("transformers", folder, precision="fp32")
    found = engine.generate(asked, Sampling(max_tokens=32))
    engine.close()
    assert all(completion.num_tokens for completion in found)
    if not HAS_VLLM:
        pytest.skip("read by transformers; vLLM is not installed")
    other = open_engine("vllm", folder, precision="fp32", max_model_tokens=4096, memory_fraction=0.3)
    assert [one.token_ids[:8] for one in other.generate(asked, Sampling(max_tokens=32))] == [
        one.token_ids[:8] for one in found
    ]
    other.close()
