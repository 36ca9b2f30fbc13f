"""Speed of SFT and GRPO on a GPU with random weights of Qwen2.5-7B's shape; no download is needed.

    python -m benchmarks.gpu_training --directory /tmp/gpu-training --output gpu_training.json
    python -m benchmarks.gpu_training --directory /tmp/gpu-training --only grpo-ours grpo-trl --sleep --micro-batch 8
    python -m benchmarks.gpu_training --directory /tmp/gpu-training --only sft-4096 --offload optimizer --layers 28
    python -m benchmarks.gpu_training --directory /tmp/tiny --tiny       # all of it on a CPU, with a tiny model

It needs the project's environment with CUDA and vLLM (docs/training.md). Each part runs in a process of its own; the
results are merged into the output file, and the ratio is printed when both sides of GRPO are there.

`sft-4096`, `sft-12288`: the SFT stage's own trainer over rows of that many tokens: tokens a second, MFU, peak memory.
MFU counts what the result needs: attention its causal half once, the head its learned tokens, recomputation nothing.
`grpo-ours`, `grpo-trl`: one update on 16 x 8 rollouts of prompts of 1,024 tokens and completions of up to 1,024:
seconds a step, split into rollout, sync, reward, score (log-probabilities before training) and train.

**Aims:** SFT with an MFU of 45 % or more, a GRPO step at least 1.5 times (better 2 times) as fast as TRL's defaults.

**What is compared.** TRL's side is GRPOTrainer with GRPOConfig's defaults and use_vllm; set are only the rollouts of a
step, the length of completions and what is logged and saved. Same on both sides: fp32 weights under bf16 autocast,
DAPO's loss, no KL term, rewards scaled by group, importance weights for what vLLM's probabilities differ (so both score
the rollouts before they train), vLLM in the same process with the same share of the GPU. Different, ours first:

- micro batches of `--micro-batch` rollouts of like length, cut to their longest, against 8 as they come, padded to the
  longest of the step. With one end token in 152,064 nearly all completions reach the limit and this shows nothing;
  `--end-tokens 300` spreads their lengths (some 400 tokens in the middle; the drawn lengths differ a little by side);
- activations are kept where the estimate says that they fit, against gradient checkpointing always;
- Liger's layers where liger-kernel is installed, and flash-attn where that is, against neither;
- vLLM's context is what a prompt and a completion take, against the model's 32,768; a seed for each completion, against
  none; `--sleep` lets vLLM give its memory back while the model trains, which TRL's default does not;
- importance weights by token, against by sequence; our rewards (a verdict), against the parity of a sum.

`--sharding` and `--offload` are ours alone.

**What fits.** Weights, gradients and AdamW's state take 18 bytes a parameter on one GPU: 128 GiB for all 28 layers, too
much beside anything else on an H200. So the defaults are 20 layers for SFT (5.8 billion parameters, 96 GiB) and 10 for
GRPO (3.4 billion, 57 GiB, and 42 GiB for vLLM); the table says how many. MFU carries over to 28 layers nearly as it is,
because a layer that is left out takes its operations and its time with it: only the head, 4 % of SFT's operations with
all layers, is 5 % then. Seconds a step do not carry over. `--offload optimizer --layers 28` has the whole model,
with the optimizer in host memory: some 20 bytes a parameter, 142 GiB, refused where there is less; its speed is that of
the host's memory.

Not yet run on a GPU; `--tiny` has run.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks.shared.clock import Clock
from benchmarks.shared.memory import (
    HOST_BYTES,
    SPARE,
    activation_gib,
    bytes_a_parameter,
    gpu_gib,
    host_gib,
    num_parameters,
)
from benchmarks.shared.random_model import QWEN25_7B, TINY, make_model, prompt_rows
from benchmarks.shared.without_services import NoCheckpoints, make_output
from components.adapters import training
from components.adapters.models import load_tokenizer
from components.adapters.training.speed import (
    GIB,
    Tokens,
    num_elements,
    peak_flops,
    peak_memory,
    size_of,
    training_flops,
)

LENGTHS = ("completion_tokens", "completions/mean_length")
"""What our trainer and TRL's call the mean length of a completion in their logs."""
PARTS = ("sft-4096", "sft-12288", "grpo-ours", "grpo-trl")
LAYERS = {"sft": 20, "grpo": 10}
"""Layers of the model that fit on one H200 with all that the part needs."""


