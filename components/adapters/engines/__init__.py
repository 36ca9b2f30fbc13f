"""Engines behind one call: prompts in, completions out, in the same order.

`open_engine` opens those that run a model of this machine: `transformers` in this process, `vllm` on its GPUs. The
module `openai` has one that asks any OpenAI-compatible endpoint; import it from there.
"""

from pathlib import Path
from typing import Literal

from components.adapters.engines.base import (
    Completion,
    Conversation,
    Engine,
    LoadFormat,
    OnBatch,
    OnCompletion,
    Sampling,
    TooLong,
    Unanswered,
    digest_of_messages,
    seed_of,
)

__all__ = [
    "Completion",
    "Conversation",
    "Engine",
    "LoadFormat",
    "OnBatch",
    "OnCompletion",
    "Sampling",
    "TooLong",
    "Unanswered",
    "digest_of_messages",
    "open_engine",
    "seed_of",
]


def open_engine(
    kind: Literal["transformers", "vllm"],
    folder: Path,
    *,
    precision: str = "auto",
    batch_size: int = 16,
    max_model_tokens: int | None = None,
    tensor_parallel: int = 1,
    memory_fraction: float = 0.9,
    load_format: LoadFormat = "auto",
) -> Engine:
    """Load the model in a folder; the caller closes the engine.

    `batch_size` is transformers', the number of prompts padded to one matrix; `tensor_parallel` and `memory_fraction`
    are vLLM's. `max_model_tokens` lowers the model's own limit of prompt and answer together. With `load_format`
    "dummy" the folder needs a config and a tokenizer only: speed can be measured without weights.

    Raises:
        InvalidInput: the engine is not installed, or the settings do not go with the model.
        ReasrmError: vLLM does not start.
    """
    if kind == "transformers":
        from components.adapters.engines.transformers import TransformersEngine

        return TransformersEngine.load(folder, batch_size, precision, max_model_tokens, load_format)
    from components.adapters.engines.vllm import VLLMEngine

    return VLLMEngine(
        folder,
        precision=precision,
        max_model_tokens=max_model_tokens,
        tensor_parallel=tensor_parallel,
        memory_fraction=memory_fraction,
        load_format=load_format,
    )
