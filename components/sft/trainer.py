"""TRL's SFT trainer over rows that are ready: encoded, packed, in order, each with the names of its examples."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from components.adapters import ranks, training
from components.adapters.checkpoints import Checkpoints
from components.adapters.cpu_head import score_learned_positions_only
from components.adapters.stage import Output
from components.sft.config import Config
from components.sft.schedule import accumulation_steps, row_order, steps_per_epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedCollator:
    """TRL's collator, with each batch's `examples` beside its tensors."""

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; TRL's collator knows nothing of `examples`."""
        batch: dict[str, Any] = self.collate(rows)
        return batch | {"examples": [place for row in rows for place in row["examples"]]}


class Trainer(training.Guarded, SFTTrainer):
    """Knows which examples the running step learns from, and counts the passes over them as `epoch`."""

    data_collator: Any
    _signature_columns: Any

    def __init__(self, *, keys: Sequence[str], num_steps_per_epoch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_collator = NamedCollator(self.data_collator)  # TRL takes none of ours with packing
        self._keys = keys
        self._num_steps_per_epoch = num_steps_per_epoch
        self._running: list[list[int]] = []

    def rows_of_step(self) -> list[list[str]]:
        """Return the keys of the examples that this process has in each forward pass of the running step."""
        return [[self._keys[place] for place in places] for places in self._running]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "examples" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "examples"]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Keep the names of the step's examples, which the model must not see."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._running = [batch.pop("examples") for batch in batches]
        return batches, num_items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the passes done: to the trainer all of them are one, because their order is fixed before."""
        self.state.epoch = self.state.global_step / self._num_steps_per_epoch
        super().log(logs, start_time)


def build_trainer(
    config: Config,
    folder: Path,
    tokenizer: Any,
    rows: Dataset,
    keys: Sequence[str],
    checkpoints: Checkpoints,
    output: Output,
) -> Trainer:
    """Return the trainer of this process. Raises InvalidInput when the rows or the processes do not make batches."""
    num_steps = steps_per_epoch(len(rows), config.batch_size)
    arguments = SFTConfig(  # before the model: with zero3 it decides how the weights are loaded
        **training.common_arguments(config, checkpoints, output),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_learning_rate_share},
        warmup_steps=config.warmup_fraction,
        max_steps=num_steps * config.epochs,
        save_steps=config.save_steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=accumulation_steps(config.batch_size, config.micro_batch_size, ranks.world_size()),
        train_sampling_strategy="sequential",
        packing=config.packing,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        eos_token=tokenizer.eos_token,
    )
    trainer = Trainer(
        keys=keys,
        num_steps_per_epoch=num_steps,
        model=training.load_trainable(folder, config, output),
        args=arguments,
        train_dataset=rows.select(row_order(len(rows), config.batch_size, config.epochs, config.seed)),
        processing_class=tokenizer,
        peft_config=training.peft_config(config),
        callbacks=training.callbacks(config, checkpoints, output, ("loss", "learning_rate")),
    )
    check_packing(config, trainer.model.config._attn_implementation, on_gpu=not arguments.use_cpu)
    if arguments.use_cpu:  # DeepSpeed leaves the model in host memory until it trains, on a GPU too
        model = trainer.model
        score_learned_positions_only(model.get_base_model() if is_peft_model(model) else model)
    return trainer


def check_packing(config: Config, attention: str, *, on_gpu: bool) -> None:
    """Warn when packing costs more than it saves: without flash attention each row has a mask of its square."""
    if config.packing and on_gpu and attention != "flash_attention_2" and ranks.is_main():
        logger.warning(
            "packing with %s attention works on a mask of max_length squared = %.1e for each row, slow and large: "
            "install flash-attn, or leave packing out", attention, config.max_length**2,
        )  # fmt: skip
