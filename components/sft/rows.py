"""Examples as the token ids that are trained on."""

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, disable_progress_bars
from trl import pack_dataset

from components.core.errors import InvalidInput
from components.core.schema import Example

logger = logging.getLogger(__name__)

IGNORED = -100  # the label of a token that the loss does not count
# Examples that are packed together: thousands fill rows well, and Arrow's 32-bit offsets hold their tokens.
PACKED_TOGETHER = 10_000


def encode(examples: Sequence[Example], tokenizer: Any, max_length: int) -> tuple[Dataset, int]:
    """Return the examples as `input_ids` and `labels`, and how many were too long; `examples` names their places.

    The prompt ends with the opened assistant turn and the completion with the end-of-turn token, just as the judge is
    asked and answers later. Prompt and completion are tokenised apart, so no token spans the border. An over-long
    example is dropped, never cut: a cut judgment has no verdict.
    """
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "examples": []}
    for place, example in enumerate(examples):
        messages = [message.model_dump() for message in example.prompt]
        prompt_text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
        written = example.completion[0].content
        completion = tokenizer(written, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if len(prompt) + len(completion) > max_length:
            continue
        columns["input_ids"].append(prompt + completion)
        columns["labels"].append([IGNORED] * len(prompt) + completion)
        columns["examples"].append([place])
    num_too_long = len(examples) - len(columns["examples"])
    if num_too_long:
        logger.warning("%s of %s examples are over max_length %s: dropped", num_too_long, len(examples), max_length)
    return Dataset.from_dict(columns), num_too_long


def check_context(rows: Dataset, context: int, max_length: int) -> None:
    """Raise InvalidInput when an example is longer than what the base model was made for, in tokens.

    It would train on positions that the model has never seen. A packed row may be longer: its examples count anew.
    """
    lengths = [len(ids) for ids in rows["input_ids"]]
    if max(lengths) > context:
        raise InvalidInput(
            f"{sum(length > context for length in lengths)} of {len(lengths)} examples are longer than the base "
            f"model's context of {context} tokens, the longest {max(lengths)}; lower max_length (now {max_length}) to "
            f"{context} to drop them, or take a base model with a longer context"
        )


def pack(rows: Dataset, max_length: int) -> Dataset:
    """Return the rows put together, whole, into rows of up to `max_length` tokens (best fit decreasing).

    `seq_lengths` are the tokens of each example in a row: position ids begin anew with each, and from these the model
    makes a mask that lets no example see another.
    """
    disable_progress_bars()  # the stage draws its own
    places = [[place] * len(ids) for ids, (place,) in zip(rows["input_ids"], rows["examples"], strict=True)]
    by_token = Dataset.from_dict({"input_ids": rows["input_ids"], "labels": rows["labels"], "examples": places})
    packed = pack_dataset(by_token, max_length, strategy="bfd", map_kwargs={"batch_size": PACKED_TOGETHER})
    named = [list(dict.fromkeys(row)) for row in packed["examples"]]
    return packed.remove_columns("examples").add_column("examples", named)
