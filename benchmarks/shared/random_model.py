"""Models of random weights in real shapes, and prompts of a wanted length: to measure speed without a download."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QWEN25_7B = {  # config.json of Qwen/Qwen2.5-7B-Instruct
    "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32_768, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
TINY = QWEN25_7B | {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
"""Heads of 32, the smallest that vLLM's kernels know."""


def make_model(directory: Path, numbers: Mapping[str, Any], num_ends: int = 1) -> Path:
    """Write a model of random bf16 weights with a tokenizer that can decode all of its ids; return its folder.

    Its generation config ends a completion at `num_ends` of the tokens: the more, the shorter completions are.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from pipeline.models import make_tiny_random

    parts = [str(numbers[key]) for key in ("hidden_size", "num_hidden_layers")]
    folder = directory / "-".join(["model", *parts, *([f"ends{num_ends}"] if num_ends > 1 else [])])
    if folder.is_dir():
        return folder
    small = directory / "tiny-random"
    if not small.is_dir():
        make_tiny_random(small)
    tokenizer = AutoTokenizer.from_pretrained(small)
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    known = len(tokenizer)
    plain["model"]["vocab"] |= {f"unused{place}": place for place in range(known, numbers["vocab_size"])}
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)),
        chat_template=tokenizer.chat_template,
        **{name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token")},
    )
    ends = {"eos_token_id": whole.eos_token_id, "bos_token_id": whole.bos_token_id, "pad_token_id": whole.pad_token_id}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2ForCausalLM(Qwen2Config(**numbers, **ends))
        torch.set_default_dtype(torch.float32)
    model.generation_config.update(**ends)
    if num_ends > 1:
        more = range(numbers["vocab_size"] - num_ends + 1, numbers["vocab_size"])
        model.generation_config.eos_token_id = [whole.eos_token_id, *more]
    temporary = folder.with_name(f".{folder.name}")
    model.save_pretrained(temporary)
    whole.save_pretrained(temporary)
    temporary.replace(folder)
    return folder


def prompt_rows(tokenizer: Any, num: int, length: int) -> Any:
    """Return so many judge prompts that are each `length` tokens long, give or take one word."""
    from components.core import prompts
    from components.core.schema import PreferencePair
    from components.grpo.rows import COLUMNS

    def pair(number: int, words: int) -> PreferencePair:
        text = " ".join(f"reply {number + place}" for place in range(words))
        turn = {"role": "user", "content": f"Question {number}?"}
        return PreferencePair(id=f"p{number}", prompt=(turn,), response_a=f"{text} yes", response_b="no", label="A")

    def encoded(number: int, words: int) -> int:
        turns = [turn.model_dump() for turn in prompts.render(pair(number, words), "rubric").messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number in range(num):
        low, high = 1, length
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if encoded(number, middle) <= length else (low, middle)
        chosen = pair(number, low)
        turns = [turn.model_dump() for turn in prompts.render(chosen, "rubric").messages]
        values = {"prompt": turns, "label": "A", "key": chosen.key, "unit": chosen.id, "swapped": False}
        for name in COLUMNS:
            rows[name].append(values[name])
    from datasets import Dataset

    return Dataset.from_dict(rows)