def training_settings(arguments: argparse.Namespace, *, checkpointing: bool) -> dict[str, Any]:
    """Return what the stages' settings have in common here."""
    return {
        "precision": "fp32" if arguments.tiny else "bf16",
        "gradient_checkpointing": checkpointing,
        "liger": has_liger() and not arguments.tiny,
        "sharding": arguments.sharding,
        "offload": arguments.offload,
        "save_steps": 10**6,
        "processes": arguments.processes,
    }


def has_liger() -> bool:
    """Say whether Liger's layers can be had."""
    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None


def needs_checkpointing(arguments: argparse.Namespace, part: str, tokens: int, vllm_share: float = 0.0) -> bool:
    """Say whether activations of a micro batch of so many tokens are too large to be kept, unless the options say."""
    if arguments.checkpointing is not None:
        return bool(arguments.checkpointing)
    if arguments.tiny:
        return False
    numbers = shape(arguments, part)
    state = (
        num_parameters(numbers) * bytes_a_parameter(arguments.sharding, arguments.offload, arguments.processes) / GIB
    )
    needed = state + activation_gib(numbers, tokens, checkpointing=False)
    return needed > gpu_gib() * (SPARE - vllm_share)


def model_of(arguments: argparse.Namespace, part: str) -> Path:
    """Return the folder of the part's model; the first process makes it, the others wait."""
    mark = arguments.directory / f".{part}.model"
    if int(os.environ.get("RANK", "0")) == 0:
        folder = make_model(arguments.directory, shape(arguments, part), num_ends=arguments.end_tokens)
        mark.write_text(str(folder), encoding="utf-8")
        return folder
    while not mark.is_file():  # main has removed the last run's
        time.sleep(0.5)
    return Path(mark.read_text(encoding="utf-8"))


def size_in_words(model: Any) -> dict[str, Any]:
    """Return what the table says of a model: its layers, and its parameters with the embedding."""
    return {"layers": model.config.num_hidden_layers, "parameters": sum(num_elements(p) for p in model.parameters())}


