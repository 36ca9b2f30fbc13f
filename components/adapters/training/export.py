"""The finished model: whole, bf16, safetensors, with everything that an engine needs beside the weights."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from components.adapters import ranks
from components.adapters.stage import Output
from components.adapters.together import together
from components.adapters.training.memory import memory_explained
from components.adapters.training.settings import Settings, callback_of
from components.core.errors import ReasrmError
from components.core.records import write_jsonl

MAX_SHARD = "5GB"


def export(
    trainer: Any, tokenizer: Any, log: list[dict[str, Any]], output: Output, checkpoint: Path | None = None
) -> None:
    """Write the finished model as bf16 safetensors with its tokenizer, and the log of its training.

    Every process must call it; the first one writes. `checkpoint` is a trainer's folder to take the weights from,
    instead of those that training ended with. LoRA adapters are merged: the trainer cannot train on afterwards.
    Raises ReasrmError, in all processes, when a weight is not finite or the memory does not suffice.
    """
    with memory_explained(callback_of(trainer, Settings).config, lambda: "writing the finished model"):
        model = trainer.accelerator.unwrap_model(trainer.model)
        if checkpoint is None:
            _check_finite(model)
        if is_peft_model(model):
            if checkpoint is not None:
                _load_adapters(model, checkpoint)
                _check_finite(model)
            model = model.merge_and_unload()  # no zero3 with LoRA: every process has it whole
            weights: Callable[[], Mapping[str, torch.Tensor]] = model.state_dict
        elif checkpoint is not None:
            weights = partial(_read_weights, checkpoint)
        elif is_deepspeed_zero3_enabled():
            gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # by the first process, layer-wise
            weights = partial(dict, gathered or {})
        else:
            weights = model.state_dict

        def write() -> None:
            if ranks.is_main():
                _write(model, weights(), output.directory / "model")
                tokenizer.save_pretrained(output.directory / "model")
                write_jsonl(output.directory / "metrics.jsonl", log)

        together(write)  # so that what ends the first process, such as a full disk, ends all


def _write(model: Any, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    narrow = _to_bf16(weights)
    for name, weight in narrow.items():
        _check_weight(name, weight)
    for name, source in model.all_tied_weights_keys.items():  # a checkpoint of ZeRO-2 has both
        narrow[name] = narrow[source]
    model.save_pretrained(folder, state_dict=narrow, max_shard_size=MAX_SHARD)
    config = copy.deepcopy(model.config)
    config.dtype = torch.bfloat16
    config.use_cache = True  # the trainers turn it off
    config.save_pretrained(folder)


def _to_bf16(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights in bf16 in host memory; those that share their memory go on sharing it."""
    made: dict[tuple[int, torch.Size], torch.Tensor] = {}
    narrow = {}
    for name, weight in weights.items():
        key = (weight.data_ptr(), weight.shape)
        if key not in made:
            made[key] = weight.detach().to("cpu", torch.bfloat16 if weight.is_floating_point() else weight.dtype)
        narrow[name] = made[key]
    return narrow


def _check_finite(model: Any) -> None:
    """Check what this process holds of each weight; raises ReasrmError in all processes when one of them fails."""
    held = ((name, own_part(parameter)) for name, parameter in model.named_parameters())
    found = next((name for name, weight in held if not bool(torch.isfinite(weight).all())), "")
    for name in ranks.gather(found):
        if name:
            raise ReasrmError(f"the trained weight {name} has non-finite values; the model is not published")


def own_part(parameter: Any) -> torch.Tensor:
    """Return what this process holds of a weight: all of it, or under ZeRO-3 its part without the padding at the end.

    The padding is never written to: it holds whatever was in the memory before.
    """
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return torch.as_tensor(parameter)
    start = part.ds_numel * parameter.ds_zero_partition_rank
    return torch.as_tensor(part).flatten()[: max(0, min(part.ds_numel, parameter.ds_numel - start))]


def _check_weight(name: str, weight: torch.Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise ReasrmError(f"the weight {name} has non-finite values in bf16; the model is not published")


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ReasrmError(f"the checkpoint {folder.name} has no model.safetensors; nothing can be exported from it")
    return {name: weight for file in files for name, weight in load_file(file).items()}


def _load_adapters(model: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
