"""Speed of SFT and GRPO on a GPU with random weights of Qwen2.5-7B's shape; no download is needed.

    python benchmarks/gpu_training.py --directory /tmp/gpu-training --output gpu_training.json
    python benchmarks/gpu_training.py --directory /tmp/gpu-training --only grpo-ours grpo-trl --layers 14
    python benchmarks/gpu_training.py --directory /tmp/tiny --tiny       # all of it on a CPU, with a tiny model

`sft-4096`, `sft-12288`: the SFT stage's own trainer over rows of that many tokens: tokens a second, MFU, peak memory.
`grpo-ours` and `grpo-trl`: the GRPO stage's own trainer, and TRL's GRPOTrainer with its defaults and vLLM, on the same
prompts of 1,024 tokens, the same number of completions of up to 1,024 tokens, the same memory settings: seconds a step,
split into rollout, sync, reward, score (log-probabilities before training) and train. Random weights of 152,064 tokens
end one completion in a hundred early, so the length is as good as fixed on both sides. Each part runs in a process of
its own; their results are merged into the output file, and the ratio is printed when both sides of GRPO are there.

Aims: SFT with an MFU of 45 % or more, a GRPO step at least 1.5 times (better 2 times) as fast as TRL's defaults.

Weights, gradients and AdamW's state of 7.6 billion parameters do not fit into one GPU of 141 GB in fp32, so the default
is ZeRO-2 with the optimizer in host memory (about 90 GB there), for both sides; `--layers` takes a part of the model.

Not yet run on a GPU; `--tiny` has run.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks.shared.clock import Clock
from benchmarks.shared.random_model import QWEN25_7B, TINY, make_model, prompt_rows
from benchmarks.shared.without_services import NoCheckpoints, make_output
from components.adapters import training
from components.adapters.models import load_tokenizer
from components.adapters.training.speed import Tokens, peak_flops, peak_memory, size_of, training_flops
from components.core.training import TrainingConfig

LENGTHS = ("completion_tokens", "completions/mean_length")
"""What our trainer and TRL's call the mean length of a completion in their logs."""
PARTS = ("sft-4096", "sft-12288", "grpo-ours", "grpo-trl")


def training_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the stages' settings have in common here."""
    return {
        "precision": "fp32" if arguments.tiny else "bf16",
        "gradient_checkpointing": True,
        "liger": not arguments.tiny,
        "sharding": arguments.sharding,
        "offload": arguments.offload,
        "save_steps": 10**6,
        "processes": arguments.processes,
    }