def measure_sft(arguments: argparse.Namespace, folder: Path, length: int) -> dict[str, Any]:
    """Train on rows of `length` random tokens, half of them learned, with the SFT stage's trainer."""
    from components.sft.config import Config
    from components.sft.trainer import build_trainer

    numbers = shape(arguments, "sft")
    checkpointing = needs_checkpointing(arguments, "sft", length)
    batch = max(1, arguments.tokens_per_step // (length * arguments.processes)) * arguments.processes
    config = Config(
        base_model=str(folder),
        batch_size=batch,
        micro_batch_size=1,
        max_length=length,
        **training_settings(arguments, checkpointing=checkpointing),
    )
    num_rows = batch * (arguments.warm_steps + arguments.steps)
    ids = torch.randint(5, numbers["vocab_size"], (num_rows, length), generator=torch.manual_seed(0)).tolist()
    rows = Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": [[-100] * (length // 2) + row[length // 2 :] for row in ids],
            "examples": [[place] for place in range(num_rows)],
        }
    )
    output = make_output(arguments.directory / f"sft-{length}")
    checkpoints: Any = NoCheckpoints(output.workdir / "checkpoints")
    tokenizer = load_tokenizer(folder, padding_side="right")
    keys = [str(place) for place in range(num_rows)]
    trainer = build_trainer(config, folder, tokenizer, rows, keys, checkpoints, output)
    clock = Clock()
    trainer.add_callback(clock.callback())
    training.train(trainer, checkpoints, output, rows_of_step=trainer.rows_of_step)
    seconds = clock.mean(arguments.warm_steps)["step"]
    per_gpu = batch / seconds / arguments.processes
    done = per_gpu * training_flops(size_of(trainer.model), Tokens(length, length**2, length - length // 2))
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return {
        **size_in_words(trainer.model),
        "checkpointing": checkpointing,
        "liger": config.liger,
        "tokens": length,
        "batch_size": batch,
        "seconds_per_step": seconds,
        "tokens_per_second_per_gpu": per_gpu * length,
        "tflops_per_gpu": done / 1e12,
        "mfu": done / peak if peak else None,
        "peak_memory_gib": peak_memory(),
        "steps": clock.steps,
        "reported": output.tracking.steps,
    }


def measure_grpo(arguments: argparse.Namespace, folder: Path, *, ours: bool) -> dict[str, Any]:
    """Take RL steps with the GRPO stage's trainer, or with TRL's and its defaults."""
    tokenizer = load_tokenizer(folder)
    num_steps = arguments.warm_steps + arguments.steps
    rows = prompt_rows(tokenizer, arguments.prompts * num_steps, arguments.prompt_tokens)
    output = make_output(arguments.directory / ("grpo-ours" if ours else "grpo-trl"))
    clock = Clock()
    maker = make_our_trainer if ours else make_trl_trainer
    trainer, train = maker(arguments, folder, tokenizer, rows, output)
    trainer.add_callback(clock.callback())
    clock.watch(trainer, "_generate_and_score_completions", "score")
    clock.watch(trainer, "_generate", "rollout")
    clock.watch(getattr(trainer, "_drawing", None), "roll_out", "rollout")  # where ours generates
    clock.watch(trainer, "_calculate_rewards", "reward")
    clock.watch(getattr(trainer, "vllm_generation", None), "sync_weights", "sync")
    train()
    seconds = clock.mean(arguments.warm_steps)
    num_rollouts = arguments.prompts * arguments.generations
    lengths = [row[name] for row in trainer.state.log_history for name in LENGTHS if name in row]
    kept = lengths[arguments.warm_steps :] or lengths
    return {
        **size_in_words(trainer.accelerator.unwrap_model(trainer.model)),
        "checkpointing": bool(trainer.args.gradient_checkpointing),
        "liger": ours and has_liger() and not arguments.tiny,
        "micro_batch_size": trainer.args.per_device_train_batch_size,
        "prompts": arguments.prompts,
        "generations": arguments.generations,
        "prompt_tokens": arguments.prompt_tokens,
        "completion_tokens": sum(kept) / len(kept) if kept else None,
        "seconds": seconds,
        "rollouts_per_second": num_rollouts / seconds["step"],
        "peak_memory_gib": peak_memory(),
        "steps": clock.steps,
        "reported": output.tracking.steps,
    }


Made = tuple[Any, Callable[[], object]]


def make_our_trainer(arguments: argparse.Namespace, folder: Path, tokenizer: Any, rows: Any, output: Any) -> Made:
    """Return the GRPO stage's trainer and what trains it."""
    from components.grpo.config import Config
    from components.grpo.rollouts import open_sampler
    from components.grpo.schedule import make_schedule
    from components.grpo.trainer import build_trainer

    with_vllm = arguments.rollouts == "vllm"
    tokens = arguments.micro_batch * (arguments.prompt_tokens + arguments.completion_tokens)
    vllm_share = arguments.memory_fraction if with_vllm and not arguments.sleep else 0.0
    config = Config(
        learning_rate=1e-6,
        steps=arguments.warm_steps + arguments.steps,
        prompts_per_step=arguments.prompts,
        num_generations=arguments.generations,
        micro_batch_size=arguments.micro_batch,
        max_prompt_tokens=2 * arguments.prompt_tokens,
        max_completion_tokens=arguments.completion_tokens,
        loss="dapo",
        beta=arguments.beta,
        rollout_correction=with_vllm,
        rollouts={
            "engine": arguments.rollouts,
            "memory_fraction": arguments.memory_fraction,
            "sleep": arguments.sleep,
        },
        **training_settings(arguments, checkpointing=needs_checkpointing(arguments, "grpo", tokens, vllm_share)),
    )
    checkpoints: Any = NoCheckpoints(output.workdir / "checkpoints")
    schedule, sampler = make_schedule(len(rows), config), open_sampler(folder, tokenizer, config)
    trainer = build_trainer(
        config,
        tokenizer,
        rows,
        schedule,
        sampler,
        training.common_arguments(config, checkpoints, output),
        lambda: training.load_trainable(folder, config, output),
        training.callbacks(config, checkpoints, output, ("reward",)),
    )
    return trainer, lambda: training.train(trainer, checkpoints, output, rows_of_step=trainer.rows_of_step)


def make_trl_trainer(arguments: argparse.Namespace, folder: Path, tokenizer: Any, rows: Any, output: Any) -> Made:
    """Return TRL's trainer with its defaults, but for what makes the step the same."""
    from trl import GRPOConfig, GRPOTrainer

    with_vllm = {"use_vllm": True, "vllm_gpu_memory_utilization": arguments.memory_fraction}
    on_cpu = {"use_cpu": True, "bf16": False} if arguments.tiny else {}
    num_rollouts = arguments.prompts * arguments.generations // arguments.processes
    micro = min(GRPOConfig(output_dir=str(output.workdir), **on_cpu).per_device_train_batch_size, num_rollouts)
    config = GRPOConfig(
        output_dir=str(output.workdir),
        **(with_vllm if arguments.rollouts == "vllm" else {}),
        **on_cpu,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=num_rollouts // micro,
        num_generations=arguments.generations,
        max_completion_length=arguments.completion_tokens,
        beta=arguments.beta,
        max_steps=arguments.warm_steps + arguments.steps,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )

    def by_parity(completion_ids: Any, **batch: Any) -> list[float]:
        return [float(sum(ids) % 2) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=str(folder), args=config, train_dataset=rows, processing_class=tokenizer, reward_funcs=[by_parity]
    )
    return trainer, trainer.train


def shape(arguments: argparse.Namespace, part: str) -> dict[str, Any]:
    """Return the numbers of a part's model."""
    if arguments.tiny:
        return dict(TINY)
    return QWEN25_7B | {"num_hidden_layers": arguments.layers or LAYERS[part.partition("-")[0]]}


def run_part(arguments: argparse.Namespace) -> None:
    """Measure one part in this process and write its result beside the output."""
    folder = model_of(arguments, arguments.part)
    if arguments.part.startswith("sft-"):
        length = int(arguments.part.removeprefix("sft-"))
        found = measure_sft(arguments, folder, min(length, 128) if arguments.tiny else length)
    else:
        found = measure_grpo(arguments, folder, ours=arguments.part == "grpo-ours")
    if int(os.environ.get("RANK", "0")) == 0:
        result = arguments.directory / f"{arguments.part}.json"
        result.write_text(json.dumps(found, indent=1), encoding="utf-8")


def start(part: str, arguments: argparse.Namespace) -> int:
    """Measure one part in a process of its own, or in as many as train together; return its exit code."""
    options = [word for word in sys.argv[1:] if not word.startswith("--part")]
    program = ["-m", "benchmarks.gpu_training", *options, f"--part={part}"]
    together = arguments.processes > 1 or arguments.sharding != "none"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.processes}"]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *(torchrun if together else []), *program]
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": paths}).returncode


def show(results: Mapping[str, Any]) -> None:
    """Print the results as a short table."""
    for name in PARTS:
        found = results.get(name)
        if found is None:
            continue
        if "error" in found:
            print(f"{name:10} {found['error']}")
            continue
        model = f"{found['layers']} layers, {found['parameters']:,} parameters"
        kept = "checkpointing" if found["checkpointing"] else "activations kept"
        how = f"{kept}, {'Liger' if found['liger'] else 'no Liger'}"
        memory = f", peak {found['peak_memory_gib']:.1f} GiB; {model}; {how}"
        if name.startswith("sft-"):
            mfu = "" if found["mfu"] is None else f", MFU {found['mfu']:.1%} (aim 45 %)"
            print(f"{name:10} {found['tokens_per_second_per_gpu']:8.0f} tokens/s a GPU{mfu}{memory}")
            continue
        parts = ", ".join(f"{key} {seconds:.2f}" for key, seconds in found["seconds"].items() if key != "step")
        tokens = (
            "" if found["completion_tokens"] is None else f", completions of {found['completion_tokens']:.0f} tokens"
        )
        print(f"{name:10} {found['seconds']['step']:8.2f} s a step ({parts}){memory}{tokens}")
    ours, trl = (results.get(name, {}) for name in ("grpo-ours", "grpo-trl"))
    if "seconds" in ours and "seconds" in trl and ours["layers"] == trl["layers"]:
        ratio = trl["seconds"]["step"] / ours["seconds"]["step"]
        print(f"TRL's defaults take {ratio:.2f} times as long (aim 1.5, better 2)")


def check_host_memory(arguments: argparse.Namespace) -> None:
    """Say what an offloaded optimizer takes of host memory. Raises SystemExit where there is less."""
    if arguments.offload == "none":
        return
    needed = max(num_parameters(shape(arguments, part)) for part in arguments.only) * HOST_BYTES / GIB
    print(f"the optimizer takes about {needed:.0f} GiB of host memory; this machine has {host_gib():.0f}")
    if needed > host_gib():
        raise SystemExit("too little host memory: take fewer --layers, or --offload none")


def main() -> None:
    """Measure the parts that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="scratch; the models take 20 GB in it")
    parser.add_argument("--output", type=Path, help="JSON file that the results are merged into")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU, without vLLM")
    parser.add_argument("--layers", type=int, help="layers of the model, at most 28; default 20 for SFT, 10 for GRPO")
    parser.add_argument(
        "--end-tokens", type=int, default=1, help="tokens that end a completion; 300 spreads the lengths"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps that are measured")
    parser.add_argument("--warm-steps", type=int, default=1, help="steps before them")
    parser.add_argument("--processes", type=int, default=1, help="GPUs")
    parser.add_argument("--sharding", choices=("none", "zero2", "zero3"), help="default none, with --offload zero2")
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), default="none", help="see above")
    parser.add_argument("--tokens-per-step", type=int, default=262_144, help="of SFT, over all GPUs")
    parser.add_argument("--prompts", type=int, default=16, help="prompts in an RL step, over all GPUs")
    parser.add_argument("--generations", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--completion-tokens", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=4, help="rollouts in a forward pass of our trainer")
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        help="recompute activations in our trainers, or never; default: where they do not fit",
    )
    parser.add_argument("--sleep", action="store_true", help="our vLLM gives its memory back while the model trains")
    parser.add_argument("--beta", type=float, default=0.0, help="KL weight on both sides; TRL's default is 0")
    parser.add_argument("--rollouts", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--memory-fraction", type=float, default=0.3, help="vLLM's share of the GPU (TRL's default)")
    arguments = parser.parse_args()
    arguments.sharding = arguments.sharding or ("none" if arguments.offload == "none" else "zero2")
    if arguments.tiny:
        tiny = {"sharding": "none", "offload": "none", "tokens_per_step": 256, "prompts": 2, "generations": 4}
        tiny |= {"prompt_tokens": 512, "completion_tokens": 16, "micro_batch": 4, "rollouts": "transformers"}
        vars(arguments).update(tiny)
    if arguments.part:
        run_part(arguments)
        return
    check_host_memory(arguments)
    print(f"liger-kernel: {'installed, used' if has_liger() else 'not installed, not used'}", flush=True)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    output = arguments.output or arguments.directory / "gpu_training.json"
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    for part in arguments.only:
        found = arguments.directory / f"{part}.json"
        for old in (found, arguments.directory / f".{part}.model"):
            old.unlink(missing_ok=True)
        code = start(part, arguments)
        results[part] = json.loads(found.read_text()) if found.is_file() else {"error": f"ended with exit code {code}"}
        output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    show(results)


if __name__ == "__main__":
    main()
