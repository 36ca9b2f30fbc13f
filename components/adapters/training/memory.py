"""Too little memory, in words: what was in work, what to change so that the run goes on, and what begins it anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from components.adapters import ranks
from components.core.errors import ReasrmError
from components.core.training import TrainingConfig

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MemoryError",
)


@contextmanager
def memory_explained(config: TrainingConfig, doing: Callable[[], str], length_setting: str = "") -> Iterator[None]:
    """Raise ReasrmError with words of what to do when the block runs out of memory.

    `doing` is asked then; `length_setting` names what bounds sequences, or nothing where none are in work.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, ReasrmError) or not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        told = f"out of memory {doing()}: {reason}. {_way_on(config, length_setting)}"
        raise ReasrmError(told) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is a device's or the host's refusal of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _NO_MEMORY)


def _way_on(config: TrainingConfig, length_setting: str) -> str:
    goes_on: list[str] = []
    anew: list[str] = []
    for name, text in advice(config, length_setting, on_gpu=torch.cuda.is_available(), alone=ranks.world_size() == 1):
        (goes_on if name in config.not_in_key else anew).append(text)
    parts = []
    if goes_on:
        parts.append(f"To go on from the last checkpoint, if there is one, with less: {', or '.join(goes_on)}.")
    if anew:
        parts.append(f"{'These begin' if len(anew) > 1 else 'This begins'} training anew: {', or '.join(anew)}.")
    return " ".join(parts) or "No setting needs less: run it where there is more memory."


def advice(config: TrainingConfig, length_setting: str, *, on_gpu: bool, alone: bool) -> Iterator[tuple[str, str]]:
    """Yield settings that need less memory and can be taken with the others, each with what to do, best first.

    Without a length setting no batch is in work, and only what the model itself takes can be lowered.
    """
    if length_setting and not config.gradient_checkpointing:
        yield "gradient_checkpointing", "set gradient_checkpointing to true"
    micro_batch_size = getattr(config, "micro_batch_size", 1)
    if length_setting and micro_batch_size > 1:
        yield "micro_batch_size", f"lower micro_batch_size (now {micro_batch_size})"
    stages = '"zero3"' if config.sharding == "zero2" else '"zero2" or "zero3"'
    if config.lora is None:  # adapters are so small that sharding or moving them gains nothing
        if on_gpu and config.sharding != "none" and config.offload == "none":
            more = ' or "all"' if config.sharding == "zero3" else ""
            yield "offload", f'set offload to "optimizer"{more}'
        elif on_gpu and config.sharding == "zero3" and config.offload == "optimizer":
            yield "offload", 'set offload to "all"'
        if config.sharding != "zero3" and not alone:
            yield "sharding", f"set sharding to {stages}"
        elif config.sharding != "zero3" and on_gpu:
            yield "sharding", 'set sharding to "zero3" and offload to "all"'
    if length_setting:
        yield "length", f"lower {length_setting} (now {getattr(config, length_setting, 'none')})"
    if config.lora is None and config.sharding != "zero3":
        yield "lora", "set lora, to train small adapters instead of all weights"