def measure_sft(arguments: argparse.Namespace, folder: Path, length: int) -> dict[str, Any]:
    """Train on rows of `length` random tokens, half of them learned, with the SFT stage's trainer."""
    from components.sft.config import Config
    from components.sft.trainer import build_trainer

    numbers = shape(arguments)
    batch = max(1, arguments.tokens_per_step // (length * arguments.processes)) * arguments.processes
    config = Config(
        base_model=str(folder), batch_size=batch, micro_batch_size=1, max_length=length, **training_settings(arguments)
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
    done = per_gpu * training_flops(size_of(trainer.model), Tokens(length, length**2))
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return {
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

    config = Config(
        learning_rate=1e-6,
        steps=arguments.warm_steps + arguments.steps,
        prompts_per_step=arguments.prompts,
        num_generations=arguments.generations,
        micro_batch_size=arguments.micro_batch,
        max_prompt_tokens=2 * arguments.prompt_tokens,
        max_completion_tokens=arguments.completion_tokens,
        beta=arguments.beta,
        rollouts={
            "engine": arguments.rollouts,
            "memory_fraction": arguments.memory_fraction,
            "sleep": arguments.rollouts == "vllm",
        },
        **training_settings(arguments),
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
    """Return TRL's trainer with its defaults, but for what makes the step the same and lets it fit into the memory."""
    from trl import GRPOConfig, GRPOTrainer

    settings = TrainingConfig(**training_settings(arguments))
    checkpoints: Any = NoCheckpoints(output.workdir / "checkpoints")
    shared = training.common_arguments(settings, checkpoints, output)
    with_vllm = {"use_vllm": True, "vllm_gpu_memory_utilization": arguments.memory_fraction}
    num_rollouts = arguments.prompts * arguments.generations // arguments.processes
    defaults = GRPOConfig(output_dir=str(output.workdir), use_cpu=arguments.tiny, bf16=not arguments.tiny)
    micro = min(defaults.per_device_train_batch_size, num_rollouts)
    config = GRPOConfig(
        output_dir=str(output.workdir),
        **({} if arguments.rollouts == "transformers" else with_vllm),
        **({"deepspeed": shared["deepspeed"]} if shared.get("deepspeed") else {}),
        use_cpu=arguments.tiny,
        bf16=not arguments.tiny,
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

    def by_length(completion_ids: Any, **batch: Any) -> list[float]:
        return [float(sum(ids) % 2) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=str(folder), args=config, train_dataset=rows, processing_class=tokenizer, reward_funcs=[by_length]
    )
    return trainer, trainer.train


def shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of the model."""
    numbers = dict(TINY if arguments.tiny else QWEN25_7B)
    return numbers | ({"num_hidden_layers": arguments.layers} if arguments.layers else {})


def run_part(arguments: argparse.Namespace) -> None:
    """Measure one part in this process and write its result beside the output."""
    folder = make_model(arguments.directory, shape(arguments))
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
    script = [str(Path(__file__).resolve()), *options, f"--part={part}"]
    together = arguments.processes > 1 or arguments.sharding != "none"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.processes}"]
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *(torchrun if together else []), *script]
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
        memory = f", peak {found['peak_memory_gib']:.1f} GiB"
        if name.startswith("sft-"):
            mfu = "" if found["mfu"] is None else f", MFU {found['mfu']:.1%} (aim 45 %)"
            print(f"{name:10} {found['tokens_per_second_per_gpu']:8.0f} tokens/s a GPU{mfu}{memory}")
            continue
        parts = ", ".join(f"{key} {seconds:.2f}" for key, seconds in found["seconds"].items() if key != "step")
        print(f"{name:10} {found['seconds']['step']:8.2f} s a step ({parts}){memory}")
    both = [results.get(name, {}).get("seconds") for name in ("grpo-ours", "grpo-trl")]
    if all(both):
        print(f"TRL's defaults take {both[1]['step'] / both[0]['step']:.2f} times as long (aim 1.5, better 2)")


def main() -> None:
    """Measure the parts that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="scratch; the 7B model takes 15 GB in it")
    parser.add_argument("--output", type=Path, help="JSON file that the results are merged into")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU, without vLLM")
    parser.add_argument("--layers", type=int, help="layers of the model; default all 28")
    parser.add_argument("--steps", type=int, default=2, help="steps that are measured")
    parser.add_argument("--warm-steps", type=int, default=1, help="steps before them")
    parser.add_argument("--processes", type=int, default=1, help="GPUs")
    parser.add_argument("--sharding", choices=("none", "zero2", "zero3"), default="zero2")
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), default="optimizer")
    parser.add_argument("--tokens-per-step", type=int, default=262_144, help="of SFT, over all GPUs")
    parser.add_argument("--prompts", type=int, default=16, help="prompts in an RL step, over all GPUs")
    parser.add_argument("--generations", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--completion-tokens", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=8, help="completions in a forward pass of our trainer")
    parser.add_argument("--beta", type=float, default=0.0, help="KL weight on both sides; TRL's default is 0")
    parser.add_argument("--rollouts", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--memory-fraction", type=float, default=0.3, help="vLLM's share of the GPU (TRL's default)")
    arguments = parser.parse_args()
    if arguments.tiny:
        tiny = {"sharding": "none", "offload": "none", "tokens_per_step": 256, "prompts": 2, "generations": 4}
        tiny |= {"prompt_tokens": 512, "completion_tokens": 16, "micro_batch": 4, "rollouts": "transformers"}
        vars(arguments).update(tiny)
    if arguments.part:
        run_part(arguments)
        return
    arguments.directory.mkdir(parents=True, exist_ok=True)
    output = arguments.output or arguments.directory / "gpu_training.json"
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    for part in arguments.only:
        found = arguments.directory / f"{part}.json"
        found.unlink(missing_ok=True)
        code = start(part, arguments)
        results[part] = json.loads(found.read_text()) if found.is_file() else {"error": f"ended with exit code {code}"}
        output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    show(results)


if __name__ == "__main__":
    main()
