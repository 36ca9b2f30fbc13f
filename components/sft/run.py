"""Fine-tune the base model on the kept traces with TRL's SFTTrainer; the loss counts the completion's tokens only.

All of it runs on every process that trains; the statistics that count are those of the first.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from components.adapters import ranks, training
from components.adapters.checkpoints import Checkpoints
from components.adapters.models import (
    fingerprint,
    load_context_tokens,
    load_tokenizer,
    resolve,
    short_name,
    starting_model,
)
from components.adapters.stage import Inputs, Output, code_version
from components.adapters.together import together
from components.core.errors import InvalidInput, Transient
from components.core.manifest import parents_of
from components.core.records import read_models, write_jsonl
from components.core.schema import Example
from components.sft.config import Config
from components.sft.rows import IGNORED, check_context, encode, pack
from components.sft.schedule import steps_per_epoch
from components.sft.trainer import build_trainer

logger = logging.getLogger(__name__)


def run(config: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Train, write `model/` and `metrics.jsonl`, and return the statistics."""
    examples = read_models(inputs.fetch("examples", only=["sft.jsonl"]) / "sft.jsonl", Example)
    start = starting_model(config.base_model, config.warm_start, output.storage)
    if config.warm_start and fingerprint(start, output.storage) != list(output.sources):
        raise Transient(f"{config.warm_start} has just become another version; run this again")
    folder = resolve(start, output.storage, output.workdir / "base")
    tokenizer = load_tokenizer(folder, padding_side="right")
    if not config.epochs:
        return hand_on(folder, tokenizer, output) | {"started_from": short_name(start)}
    encoded, num_too_long = encode(examples, tokenizer, config.max_length)
    if len(encoded) == 0:
        raise InvalidInput(
            f"none of the {len(examples)} examples fits into max_length {config.max_length} tokens; raise max_length"
        )
    check_context(encoded, load_context_tokens(folder), config.max_length)
    rows = pack(encoded, config.max_length) if config.packing else encoded
    statistics = {"num_examples": len(encoded), "num_too_long": num_too_long, **describe(rows, config)}
    checkpoints = Checkpoints(
        output,
        "sft",
        code_version("sft"),
        config,
        config.keep_checkpoints,
        parents=parents_of(inputs),
        sharding=config.sharding,
        resume_from=config.resume_from,
    )
    trainer = build_trainer(config, folder, tokenizer, rows, [e.key for e in examples], checkpoints, output)
    log = training.train(trainer, checkpoints, output, rows_of_step=trainer.rows_of_step)
    training.export(trainer, tokenizer, log, output)
    final = sum(row["loss"] for row in log[-5:]) / len(log[-5:])
    output.summary = f"{len(encoded)} examples, {len(log)} steps, loss {log[0]['loss']:.2f} to {final:.2f}"
    return {
        **statistics,
        "started_from": short_name(start),
        "num_steps": len(log),
        "first_loss": log[0]["loss"],
        "final_loss": final,
        "precision": "bf16" if trainer.args.bf16 else "fp32",
    }


def hand_on(folder: Path, tokenizer: Any, output: Output) -> dict[str, Any]:
    """Write the base model as it is: it judges by reasoning already, and reinforcement begins with it."""
    if ranks.world_size() > 1:  # no trainer has made a process group, and all end together
        torch.distributed.init_process_group("gloo")

    def copy() -> None:
        if not ranks.is_main():
            return
        (output.directory / "model").mkdir()
        for path in sorted(folder.iterdir()):
            if path.suffix in {".safetensors", ".json"}:
                shutil.copyfile(path, output.directory / "model" / path.name)
        tokenizer.save_pretrained(output.directory / "model")
        write_jsonl(output.directory / "metrics.jsonl", [])

    together(copy)
    output.summary = "epochs is 0: the base model is handed on"
    return {"num_examples": 0, "num_steps": 0}


def describe(rows: Dataset, config: Config) -> dict[str, Any]:
    """Return what the rows hold and how they make batches; say aloud when some are left over."""
    num_steps = steps_per_epoch(len(rows), config.batch_size)
    num_left_over = len(rows) - num_steps * config.batch_size
    if num_left_over:
        logger.warning(
            "%s of %s rows fill no batch of %s: each epoch leaves out as many, drawn anew",
            num_left_over, len(rows), config.batch_size,
        )  # fmt: skip
    num_tokens = sum(len(row) for row in rows["input_ids"])
    found = {
        "num_rows": len(rows),
        "num_left_over_rows": num_left_over,
        "num_steps_per_epoch": num_steps,
        "num_tokens": num_tokens,
        "num_completion_tokens": sum(label != IGNORED for row in rows["labels"] for label in row),
    }
    return found | ({"fill_rate": num_tokens / (len(rows) * config.max_length)} if config.packing else {})
