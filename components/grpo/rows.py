"""Preference pairs as the prompts that are rolled out."""

import logging
from collections.abc import Callable, Sequence

from datasets import Dataset

from components.adapters.engines import Conversation
from components.core import prompts
from components.core.schema import PreferencePair
from components.grpo.config import Config

logger = logging.getLogger(__name__)

COLUMNS = ("prompt", "label", "key", "unit", "swapped")


def build_rows(
    pairs: Sequence[PreferencePair], encode: Callable[[Conversation], list[int]], config: Config
) -> tuple[Dataset, int]:
    """Return the judge prompts with their labels, and how many pairs were over `max_prompt_tokens` and dropped.

    With both orders the rows of a pair stand side by side, `unit` being its id, and if one of them is over-long both
    are dropped.
    """
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    num_too_long = 0
    for pair in pairs:
        shown = [pair.shown(False), pair.shown(True)] if config.orders == "both" else [pair]
        rendered = [prompts.render(each, config.grammar).messages for each in shown]
        if any(len(encode(messages)) > config.max_prompt_tokens for messages in rendered):
            num_too_long += 1
            continue
        for each, messages in zip(shown, rendered, strict=True):
            row = ([message.model_dump() for message in messages], each.label, each.key, each.id, each.swapped)
            for name, value in zip(COLUMNS, row, strict=True):
                columns[name].append(value)
    if num_too_long:
        logger.warning("%s of %s pairs are over %s tokens: dropped", num_too_long, len(pairs), config.max_prompt_tokens)
    return Dataset.from_dict(columns), num_too_long
