"""Time an SFT step of the demo's model on a CPU with TRL's head and with ours, in one run.

    python -m benchmarks.sft_step --model .reasrm/models/SmolLM2-135M-Instruct --steps 4

Prints seconds a step and tokens a second for both, their ratio, and the peak memory so far after each.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
from trl.trainer.utils import add_fused_lm_head

from components.adapters.cpu_head import score_learned_positions_only
from components.adapters.models import load_model


def seconds_per_step(model: torch.nn.Module, rows: int, prompt: int, completion: int, steps: int) -> float:
    """Return the median seconds of forward, backward and AdamW step under bf16 autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(5, 40_000, (rows, prompt + completion))
    labels = ids.clone()
    labels[:, :prompt] = -100
    taken = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main() -> None:
    """Time both heads and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=345)
    parser.add_argument("--completion", type=int, default=150)
    arguments = parser.parse_args()
    shape = (arguments.rows, arguments.prompt, arguments.completion, arguments.steps)
    found = {}
    for name in ("ours", "TRL's"):
        model = load_model(arguments.model, torch.float32).train()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if name == "ours":
            score_learned_positions_only(model)
        found[name] = seconds_per_step(model, *shape)
        tokens = arguments.rows * (arguments.prompt + arguments.completion) / found[name]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:6} {found[name]:6.2f} s a step, {tokens:5.0f} tokens/s, peak so far {peak:.2f} GiB")
    ratio = found["TRL's"] / found["ours"]
    print(f"TRL's takes {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
