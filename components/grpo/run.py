"""Let the SFT model write judgments, reward them, and train it on them, against the SFT model as reference.

All of it runs on every process that trains; the statistics that count are those of the first.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from components.adapters import ranks, training
from components.adapters.checkpoints import Checkpoints
from components.adapters.models import load_tokenizer
from components.adapters.stage import Inputs, Output, code_version
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import parents_of
from components.core.records import read_models
from components.core.schema import PreferencePair
from components.grpo.collapse import StopOnCollapse
from components.grpo.config import Config
from components.grpo.evaluation import SCORE, HeldOut, split_for_evaluation, with_evaluations
from components.grpo.rollouts import open_sampler
from components.grpo.rows import build_rows
from components.grpo.schedule import Schedule, accumulation_steps, make_schedule
from components.grpo.trainer import JudgeTrainer, build_trainer

logger = logging.getLogger(__name__)

SHOWN = ("reward", "valid_rate", "kl")
"""What stands beside the progress bar."""
TAIL = 5
"""RL steps at the end that the final reward is the mean of."""


def run(config: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Train, write `model/` and `metrics.jsonl`, and return the statistics."""
    accumulation_steps(config, ranks.world_size())  # before anything is downloaded
    pairs = read_models(inputs.fetch(_origin(inputs), only=["rl.jsonl"]) / "rl.jsonl", PreferencePair)
    held_out: list[PreferencePair] = []
    if config.evaluation.every:
        pairs, held_out = split_for_evaluation(pairs, config.evaluation.pairs, config.seed)
    folder = inputs.fetch("sft") / "model"
    tokenizer = load_tokenizer(folder)
    sampler = open_sampler(folder, tokenizer, config)
    rows, num_too_long = build_rows(pairs, sampler.encode, config)
    schedule = make_schedule(len(rows), config)
    _check(schedule, config)
    checkpoints = Checkpoints(
        output,
        "grpo",
        code_version("grpo"),
        config,
        config.keep_checkpoints,
        parents=parents_of(inputs),
        sharding=config.sharding,
        resume_from=config.resume_from,
    )
    evaluation = None
    if held_out:
        evaluation = HeldOut(held_out, sampler, config, output, checkpoints.rescore, checkpoints.best)
    collapse = StopOnCollapse(config.stop, config.updates_per_step)
    trainer = build_trainer(
        config,
        tokenizer,
        rows,
        schedule,
        sampler,
        training.common_arguments(config, checkpoints, output),
        lambda: training.load_trainable(folder, config, output),
        [
            *training.callbacks(config, checkpoints, output, SHOWN, config.updates_per_step),
            collapse,
            *([evaluation] if evaluation else []),
        ],
    )
    log = training.train(
        trainer,
        checkpoints,
        output,
        updates_per_step=config.updates_per_step,
        rows_of_step=trainer.rows_of_step,
    )
    if collapse.collapse is not None:
        log = [row for row in log if row["step"] <= collapse.collapse.step]
    evaluations = evaluation.rows if evaluation else []
    sampler.rest()
    log_rows = with_evaluations(log, evaluations)
    kept = _export(config, trainer, tokenizer, log_rows, checkpoints, output, collapse.reason)
    found = {
        "num_prompts": len(rows),
        "num_too_long": num_too_long,
        "num_left_over": schedule.num_left_over,
        "num_held_out": len(held_out),
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        **describe(log, config),
        **{f"kept_{name}": value for name, value in kept.items()},
    }
    if collapse.reason is not None:
        found["stopped_early"] = collapse.reason
    output.summary = summarize(found, evaluations)
    return found


def _origin(inputs: Inputs) -> str:
    """Name the input that has the pairs: the filter's examples where it chose them by difficulty, else the pairs."""
    chosen = "examples" in inputs and any(entry.path == "rl.jsonl" for entry in inputs["examples"].files)
    return "examples" if chosen else "pairs"


def _check(schedule: Schedule, config: Config) -> None:
    """Say what is left over. Raises InvalidInput when no evaluation would choose the best checkpoint."""
    if schedule.num_left_over:
        logger.warning(
            "%s of %s prompts fill no RL step of %s: each pass leaves out as many, drawn anew",
            schedule.num_left_over, schedule.num_units * schedule.unit_size, config.prompts_per_step,
        )  # fmt: skip
    if config.evaluation.keep == "best" and schedule.num_steps < config.evaluation.every:
        raise InvalidInput(
            f'evaluation.keep is "best", but evaluation.every {config.evaluation.every} is over the '
            f"{schedule.num_steps} RL steps: lower it"
        )


def _export(
    config: Config,
    trainer: JudgeTrainer,
    tokenizer: Any,
    log: list[dict[str, Any]],
    checkpoints: Checkpoints,
    output: Output,
    collapsed: str | None,
) -> dict[str, Any]:
    """Write the model that is kept, the last or the best, and return which it is.

    Raises:
        ReasrmError: the policy has collapsed, and no checkpoint from before has a held-out score.
        Transient: the best checkpoint is not in S3.
    """
    if config.evaluation.keep == "last" and collapsed is None:
        training.export(trainer, tokenizer, log, output)
        return {"step": trainer.state.global_step // config.updates_per_step}
    best = checkpoints.best()
    if best is None and collapsed is not None:
        raise ReasrmError(
            f"training was stopped: {collapsed}. No checkpoint from before has a held-out score, so none is kept as "
            "the model: lower learning_rate or raise beta, and set evaluation.every to have one to fall back on"
        )
    if best is None:
        raise Transient("no checkpoint with a held-out score has reached S3, so none can be kept; run again")
    folder: Path = checkpoints.fetch(best[0])
    training.export(trainer, tokenizer, log, output, checkpoint=folder)
    ranks.barrier()
    if ranks.local_rank() == 0:
        shutil.rmtree(checkpoints.directory, ignore_errors=True)
    return {"step": best[0] // config.updates_per_step, "strict_accuracy": best[1]}


def describe(log: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    """Return the numbers of a training log, one row an RL step."""
    rewards, tail = [row["reward"] for row in log], log[-TAIL:]
    found = {
        "num_steps": len(log),
        "num_updates": len(log) * config.updates_per_step,
        "num_rollouts": len(log) * config.prompts_per_step * config.num_generations,
        "num_drawn": round(sum(row["num_drawn"] for row in log)),
        "num_replaced": round(sum(row["num_replaced"] for row in log)),
        "no_signal_rate": _mean(log, "no_signal_rate"),
        "first_reward": rewards[0],
        "final_reward": _mean(tail, "reward"),
        "final_kl": log[-1].get("kl", 0.0),  # without beta there is no reference
    }
    return found | {f"final_{name}": _mean(tail, f"reward.{name}") for name in config.rewards.weights}


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows) / len(rows))


def summarize(found: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """Return the run in one line."""
    parts = [
        f"{found['num_steps']} steps",
        f"reward {found['first_reward']:+.2f} to {found['final_reward']:+.2f}",
        f"KL {found['final_kl']:.4f}",
    ]
    if evaluations:
        kept = next((row[SCORE] for row in evaluations if row["step"] == found["kept_step"]), None)
        after = "" if kept is None else f" to {kept:.3f} at step {found['kept_step']}"
        parts.append(f"held-out strict accuracy {evaluations[0][SCORE]:.3f}{after}")
    if "stopped_early" in found:
        parts.append("stopped early")
    return ", ".join(parts)
